"""A placement: one pipeline on one data plane, as its node last reported it. Only transitions become events.

Positions and progress move all the time and are telemetry; they are written down when something else has changed.
"""

from datetime import datetime
from typing import ClassVar

from msgspec import structs

from contracts.codes import Code
from contracts.v2 import Phase, PipelineStatus
from controlplane.domain.aggregate import Aggregate, Context
from controlplane.domain.event import DomainEvent, registered


@registered
class PlacementReported(DomainEvent, frozen=True, kw_only=True):
    """The node says that the pipeline's phase, code, generation, counter or place has changed."""

    KIND: ClassVar[str] = "Placement"

    pipeline: str
    data_plane: str
    node: str
    observed_generation: int
    phase: Phase
    code: Code | None
    sql_state: str | None
    table: str | None
    column: str | None
    position_lsn: int | None
    position_ordinal: int | None
    restarts: int
    since: datetime
    tables_total: int
    tables_copied: int


class Placement(Aggregate, frozen=True, kw_only=True):
    """One pipeline on one data plane. Its name is `<pipeline>@<data plane>`."""

    KIND: ClassVar[str] = "Placement"

    node: str = ""
    observed_generation: int = 0
    phase: Phase | None = None
    code: Code | None = None
    restarts: int = 0
    since: datetime | None = None

    @classmethod
    def of(cls, tenant: str, pipeline: str, data_plane: str) -> "Placement":
        """Return the placement of `pipeline` on `data_plane` as it is before its first event."""
        return cls.new(tenant, f"{pipeline}@{data_plane}")

    def report(self, context: Context, data_plane: str, node: str, status: PipelineStatus) -> list[DomainEvent]:
        """Decide whether what a node reports is a transition; an older generation than the known one is none."""
        known = (self.node, self.observed_generation, self.phase, self.code, self.restarts)
        if known == (node, status.observed_generation, status.phase, status.code, status.restarts):
            return []
        if status.observed_generation < self.observed_generation:
            return []
        late = self.since is not None and status.since < self.since
        if late and status.observed_generation == self.observed_generation and node == self.node:
            return []
        position = status.position
        reported = self.event(
            PlacementReported,
            context,
            pipeline=status.pipeline,
            data_plane=data_plane,
            node=node,
            observed_generation=status.observed_generation,
            phase=status.phase,
            code=status.code,
            sql_state=status.sql_state,
            table=status.table,
            column=status.column,
            position_lsn=position.lsn if position is not None else None,
            position_ordinal=position.ordinal if position is not None else None,
            restarts=status.restarts,
            since=status.since,
            tables_total=status.tables_total,
            tables_copied=status.tables_copied,
        )
        return [reported]

    def after(self, event: DomainEvent) -> "Placement":
        """Return the state that follows `event`."""
        if not isinstance(event, PlacementReported):
            return structs.replace(self, version=event.originator_version)
        return structs.replace(
            self,
            version=event.originator_version,
            node=event.node,
            observed_generation=event.observed_generation,
            phase=event.phase,
            code=event.code,
            restarts=event.restarts,
            since=event.since,
        )
