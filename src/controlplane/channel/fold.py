"""What the channel knows of one tenant's resources, folded from events: loaded once a page, changed in memory.

Each event also says which data planes it touches: those whose documents it may change. A plane's revision is the id of
the newest event that touched it, however the events were cut into pages, so that a rebuild gives the same index.
No I/O here: the publisher loads the state, hands in the events, and writes what came of them.
"""

from msgspec import Struct, structs

from contracts.v2 import RunState
from controlplane.channel.documents import ConnectionState, PipelineState
from controlplane.domain import (
    ConnectionConfigured,
    ConnectionDeleted,
    DataPlaneCreated,
    DataPlaneDeleted,
    LeafEnrolled,
    NodeEnrolled,
    NodeRevoked,
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
    TenantCreated,
)
from controlplane.domain.pipeline import kept, still_paused
from controlplane.log import LoggedEvent


class NodeState(Struct, frozen=True, kw_only=True):
    """A node as the log has made it."""

    data_plane: str
    key: str
    contract: int
    revoked: bool = False


class LeafState(Struct, frozen=True, kw_only=True):
    """A leaf's key. `revoked_at` is in seconds since 1970."""

    data_plane: str
    revoked_at: int | None = None


class TenantState:
    """One tenant, and what the events of a page have changed of it."""

    def __init__(
        self,
        tenant: str,
        *,
        connections: dict[str, ConnectionState],
        pipelines: dict[str, PipelineState],
        nodes: dict[str, NodeState],
        leaves: dict[str, LeafState],
        planes: dict[str, int],
    ) -> None:
        self.tenant = tenant
        self.connections = connections
        self.pipelines = pipelines
        self.nodes = nodes
        self.leaves = leaves
        self.planes = planes
        """The revision of each data plane."""
        self.is_new = False
        self.changed_connections: set[str] = set()
        self.changed_pipelines: set[str] = set()
        self.changed_nodes: set[str] = set()
        self.changed_leaves: set[str] = set()
        self.touched_planes: set[str] = set()
        self.deleted_planes: set[str] = set()

    def apply(self, logged: LoggedEvent) -> None:
        """Change the state by one event. Events that mean nothing to nodes or hub change nothing."""
        match logged.event:
            case TenantCreated():
                self.is_new = True
            case ConnectionConfigured() | ConnectionDeleted():
                self._apply_to_connection(logged)
            case DataPlaneCreated() | DataPlaneDeleted() | LeafEnrolled():
                self._apply_to_plane(logged)
            case NodeEnrolled() | NodeRevoked():
                self._apply_to_node(logged)
            case _:
                self._apply_to_pipeline(logged)

    def _touch(self, data_plane: str, logged: LoggedEvent) -> None:
        if data_plane in self.planes:
            self.planes[data_plane] = logged.id
            self.touched_planes.add(data_plane)

    def _apply_to_connection(self, logged: LoggedEvent) -> None:
        match logged.event:
            case ConnectionConfigured() as event:
                state = ConnectionState(
                    generation=event.generation,
                    config=event.config,
                    secrets=event.secrets,
                    signature=event.signature,
                )
            case ConnectionDeleted(generation=generation):
                state = ConnectionState(generation=generation)
            case _:
                return
        self.connections[logged.name] = state
        self.changed_connections.add(logged.name)
        for pipeline in self.pipelines.values():
            if logged.name in pipeline.connections:
                self._touch(pipeline.data_plane, logged)

    def _apply_to_plane(self, logged: LoggedEvent) -> None:
        match logged.event:
            case DataPlaneCreated():
                self.planes[logged.name] = logged.id
                self.touched_planes.add(logged.name)
                self.deleted_planes.discard(logged.name)
            case DataPlaneDeleted(at=at):
                self.planes.pop(logged.name, None)
                self.touched_planes.discard(logged.name)
                self.deleted_planes.add(logged.name)
                for key, leaf in self.leaves.items():
                    if leaf.data_plane == logged.name and leaf.revoked_at is None:
                        self.leaves[key] = structs.replace(leaf, revoked_at=int(at.timestamp()))
                        self.changed_leaves.add(key)
            case LeafEnrolled(leaf_key=key):
                self.leaves[key] = LeafState(data_plane=logged.name)
                self.changed_leaves.add(key)

    def _apply_to_node(self, logged: LoggedEvent) -> None:
        match logged.event:
            case NodeEnrolled(data_plane=data_plane, key=key, contract=contract):
                self.nodes[logged.name] = NodeState(data_plane=data_plane, key=key, contract=contract)
            case NodeRevoked() if logged.name in self.nodes:
                self.nodes[logged.name] = structs.replace(self.nodes[logged.name], revoked=True)
            case _:
                return
        self.changed_nodes.add(logged.name)

    def _apply_to_pipeline(self, logged: LoggedEvent) -> None:
        before = self.pipelines.get(logged.name, PipelineState())
        match logged.event:
            case PipelineConfigured() as event:
                after = structs.replace(
                    before,
                    generation=event.generation,
                    data_plane=event.data_plane,
                    source=event.source,
                    sink=event.sink,
                    buffer=event.buffer,
                    transforms=event.transforms,
                    signature=event.signature,
                    resyncs=kept(before.resyncs, event.source),
                    reconciles=kept(before.reconciles, event.source),
                    backfills=kept(before.backfills, event.source),
                    snapshots_paused=still_paused(before.snapshots_paused, event.source),
                )
            case PipelinePaused(generation=generation):
                after = structs.replace(before, generation=generation, run=RunState.PAUSED)
            case PipelineResumed(generation=generation):
                resumes = before.resumes + 1
                after = structs.replace(before, generation=generation, run=RunState.RUNNING, resumes=resumes)
            case PipelineRemovalRequested(generation=generation):
                after = structs.replace(before, generation=generation, run=RunState.REMOVED)
            case PipelineRestartRequested(generation=generation, restarts=restarts):
                after = structs.replace(before, generation=generation, restarts=restarts)
            case PipelineResyncRequested(generation=generation, resyncs=resyncs):
                after = structs.replace(before, generation=generation, resyncs=resyncs)
            case PipelineBackfillRequested(generation=generation, backfills=backfills):
                after = structs.replace(before, generation=generation, backfills=backfills)
            case PipelineCopyingPaused() | PipelineCopyingResumed() as told:
                after = structs.replace(before, generation=told.generation, snapshots_paused=told.snapshots_paused)
            case PipelineReconcileRequested(generation=generation, reconciles=reconciles):
                after = structs.replace(before, generation=generation, reconciles=reconciles)
            case PipelineDeleted(generation=generation):
                # The counters stay: a name used again must not be behind what a node has counted.
                after = PipelineState(generation=generation, restarts=before.restarts, resumes=before.resumes)
            case _:
                return
        self.pipelines[logged.name] = after
        self.changed_pipelines.add(logged.name)
        self._touch(before.data_plane, logged)
        self._touch(after.data_plane, logged)
