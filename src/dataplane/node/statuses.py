"""One pipeline's status made of what its workers say: pure.

A pipeline runs as one worker or as two halves; people see one pipeline. The worst phase wins, the generation that both
act on is the older one, and each number comes from the half that knows it: what is at the destination from the sink's,
what is still at the source from the source's.
"""

from collections.abc import Sequence
from datetime import UTC, datetime

from msgspec import structs

from contracts.backfilling import CopyProgress
from contracts.names import TABLE_NAME_PATTERN, matches
from contracts.slots import Slot
from contracts.v2 import Phase, PipelineStatus, PipelineTelemetry, Position
from dataplane.worker.protocol import Half, WorkerStatus, WorkerTelemetry

# From the worst to the best.
PHASES = (
    Phase.GAP,
    Phase.DEGRADED,
    Phase.RETRYING,
    Phase.PENDING,
    Phase.SNAPSHOTTING,
    Phase.STREAMING,
    Phase.PAUSED,
    Phase.REMOVED,
)


def halves_of(buffered: bool) -> tuple[Half, ...]:
    """Return the halves that run a pipeline with or without a buffer between them."""
    return (Half.SOURCE, Half.SINK) if buffered else (Half.WHOLE,)


def combine(statuses: Sequence[WorkerStatus]) -> PipelineStatus:
    """Return what the statuses of a pipeline's workers say together; there is at least one."""
    worst = min(statuses, key=lambda each: (PHASES.index(each.phase), -each.since_seconds))
    # A half whose rows flow may still have something to say.
    told = next((each for each in (worst, *statuses) if each.phase is worst.phase and each.code), worst)
    oldest = min(statuses, key=lambda each: (each.epoch, each.generation))
    sink = _of(statuses, Half.SINK)
    position = Position(lsn=sink.position_lsn, ordinal=sink.position_ordinal) if sink.position_lsn else None
    tables = max((each.telemetry for each in statuses), key=lambda each: (each.tables_total, -each.tables_copied))
    return PipelineStatus(
        pipeline=worst.pipeline,
        epoch=oldest.epoch,
        observed_generation=oldest.generation,
        phase=worst.phase,
        since=instant(worst.since_seconds),
        restarts=min(each.restarts for each in statuses),
        code=told.code,
        sql_state=told.sql_state,
        table=told.table,
        column=told.column,
        position=position,
        tables_total=tables.tables_total,
        tables_copied=tables.tables_copied,
    )


def dated(status: PipelineStatus, *, before: PipelineStatus | None, started_at: datetime) -> PipelineStatus:
    """Return `status` with a `since` that never goes back, neither while the agent runs nor when the next one begins.

    The control plane takes what is dated earlier for a report that was overtaken. Workers outlive their agent, so what they
    say of themselves may be older than what an agent has said of them meanwhile. `before` is what was said last.
    """
    if before is not None and _standing(before) == _standing(status):
        return structs.replace(status, since=before.since)
    return structs.replace(status, since=max(status.since, started_at, before.since if before else started_at))


def _standing(status: PipelineStatus) -> tuple[object, ...]:
    return (status.epoch, status.observed_generation, status.phase, status.code, status.restarts)


def measure(pipeline: str, statuses: Sequence[WorkerStatus], slot: Slot | None = None) -> PipelineTelemetry:
    """Return the pipeline's numbers for a heartbeat. One without workers has only a slot."""
    if not statuses:
        return PipelineTelemetry(
            pipeline=pipeline, slot=slot, slot_retained_bytes=slot.retained_bytes if slot is not None else 0
        )
    source, sink = _of(statuses, Half.SOURCE).telemetry, _of(statuses, Half.SINK).telemetry
    return PipelineTelemetry(
        pipeline=pipeline,
        rows_total=sink.rows_total,
        bytes_total=sink.bytes_total,
        transactions_total=sink.transactions_total,
        errors_total=_sum(statuses, "errors_total"),
        lag_bytes=source.lag_bytes,
        lag_seconds=max(0.0, *(each.telemetry.lag_seconds for each in statuses)),
        latency_seconds=max(0.0, sink.latency_seconds),
        buffer_bytes=max(source.buffer_bytes, sink.buffer_bytes),
        slot_retained_bytes=slot.retained_bytes if slot is not None else source.slot_retained_bytes,
        slot=slot,
        dead_letters=sink.dead_letters,
        dead_letters_total=sink.dead_letters_total,
        columns_ignored=sink.columns_ignored,
        undecodable_values_total=source.undecodable_values_total,
        snapshot_rows=source.snapshot_rows,
        snapshot_rows_estimated=source.snapshot_rows_estimated,
        snapshot_bytes=source.snapshot_bytes,
        snapshot_seconds_left=source.snapshot_seconds_left,
        copies=[
            CopyProgress(**structs.asdict(each)) for each in source.copies if matches(TABLE_NAME_PATTERN, each.table)
        ],
    )


def delivery(statuses: Sequence[WorkerStatus]) -> WorkerTelemetry:
    """Return the numbers of the half that writes to the destination."""
    return _of(statuses, Half.SINK).telemetry


def queue_bytes(statuses: Sequence[WorkerStatus]) -> int:
    """Return how much waits in the memory of the pipeline's workers."""
    return _sum(statuses, "queue_bytes")


def instant(seconds: float) -> datetime:
    """Return a time from seconds since 1970."""
    return datetime.fromtimestamp(seconds, UTC)


def _of(statuses: Sequence[WorkerStatus], half: Half) -> WorkerStatus:
    """Return the status of `half`, or of the whole; if neither has spoken, of the other half."""
    return next((each for each in statuses if each.half in (half, Half.WHOLE)), statuses[0])


def _sum(statuses: Sequence[WorkerStatus], field: str) -> int:
    return sum(getattr(each.telemetry, field) for each in statuses)
