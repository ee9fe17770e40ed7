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

    last: PlacementReported | None = None
    """The last transition, whole."""

    @property
    def exists(self) -> bool:
        """Say whether a node has reported."""
        return self.last is not None

    @classmethod
    def of(cls, tenant: str, pipeline: str, data_plane: str) -> "Placement":
        """Return the placement of `pipeline` on `data_plane` as it is before its first event."""
        return cls.new(tenant, f"{pipeline}@{data_plane}")

    def report(self, context: Context, data_plane: str, node: str, status: PipelineStatus) -> list[DomainEvent]:
        """Decide whether what a node reports is a transition; an older generation than the known one is none."""
        last = self.last
        if last is not None and (_distinct(last, last.node) == _distinct(status, node) or _older(status, node, last)):
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

    def applied(self, event: DomainEvent) -> "Placement":
        """Return what `event` changes."""
        if not isinstance(event, PlacementReported):
            return self
        return structs.replace(self, last=event)


def _distinct(report: PlacementReported | PipelineStatus, node: str) -> tuple[object, ...]:
    """Return what makes two reports different enough for an event."""
    return (node, report.observed_generation, report.phase, report.code, report.restarts)


def _older(status: PipelineStatus, node: str, last: PlacementReported) -> bool:
    """Say whether a report was overtaken: by a newer generation, or by a later transition on the same node."""
    if status.observed_generation != last.observed_generation:
        return status.observed_generation < last.observed_generation
    return node == last.node and status.since < last.since
