"""The form of answers about people and access: members, access grants, and what the vendor's operator sees of all tenants."""

from datetime import datetime
from typing import Annotated, Literal

from msgspec import Meta, Struct

from controlplane.api.schemas import Resource


class MemberStatus(Struct, kw_only=True):
    """Whether the person is a member, and what the person is called, until that is erased."""

    phase: Literal["active", "removed", "erased"]
    ready: bool
    display_name: str | None
    email: str | None


class MemberResource(Resource, kw_only=True):
    """A person who belongs to the tenant. `name` is an id that says nothing of the person."""

    kind: Literal["Member"]
    role: str
    status: MemberStatus | None = None
    warnings: list[str] = []


class Members(Struct, kw_only=True):
    """A page of members."""

    items: list[MemberResource]
    next_cursor: str | None


class AccessGrantStatus(Struct, kw_only=True):
    """Whether the vendor's operators can read now."""

    phase: Literal["open", "expired"]
    ready: bool


class AccessGrantResource(Resource, kw_only=True):
    """The vendor's operators may read the tenant's configuration until `expires_at`."""

    kind: Literal["AccessGrant"]
    expires_at: datetime
    uses: Annotated[int, Meta(description="How often something was read since it was given.")]
    status: AccessGrantStatus | None = None
    warnings: list[str] = []


class AccessGrants(Struct, kw_only=True):
    """A page of access grants."""

    items: list[AccessGrantResource]
    next_cursor: str | None


class FleetNode(Struct, kw_only=True):
    """A node and its last heartbeat."""

    data_plane: str
    node: str
    at: datetime
    connected: bool
    agent_version: str
    contract: int


class FleetTenant(Struct, kw_only=True):
    """How a tenant's nodes and pipelines stand."""

    tenant: str
    name: str
    nodes: list[FleetNode]
    phases: Annotated[dict[str, int], Meta(description="How many pipelines are in each phase.")]
    codes: Annotated[dict[str, int], Meta(description="How many pipelines report each code.")]


class Fleet(Struct, kw_only=True):
    """A page of tenants."""

    items: list[FleetTenant]
    next_cursor: str | None
