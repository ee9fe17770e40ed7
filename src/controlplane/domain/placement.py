"""A placement: one pipeline on one data plane, as its node last reported it. Only transitions become events.

How a comparison of a table's two ends began and ended is written down too: an auditor would ask for it.

Positions and progress move all the time and are telemetry; they are written down when something else has changed.
"""

from datetime import datetime
from typing import ClassVar

from msgspec import UNSET, UnsetType, structs

from contracts.codes import Code
from contracts.reconciling import ReconcileState
from contracts.v2 import Phase, PipelineStatus, ReconcileStatus
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
    policy: str | UnsetType = UNSET
    """SHA-256 of the customer's policy file on the node, if it said it."""


@registered
class ReconcileReported(DomainEvent, frozen=True, kw_only=True):
    """The node says that the comparison of a table's two ends began or ended, and what it counted."""

    KIND: ClassVar[str] = "Placement"

    pipeline: str
    data_plane: str
    node: str
    table: str
    number: int
    repair: bool
    state: ReconcileState
    code: Code | None
    sql_state: str | None
    rows_compared: int
    rows_missing: int
    rows_extra: int
    rows_different: int
    rows_unsettled: int
    rows_repaired: int
    seconds: float


class Placement(Aggregate, frozen=True, kw_only=True):
    """One pipeline on one data plane. Its name is `<pipeline>@<data plane>`."""

    KIND: ClassVar[str] = "Placement"

    last: PlacementReported | None = None
    """The last transition, whole."""
    reconciles: dict[str, ReconcileReported] = {}
    """For each table whose two ends were compared, what was said of it last."""

    @property
    def exists(self) -> bool:
        """Say whether a node has reported."""
        return self.last is not None or bool(self.reconciles)

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
            policy=status.policy,
        )
        return [reported]

    def report_reconcile(
        self, context: Context, data_plane: str, node: str, status: ReconcileStatus
    ) -> list[DomainEvent]:
        """Decide whether what a node says of a comparison is new: a higher number, or the end of one that ran."""
        last = self.reconciles.get(status.table)
        if last is not None and (
            (status.number, status.state is not ReconcileState.RUNNING)
            <= (last.number, last.state is not ReconcileState.RUNNING)
        ):
            return []
        return [self.event(ReconcileReported, context, data_plane=data_plane, node=node, **structs.asdict(status))]

    def applied(self, event: DomainEvent) -> "Placement":
        """Return what `event` changes."""
        match event:
            case PlacementReported():
                return structs.replace(self, last=event)
            case ReconcileReported():
                return structs.replace(self, reconciles={**self.reconciles, event.table: event})
            case _:
                return self


def _distinct(report: PlacementReported | PipelineStatus, node: str) -> tuple[object, ...]:
    """Return what makes two reports different enough for an event."""
    return (node, report.observed_generation, report.phase, report.code, report.restarts, report.policy)


def _older(status: PipelineStatus, node: str, last: PlacementReported) -> bool:
    """Say whether a report was overtaken: by a newer generation, or by a later transition on the same node."""
    if status.observed_generation != last.observed_generation:
        return status.observed_generation < last.observed_generation
    return node == last.node and status.since < last.since
