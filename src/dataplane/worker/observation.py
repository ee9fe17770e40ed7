"""What a worker observes of itself: the phase and its reason, positions, totals and gauges, as one status.

The runtime and its sessions write it, the service turns it into `WorkerStatus` lines. `changed` is called at each
change of something that people wait for (phase, generation, code, schemas), not for numbers.
"""

import os
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

from msgspec import structs

from contracts.backfilling import COPIES_TOLD_MAX
from contracts.codes import Code
from contracts.v2 import Phase, PipelineDocument
from dataplane.batch import START, ChangeSet, TableSchema
from dataplane.checkpoint import Checkpoint, Progress
from dataplane.failures import Failure
from dataplane.sinks.port import SinkGauges
from dataplane.sources.port import SnapshotProgress, SourceGauges
from dataplane.worker.protocol import CopyLine, Half, SchemaLine, WorkerStatus, WorkerTelemetry

LATENCY_BOUNDS_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


_NOTHING_TO_COPY = SourceGauges()


class _Standing(NamedTuple):
    """A code that goes with rows that flow, and where."""

    code: Code | None = None
    table: str | None = None
    column: str | None = None


class Observation:
    """The mutable state behind a worker's status. `wall` gives seconds since 1970."""

    def __init__(self, wall: Callable[[], float], changed: Callable[[], None]) -> None:
        self._wall = wall
        self._changed = changed
        self._identity: tuple[PipelineDocument, Half] | None = None
        self._phase = Phase.PENDING
        self._since = wall()
        self._failure: Failure | None = None
        self._position = START
        self._rows = self._bytes = self._transactions = self._errors = 0
        self._latency = self._latency_sum = 0.0
        self._latency_counts = [0] * (len(LATENCY_BOUNDS_SECONDS) + 1)
        self._error_counts: Counter[str] = Counter()
        self._newest_commit_time = 0
        self._snapshot_end: int | None = None
        """The number of the chunk with which the copies end."""
        self.gauges_of: Callable[[], SourceGauges] = SourceGauges
        self.sink_gauges_of: Callable[[], SinkGauges] = SinkGauges
        self._letters_before = 0
        self._counted: Callable[[], SourceGauges] | None = None
        """The gauges of a session that has ended."""
        self._undecodable_before = 0
        self.buffer_bytes = 0
        self.queue_bytes: Callable[[], int] = lambda: 0
        self.oldest_commit_time: Callable[[], int] = lambda: 0
        """Of what waits in this process, microseconds since 1970; 0 when nothing waits."""
        self._schemas: list[SchemaLine] = []
        self._seen: Sequence[TableSchema] = ()

    @property
    def phase(self) -> Phase:
        """Where the pipeline stands."""
        return self._phase

    def acts_on(self, document: PipelineDocument, half: Half) -> None:
        """From now on the status is that of this document's generation."""
        self._identity = (document, half)
        self._changed()

    def enter(self, phase: Phase, failure: Failure | None = None) -> None:
        """The pipeline stands here now; `failure` says why, if there is a reason."""
        if phase is not self._phase:
            self._since = self._wall()
        same_reason = failure is self._failure or (
            failure is not None and self._failure is not None and failure.code is self._failure.code
        )
        silent = phase is self._phase and same_reason
        self._phase, self._failure = phase, failure
        if not silent:
            self._changed()

    def failed(self, code: Code) -> None:
        """Count one failure."""
        self._errors += 1
        self._error_counts[code.value] += 1

    def opened(self, checkpoint: Checkpoint | None, gauges: SourceGauges = _NOTHING_TO_COPY) -> None:
        """A session stands on this checkpoint: it copies tables, or it streams. `gauges` are those of its source."""
        self._position = checkpoint.position if checkpoint is not None else START
        self._snapshot_end = None
        copying = gauges.tables_copied < gauges.tables_total
        done = checkpoint is not None and checkpoint.snapshot_done and not checkpoint.unsettled and not copying
        self.enter(Phase.STREAMING if done else Phase.SNAPSHOTTING)

    def session_ended(self) -> None:
        """Nothing waits in this process any more; what the session's source counted is kept."""
        self._undecodable_before = self._undecodable_values(self.gauges_of())
        self._counted = self.gauges_of
        self.queue_bytes = self.oldest_commit_time = lambda: 0

    def sink_opened(self, gauges_of: Callable[[], SinkGauges]) -> None:
        """A session's sink is open, and this is what it shows. What earlier ones have counted stays counted."""
        self._letters_before += self.sink_gauges_of().dead_letters_total
        self.sink_gauges_of = gauges_of

    def letters_changed(self) -> None:
        """There are dead letters now, or none any more."""
        self._changed()

    def sees(self, change: ChangeSet) -> None:
        """A set goes to the destination; with its end the copies may end."""
        if change.snapshot_ends:
            self._snapshot_end = change.chunk.number if change.chunk is not None else 0

    def put(self, changes: Sequence[ChangeSet]) -> None:
        """These sets went into the buffer, on their way to the destination."""
        for change in changes:
            self._rows += change.row_count
            self._bytes += change.byte_size
            self._transactions += change.transactions

    def delivered(self, changes: Sequence[ChangeSet]) -> None:
        """The destination took these sets; those that end a transaction made it visible."""
        self.put(changes)
        now = self._wall()
        for change in changes:
            if change.ends and change.snapshot_of is None and change.commit_time:
                self._count_latency(now - change.commit_time / 1e6, max(change.transactions, 1))

    def progressed(self, progress: Progress) -> None:
        """This much is durable at the destination."""
        self._position = max(self._position, progress.position)
        self._newest_commit_time = max(self._newest_commit_time, progress.commit_time)
        ended = self._snapshot_end is not None and progress.chunk >= self._snapshot_end
        if ended and self._phase is Phase.SNAPSHOTTING:
            self.enter(Phase.STREAMING)

    def schemas_are(self, schemas: Sequence[TableSchema]) -> None:
        """These are the captured tables now."""
        if schemas == self._seen:
            return
        self._seen = schemas
        self._schemas = [
            SchemaLine(
                table=schema.table,
                columns=[(column.name, column.type, column.key, column.nullable) for column in schema.columns],
            )
            for schema in schemas
        ]
        self._changed()

    def status(self) -> WorkerStatus:
        """Return everything as one value.

        Raises:
            AssertionError: nobody has said which document this is about.
        """
        assert self._identity is not None
        document, half = self._identity
        failure, standing = self._failure, self._standing()
        return WorkerStatus(
            pipeline=document.name,
            half=half,
            pid=os.getpid(),
            epoch=document.epoch,
            generation=document.generation,
            restarts=document.restarts,
            phase=self._phase,
            since_seconds=self._since,
            code=failure.code if failure is not None else standing.code,
            sql_state=failure.sql_state if failure is not None else None,
            table=failure.table if failure is not None else standing.table,
            column=failure.column if failure is not None else standing.column,
            position_lsn=self._position.lsn,
            position_ordinal=self._position.ordinal,
            telemetry=self._telemetry(),
            schemas=self._schemas,
            error_counts=dict(self._error_counts),
        )

    def _standing(self) -> _Standing:
        """Return what people should know of a pipeline whose rows flow: the worst comes first."""
        if self._phase not in (Phase.STREAMING, Phase.SNAPSHOTTING):
            return _Standing()
        copy = self.gauges_of().standing
        of_copy = _Standing() if copy is None else _Standing(copy.code, copy.table, copy.column)
        if of_copy.code is not Code.BACKFILL_REFUSED and self.sink_gauges_of().dead_letters:
            return _Standing(Code.DEAD_LETTERS)
        return of_copy

    def _telemetry(self) -> WorkerTelemetry:
        gauges, sink = self.gauges_of(), self.sink_gauges_of()
        snapshot = gauges.snapshot or SnapshotProgress()
        return WorkerTelemetry(
            rows_total=self._rows,
            bytes_total=self._bytes,
            transactions_total=self._transactions,
            errors_total=self._errors,
            lag_bytes=gauges.lag_bytes,
            lag_seconds=self._lag_seconds(),
            latency_seconds=self._latency,
            latency_buckets=self._buckets(),
            latency_seconds_sum=self._latency_sum,
            queue_bytes=self.queue_bytes() + gauges.queue_bytes,
            buffer_bytes=self.buffer_bytes,
            slot_retained_bytes=gauges.slot_retained_bytes,
            undecodable_values_total=self._undecodable_values(gauges),
            slot=gauges.slot,
            idle=gauges.idle,
            tables_total=gauges.tables_total,
            tables_copied=gauges.tables_copied,
            snapshot_rows=snapshot.rows,
            snapshot_rows_estimated=snapshot.rows_estimated,
            snapshot_bytes=snapshot.bytes,
            snapshot_seconds_left=snapshot.seconds_left,
            copies=[CopyLine(**structs.asdict(table)) for table in snapshot.tables[:COPIES_TOLD_MAX]],
            dead_letters=sink.dead_letters,
            dead_letters_total=self._letters_before + sink.dead_letters_total,
            columns_ignored=sink.columns_ignored,
        )

    def _undecodable_values(self, gauges: SourceGauges) -> int:
        return self._undecodable_before + (0 if self.gauges_of is self._counted else gauges.undecodable_values)

    def _lag_seconds(self) -> float:
        waiting_since = self.oldest_commit_time()
        if not waiting_since and not self.gauges_of().idle:
            waiting_since = self._newest_commit_time
        return max(0.0, self._wall() - waiting_since / 1e6) if waiting_since else 0.0

    def _count_latency(self, seconds: float, transactions: int) -> None:
        # The two servers' clocks may differ; a negative latency would spoil every sum.
        self._latency = latency = max(0.0, seconds)
        self._latency_sum += latency * transactions
        place = next((index for index, bound in enumerate(LATENCY_BOUNDS_SECONDS) if latency <= bound), -1)
        self._latency_counts[place] += transactions

    def _buckets(self) -> dict[str, int]:
        counts: dict[str, int] = {}
        total = 0
        for name, count in zip(
            (*(str(bound) for bound in LATENCY_BOUNDS_SECONDS), "+Inf"), self._latency_counts, strict=True
        ):
            total += count
            counts[name] = total
        return counts
