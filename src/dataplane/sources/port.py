"""The law of a source.

- `open` reads the checkpoint, decides between starting over, resuming and GAP, and never starts silently at 'now'.
- `changes` gives every committed change after the checkpoint's position, in commit order, whole transactions, each at
  least once; a set may repeat rows at or before the checkpoint, which the sink drops by position.
- On a fresh start each table is copied, in chunks that stand between transactions of the stream (`Chunk`): the first one
  begins with a `Truncate` (`for_snapshot`), and nothing of the table comes before it. What comes after may be in the chunk
  already. A set that is `settled` says that table and stream are one. A session that was killed is followed by one that
  goes on behind the last durable chunk.
- A table whose counter in `PipelineDocument.resyncs` is beyond the one that the checkpoint reached is copied again in the
  same way, while the others go on; its sets carry the counter. When that is so for all of them it starts over, and no
  gap can hold it back.
- So is a part of a table: rows that match the conditions of `PipelineDocument.backfills` whose number is beyond the one
  that the checkpoint reached. All other rows, and the stream's, go on as if nothing had been asked.
- Of a table whose copying is paused no chunk begins; what the stream brings for it goes on to rows that the destination has.
- `confirm` is only ever called with what is durable at the destination. The source is never told more.
- Memory is bounded by bytes, whatever the consumer does; the connection is kept alive meanwhile.

One suite holds every source to this (`tests/dataplane/laws/`).
"""

from collections.abc import AsyncIterator
from typing import Protocol

from msgspec import Struct

from contracts.codes import Code
from dataplane.batch import ChangeSet, TableSchema
from dataplane.checkpoint import CheckpointStore
from dataplane.slot_measure import SlotMeasure


class SnapshotProgress(Struct, frozen=True, kw_only=True):
    """How far copies of tables are: rows and bytes read so far, about how many rows there are, and the time left.

    `seconds_left` is None as long as nothing can be said of it.
    """

    rows: int = 0
    rows_estimated: int = 0
    bytes: int = 0
    seconds_left: float | None = None
    tables: tuple["TableProgress", ...] = ()
    """Each of them, in the order in which they are copied."""


class TableProgress(Struct, frozen=True, kw_only=True):
    """How far the copy of one table is. `seconds_left` is until it is read, after those that come before it.

    `part` says that only some of its rows are copied, `paused` that somebody has to say that it goes on.
    """

    table: str
    rows: int = 0
    rows_estimated: int = 0
    bytes: int = 0
    seconds_left: float | None = None
    part: bool = False
    paused: bool = False


class CopyStanding(Struct, frozen=True, kw_only=True):
    """What people should know of a copy that does not go on, while rows flow."""

    code: Code
    table: str
    column: str | None = None


class SourceGauges(Struct, kw_only=True):
    """What a source measures of itself; the runtime reads it about once a second."""

    lag_bytes: int = 0
    """From what the destination holds to the end of the source's log."""
    queue_bytes: int = 0
    slot_retained_bytes: int = 0
    undecodable_values: int = 0
    """Values since `open` that were no valid text; they travel with their odd bytes written as escapes."""
    slot: SlotMeasure | None = None
    """How the source's slot stood when it was measured last."""
    tables_total: int = 0
    tables_copied: int = 0
    snapshot: SnapshotProgress | None = None
    """How far the copies are that the session makes; None when it makes none."""
    standing: CopyStanding | None = None
    """The copy that needs a person, if there is one."""
    idle: bool = True
    """Nothing that was received waits for the destination."""


class Source(Protocol):
    """Where changes come from. The constructor does no I/O."""

    @property
    def gauges(self) -> SourceGauges:
        """Return what the source measures of itself, as of now."""
        ...

    async def open(self, checkpoints: CheckpointStore) -> None:
        """Connect, check and get ready to give changes.

        Raises:
            Gap: rows may be missing between the checkpoint and what the source can still give.
            Permanent: something that a person must mend (rights, settings, a missing table).
            RetryLater: the source does not answer, or its slot is held by another connection.
        """
        ...

    def changes(self) -> AsyncIterator[ChangeSet]:
        """Give the changes, for ever, until `close`.

        Raises:
            RetryLater: the connection was lost; a new session resumes from the checkpoint.
            Permanent: the source sent what cannot be decoded.
        """
        ...

    def confirm(self, lsn: int, chunk: int = 0) -> None:
        """Tell the source that everything up to `lsn` (a commit's end) is durable at the destination.

        So is what was given of copies up to the transaction with the number `chunk`.
        """
        ...

    def schemas(self) -> tuple[TableSchema, ...]:
        """Return the captured tables as they are known now."""
        ...

    async def remove(self, checkpoints: CheckpointStore) -> None:
        """Drop what the source holds for this pipeline: slot and publication. Right after `open` would be called."""
        ...

    async def close(self) -> None:
        """Let go of every connection. May be called at any time, and twice."""
        ...
