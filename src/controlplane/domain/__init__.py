"""Aggregates and their events, one noun a file. Pure: state and an intention go in, events come out.

Commands load an aggregate, ask it to decide, and save what it answers. Projections and the channel read the events.
Importing this package registers every event type, so that the log can decode whatever it holds.
"""

from controlplane.domain.access_grant import AccessGrant, AccessGranted, AccessRevoked, AccessUsed
from controlplane.domain.aggregate import Aggregate, Context
from controlplane.domain.api_key import ApiKey, ApiKeyIssued, ApiKeyRevoked
from controlplane.domain.connection import Connection, ConnectionConfigured, ConnectionDeleted
from controlplane.domain.data_plane import (
    DataPlane,
    DataPlaneCreated,
    DataPlaneDeleted,
    DataPlaneModel,
    JoinTokenIssued,
    JoinTokenRedeemed,
    LeafEnrolled,
)
from controlplane.domain.event import DomainEvent, Undecodable
from controlplane.domain.member import Member, MemberAdded, MemberErased, MemberRemoved, MemberRoleChanged
from controlplane.domain.node import Node, NodeEnrolled, NodeRevoked
from controlplane.domain.pipeline import (
    Pipeline,
    PipelineBackfillRequested,
    PipelineConfigured,
    PipelineCopyingPaused,
    PipelineCopyingResumed,
    PipelineDeleted,
    PipelinePaused,
    PipelineReconcileRequested,
    PipelineRemovalRequested,
    PipelineRestartRequested,
    PipelineResumed,
    PipelineResyncRequested,
)
from controlplane.domain.placement import Placement, PlacementReported, ReconcileReported
from controlplane.domain.tenant import Tenant, TenantCreated

__all__ = [
    "AccessGrant",
    "AccessGranted",
    "AccessRevoked",
    "AccessUsed",
    "Aggregate",
    "ApiKey",
    "ApiKeyIssued",
    "ApiKeyRevoked",
    "Connection",
    "ConnectionConfigured",
    "ConnectionDeleted",
    "Context",
    "DataPlane",
    "DataPlaneCreated",
    "DataPlaneDeleted",
    "DataPlaneModel",
    "DomainEvent",
    "JoinTokenIssued",
    "JoinTokenRedeemed",
    "LeafEnrolled",
    "Member",
    "MemberAdded",
    "MemberErased",
    "MemberRemoved",
    "MemberRoleChanged",
    "Node",
    "NodeEnrolled",
    "NodeRevoked",
    "Pipeline",
    "PipelineBackfillRequested",
    "PipelineConfigured",
    "PipelineCopyingPaused",
    "PipelineCopyingResumed",
    "PipelineDeleted",
    "PipelinePaused",
    "PipelineReconcileRequested",
    "PipelineRemovalRequested",
    "PipelineRestartRequested",
    "PipelineResyncRequested",
    "PipelineResumed",
    "Placement",
    "PlacementReported",
    "ReconcileReported",
    "Tenant",
    "TenantCreated",
    "Undecodable",
]
