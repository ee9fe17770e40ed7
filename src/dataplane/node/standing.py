"""Whether a pipeline that says that it streams really does, and whether it still has a slot: judged beside its workers.

In flow statuses, numbers and the time; out flow statuses that tell the truth. Pure but for what `Progress` remembers; the
agent asks before it says anything to anybody.

A worker that is connected and hangs (a lock at the destination, a standby that the source waits for, a frozen server
process) looks alive: its heartbeat comes, its phase is streaming. So progress is looked at: positions, rows, and what was
confirmed. Nothing of these has moved for `STALLED_SECONDS` although there is a backlog: then it is not green.
"""

from collections.abc import Mapping, Sequence

from msgspec import structs

from contracts.codes import Code
from contracts.v2 import Phase, PipelineStatus
from dataplane.worker.protocol import WorkerStatus

STALLED_SECONDS = 60.0
BACKLOG_BYTES_MIN = 1 << 20
"""A smaller lag of an idle source is what its server writes for itself, or has not told yet."""


class Progress:
    """Remembers since when each pipeline has not moved. `now` is on one monotonic clock."""

    def __init__(self) -> None:
        self._marks: dict[str, tuple[tuple[object, ...], float]] = {}

    def stalled(self, workers: Mapping[str, Sequence[WorkerStatus]], now: float) -> frozenset[str]:
        """Return the pipelines that stream, have a backlog, and have not moved for too long."""
        marks: dict[str, tuple[tuple[object, ...], float]] = {}
        for name, statuses in workers.items():
            if not statuses or any(each.phase is not Phase.STREAMING for each in statuses) or not has_backlog(statuses):
                continue
            mark = mark_of(statuses)
            before = self._marks.get(name)
            marks[name] = before if before is not None and before[0] == mark else (mark, now)
        self._marks = marks
        return frozenset(name for name, (_, since) in marks.items() if now - since >= STALLED_SECONDS)


def has_backlog(statuses: Sequence[WorkerStatus]) -> bool:
    """Say whether something waits: received and not durable, or written at the source and not read."""
    return any(
        not each.telemetry.idle or each.telemetry.queue_bytes > 0 or each.telemetry.lag_bytes >= BACKLOG_BYTES_MIN
        for each in statuses
    )


def mark_of(statuses: Sequence[WorkerStatus]) -> tuple[object, ...]:
    """Return all that moves with a pipeline's work; a large transaction moves its rows before its position."""
    return tuple(
        (
            each.pid,
            each.position_lsn,
            each.position_ordinal,
            each.telemetry.rows_total,
            each.telemetry.bytes_total,
            each.telemetry.slot.log_end - each.telemetry.slot.unconfirmed_bytes if each.telemetry.slot else 0,
        )
        for each in statuses
    )


def judged(status: PipelineStatus, *, gone: Code | None, stalled: bool) -> PipelineStatus:
    """Return the status as it is when the pipeline's slot is gone (`gone` says why), or when it does not move."""
    if gone is not None and status.phase not in (Phase.GAP, Phase.PENDING, Phase.REMOVED):
        return structs.replace(status, phase=Phase.GAP, code=gone, sql_state=None, table=None, column=None)
    if stalled and status.phase is Phase.STREAMING and status.code is None:
        return structs.replace(status, code=Code.NO_PROGRESS)
    return status
