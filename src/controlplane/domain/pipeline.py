"""A pipeline: which tables flow from which connection to which, on which data plane, and whether they flow now.

Every event that changes what a node must do raises the generation, so that 'observed generation = generation' always
means that the node acts on the newest wish. What must happen once is a counter (`restarts`, `resyncs`,
`backfills`, `reconciles`), never a command.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar, TypeVar

from msgspec import UNSET, Struct, UnsetType, structs

from contracts.backfilling import Backfill, Condition
from contracts.countersigning import Statement, of_pipeline
from contracts.delivery import OnSchemaChange
from contracts.reconciling import Reconcile
from contracts.v2 import BufferSettings, CustomerSignature, PipelineSink, PipelineSource, RunState, Transform
from controlplane.domain.aggregate import Aggregate, Context
from controlplane.domain.event import DomainEvent, registered


@registered
class PipelineConfigured(DomainEvent, frozen=True, kw_only=True):
    """The pipeline is now as said here, as a whole. Whether it runs does not change, but a new one runs."""

    KIND: ClassVar[str] = "Pipeline"

    generation: int
    data_plane: str
    source: PipelineSource
    sink: PipelineSink
    buffer: BufferSettings
    transforms: list[Transform]
    signature: CustomerSignature | UnsetType = UNSET


@registered
class PipelinePaused(DomainEvent, frozen=True, kw_only=True):
    """The pipeline stops at a transaction's end and keeps its place."""

    KIND: ClassVar[str] = "Pipeline"

    generation: int


@registered
class PipelineResumed(DomainEvent, frozen=True, kw_only=True):
    """The pipeline goes on where it stopped."""

    KIND: ClassVar[str] = "Pipeline"

    generation: int


@registered
class PipelineRestartRequested(DomainEvent, frozen=True, kw_only=True):
    """The pipeline's workers start again; `restarts` counts how often this was asked."""

    KIND: ClassVar[str] = "Pipeline"

    generation: int
    restarts: int


@registered
class PipelineResyncRequested(DomainEvent, frozen=True, kw_only=True):
    """Tables are copied again. `resyncs` is the whole map: the counter of each table that this was ever asked for."""

    KIND: ClassVar[str] = "Pipeline"

    generation: int
    resyncs: dict[str, int]


@registered
class PipelineBackfillRequested(DomainEvent, frozen=True, kw_only=True):
    """Rows of a table are copied again. `backfills` is the whole map: the newest such request of each table."""

    KIND: ClassVar[str] = "Pipeline"

    generation: int
    backfills: dict[str, Backfill]


@registered
class PipelineCopyingPaused(DomainEvent, frozen=True, kw_only=True):
    """No more is copied of some tables for the time being. `snapshots_paused` has all of them, those of before as well."""

    KIND: ClassVar[str] = "Pipeline"

    generation: int
    snapshots_paused: list[str]


@registered
class PipelineCopyingResumed(DomainEvent, frozen=True, kw_only=True):
    """The copying of some tables goes on where it was. `snapshots_paused` has those that stay paused."""

    KIND: ClassVar[str] = "Pipeline"

    generation: int
    snapshots_paused: list[str]


@registered
class PipelineReconcileRequested(DomainEvent, frozen=True, kw_only=True):
    """Both ends of tables are compared. `reconciles` is the whole map: the newest request of each table."""

    KIND: ClassVar[str] = "Pipeline"

    generation: int
    reconciles: dict[str, Reconcile]


@registered
class PipelineRemovalRequested(DomainEvent, frozen=True, kw_only=True):
    """The node drops slot, publication and checkpoint; when it reports that, the pipeline is deleted."""

    KIND: ClassVar[str] = "Pipeline"

    generation: int


@registered
class PipelineDeleted(DomainEvent, frozen=True, kw_only=True):
    """The pipeline is gone. Its name may be used again, with a higher generation."""

    KIND: ClassVar[str] = "Pipeline"

    generation: int


Counted = TypeVar("Counted")


def kept(counters: Mapping[str, Counted], source: PipelineSource) -> dict[str, Counted]:
    """Return the counters of the tables that `source` names: a table that leaves the pipeline loses its counter."""
    tables = set(source.tables)
    return {table: counter for table, counter in counters.items() if table in tables}


def still_paused(tables: Sequence[str], source: PipelineSource) -> list[str]:
    """Return those of `tables` that `source` names."""
    return [table for table in tables if table in set(source.tables)]


class PipelineSpec(Struct, frozen=True, kw_only=True):
    """What people write about a pipeline, but for its name."""

    data_plane: str
    source: PipelineSource
    sink: PipelineSink
    buffer: BufferSettings
    transforms: list[Transform]
    signature: CustomerSignature | UnsetType = UNSET
    """The customer's own, under all that stands above; passed on as it is."""

    def statement(self, tenant: str, name: str) -> Statement:
        """Return what the customer signs of it."""
        return of_pipeline(
            tenant=tenant,
            name=name,
            data_plane=self.data_plane,
            source=self.source,
            sink=self.sink,
            buffer=self.buffer,
            transforms=self.transforms,
        )


class Pipeline(Aggregate, frozen=True, kw_only=True):
    """One pipeline. `spec` is None while it does not exist."""

    KIND: ClassVar[str] = "Pipeline"

    generation: int = 0
    spec: PipelineSpec | None = None
    run: RunState = RunState.RUNNING
    restarts: int = 0
    resyncs: dict[str, int] = {}
    """For each table that was asked to be copied again, the number of the newest such request."""
    resync_number: int = 0
    """How many times this was asked. It outlives tables and deletion, so that no node's counter is ever ahead."""
    reconciles: dict[str, Reconcile] = {}
    """For each table that was asked to be compared, the newest such request."""
    reconcile_number: int = 0
    """How many times this was asked; it outlives tables and deletion, as that of resyncs."""
    backfills: dict[str, Backfill] = {}
    """For each table of which rows were asked to be copied again, the newest such request."""
    backfill_number: int = 0
    """How many times this was asked; it outlives tables and deletion, as that of resyncs."""
    snapshots_paused: list[str] = []
    """The tables of which nothing is copied for the time being, by name."""

    @property
    def exists(self) -> bool:
        """Say whether the pipeline is configured and not deleted; one that is being removed still exists."""
        return self.spec is not None

    def configure(self, context: Context, spec: PipelineSpec) -> list[DomainEvent]:
        """Decide to make the pipeline as asked; nothing if it is so already."""
        if self.spec == spec:
            return []
        return [self.event(PipelineConfigured, context, generation=self.generation + 1, **structs.asdict(spec))]

    def pause(self, context: Context) -> list[DomainEvent]:
        """Decide to pause; nothing if it does not run."""
        return self._next(PipelinePaused, context) if self.run is RunState.RUNNING else []

    def resume(self, context: Context) -> list[DomainEvent]:
        """Decide to go on; nothing if nothing can have stopped it.

        A pipeline that is to stop at a changed shape may be waiting for this while it counts as running.
        """
        waits = self.spec is not None and self.spec.sink.on_schema_change is OnSchemaChange.PAUSE
        stopped = self.run is RunState.PAUSED or (self.run is RunState.RUNNING and waits)
        return self._next(PipelineResumed, context) if stopped else []

    def restart(self, context: Context) -> list[DomainEvent]:
        """Decide to start the workers again."""
        event = self.event(
            PipelineRestartRequested, context, generation=self.generation + 1, restarts=self.restarts + 1
        )
        return [event]

    def resync(self, context: Context, tables: Sequence[str]) -> list[DomainEvent]:
        """Decide to copy `tables`, which the pipeline captures, again."""
        resyncs = self.resyncs_with(tables)
        return [self.event(PipelineResyncRequested, context, generation=self.generation + 1, resyncs=resyncs)]

    def resyncs_with(self, tables: Sequence[str]) -> dict[str, int]:
        """Return the counters as they are once `tables` were asked to be copied again."""
        return dict(sorted({**self.resyncs, **dict.fromkeys(tables, self.resync_number + 1)}.items()))

    def backfill(self, context: Context, table: str, where: Sequence[Condition]) -> list[DomainEvent]:
        """Decide to copy the rows of `table`, which the pipeline captures, again that match all of `where`."""
        backfills = self.backfills_with(table, where)
        return [self.event(PipelineBackfillRequested, context, generation=self.generation + 1, backfills=backfills)]

    def backfills_with(self, table: str, where: Sequence[Condition]) -> dict[str, Backfill]:
        """Return the requests as they are once rows of `table` were asked to be copied again."""
        asked = Backfill(number=self.backfill_number + 1, where=tuple(where))
        return dict(sorted({**self.backfills, table: asked}.items()))

    def pause_copying(self, context: Context, tables: Sequence[str]) -> list[DomainEvent]:
        """Decide to copy no more of `tables` for the time being; nothing if that is so for all of them."""
        paused = sorted({*self.snapshots_paused, *tables})
        return self._copying(PipelineCopyingPaused, context, paused)

    def resume_copying(self, context: Context, tables: Sequence[str]) -> list[DomainEvent]:
        """Decide to go on copying `tables`; nothing if none of them is paused."""
        paused = [table for table in self.snapshots_paused if table not in set(tables)]
        return self._copying(PipelineCopyingResumed, context, paused)

    def _copying(
        self,
        event_type: type[PipelineCopyingPaused] | type[PipelineCopyingResumed],
        context: Context,
        paused: list[str],
    ) -> list[DomainEvent]:
        if paused == self.snapshots_paused:
            return []
        return [self.event(event_type, context, generation=self.generation + 1, snapshots_paused=paused)]

    def reconcile(self, context: Context, tables: Sequence[str], *, repair: bool) -> list[DomainEvent]:
        """Decide to compare both ends of `tables`, which the pipeline captures, and with `repair` to mend them."""
        reconciles = self.reconciles_with(tables, repair=repair)
        return [self.event(PipelineReconcileRequested, context, generation=self.generation + 1, reconciles=reconciles)]

    def reconciles_with(self, tables: Sequence[str], *, repair: bool) -> dict[str, Reconcile]:
        """Return the requests as they are once `tables` were asked to be compared."""
        asked = Reconcile(number=self.reconcile_number + 1, repair=repair)
        return dict(sorted({**self.reconciles, **dict.fromkeys(tables, asked)}.items()))

    def remove(self, context: Context) -> list[DomainEvent]:
        """Decide that the node cleans up first; nothing if that was asked already."""
        return self._next(PipelineRemovalRequested, context) if self.run is not RunState.REMOVED else []

    def delete(self, context: Context) -> list[DomainEvent]:
        """Decide to delete the pipeline at once; nothing if it does not exist."""
        return self._next(PipelineDeleted, context) if self.exists else []

    def applied(self, event: DomainEvent) -> "Pipeline":
        """Return what `event` changes."""
        match event:
            case PipelineConfigured():
                spec = PipelineSpec(
                    data_plane=event.data_plane,
                    source=event.source,
                    sink=event.sink,
                    buffer=event.buffer,
                    transforms=event.transforms,
                    signature=event.signature,
                )
                return structs.replace(
                    self,
                    generation=event.generation,
                    spec=spec,
                    resyncs=kept(self.resyncs, event.source),
                    reconciles=kept(self.reconciles, event.source),
                    backfills=kept(self.backfills, event.source),
                    snapshots_paused=still_paused(self.snapshots_paused, event.source),
                )
            case PipelinePaused():
                return structs.replace(self, generation=event.generation, run=RunState.PAUSED)
            case PipelineResumed():
                return structs.replace(self, generation=event.generation, run=RunState.RUNNING)
            case PipelineRestartRequested():
                return structs.replace(self, generation=event.generation, restarts=event.restarts)
            case PipelineResyncRequested():
                number = max(self.resync_number, *event.resyncs.values())
                return structs.replace(self, generation=event.generation, resyncs=event.resyncs, resync_number=number)
            case PipelineBackfillRequested():
                number = max(self.backfill_number, *(each.number for each in event.backfills.values()))
                return structs.replace(
                    self, generation=event.generation, backfills=event.backfills, backfill_number=number
                )
            case PipelineCopyingPaused() | PipelineCopyingResumed():
                return structs.replace(self, generation=event.generation, snapshots_paused=event.snapshots_paused)
            case PipelineReconcileRequested():
                number = max(self.reconcile_number, *(each.number for each in event.reconciles.values()))
                return structs.replace(
                    self, generation=event.generation, reconciles=event.reconciles, reconcile_number=number
                )
            case PipelineRemovalRequested():
                return structs.replace(self, generation=event.generation, run=RunState.REMOVED)
            case PipelineDeleted():
                return structs.replace(
                    self,
                    generation=event.generation,
                    spec=None,
                    run=RunState.RUNNING,
                    resyncs={},
                    reconciles={},
                    backfills={},
                    snapshots_paused=[],
                )
            case _:
                return self

    def _next(
        self,
        event_type: type[PipelinePaused]
        | type[PipelineResumed]
        | type[PipelineRemovalRequested]
        | type[PipelineDeleted],
        context: Context,
    ) -> list[DomainEvent]:
        return [self.event(event_type, context, generation=self.generation + 1)]
