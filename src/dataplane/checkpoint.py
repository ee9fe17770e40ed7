"""How far a pipeline has come, kept where its rows are: in the destination, written in the same transaction as they.

The checkpoint is also the fence. Its epoch is raised by whoever takes a pipeline over, and every write compares it, so
a worker that was frozen and wakes up cannot write. That depends on neither the leaf nor a clock.

A sink implements `CheckpointStore`. A source that runs in the same process uses the sink itself; one that runs apart
reaches the sink's half through the buffer.
"""

from typing import Protocol

from msgspec import Struct

from dataplane.batch import START, BufferMark, Position


class SourceIdentity(Struct, frozen=True, kw_only=True):
    """What a position belongs to. Positions of another identity mean nothing.

    `slot` carries a random incarnation, so a slot of the same pipeline that was made again has another name.
    """

    system_identifier: str
    timeline: int
    database: str
    slot: str
    publication: str


class Cursor(Struct, frozen=True, kw_only=True):
    """How far the newest copy of a table has come. It holds a key's values, so it stays on the customer's side.

    `copy` and `chunks` say which copy it is and how many of its chunks are durable; `last` is the last key that they
    reach, None when `read`: the end. `through` is where the source's log ended when the newest chunk was read. `settled`
    says that the stream has passed the last chunk's, so the table is as at the source.
    """

    copy: int
    chunks: int
    key: list[str]
    last: list[str] | None
    through: int
    rows: int
    bytes: int
    read: bool
    settled: bool
    resync: int = 0
    moment: str | None = None
    backfill: int = 0
    """The number in `PipelineDocument.backfills` that this copy reaches once it is settled."""
    backfilled: int = 0
    """The number that was reached before this copy began."""
    part: bool = False
    """It copies some rows of a table that was copied before."""


class Checkpoint(Struct, frozen=True, kw_only=True):
    """What is durable at the destination.

    `position` is that of the last row. `confirmed_through` is the highest LSN that the source may ever have been told
    as flushed: it is durable here before it is sent there, so a slot that is beyond it was moved by someone else.
    `tables_copied` are the tables (`schema.table`) whose snapshot is whole; `tables_owned` those that this pipeline
    may empty and fill. `resynced` has the counter of `PipelineDocument.resyncs` that each table's copy reached.
    `cursors` says how far each table's newest copy is; a table that was copied whole in an older release has none.
    """

    epoch: int
    source: SourceIdentity | None
    position: Position
    confirmed_through: int
    snapshot_done: bool
    tables_owned: list[str]
    tables_copied: list[str]
    resynced: dict[str, int] = {}
    cursors: dict[str, Cursor] = {}
    buffer: BufferMark | None = None
    """The last message of a buffer with `confirm: buffer` that is durable here; None if none ever came from one."""
    ahead: Position = START
    """With `consistency: key`, after a crash: the last row that the lane has which is furthest beyond `position`. What
    comes again up to there is applied where it is not there yet. START: no lane is beyond."""

    @property
    def unsettled(self) -> frozenset[str]:
        """The tables whose rows are between two moments of the source."""
        return frozenset(table for table, cursor in self.cursors.items() if not cursor.settled)

    def begun(self, table: str) -> int:
        """Return the counter of `PipelineDocument.resyncs` that a table's copy has reached, or is about to reach."""
        cursor = self.cursors.get(table)
        return max(self.resynced.get(table, 0), cursor.resync if cursor is not None else 0)

    def backfilled(self, table: str) -> int:
        """Return the number of `PipelineDocument.backfills` that a table has reached."""
        cursor = self.cursors.get(table)
        if cursor is None:
            return 0
        return cursor.backfill if cursor.settled else cursor.backfilled


class Progress(Struct, frozen=True, kw_only=True):
    """What became durable with one commit at the destination."""

    position: Position
    confirmed_through: int
    commit_time: int
    """Source's commit time of the newest durable transaction, microseconds since 1970; 0 when there is none."""
    rows: int
    transactions: int
    buffer: BufferMark | None = None
    """Up to where a buffer with `confirm: buffer` may forget."""
    chunk: int = 0
    """The highest `Chunk.number` that the sink has met since it was opened, and that is durable."""


class CheckpointStore(Protocol):
    """The checkpoint of one pipeline. Every write is refused with Code.SINK_FENCED once the epoch was raised."""

    async def load(self) -> Checkpoint | None:
        """Return the checkpoint, or None when this pipeline never wrote one."""
        ...

    async def begin(self, source: SourceIdentity) -> None:
        """Start over with a new source identity: position START, nothing copied. Tables owned stay owned.

        Durable before a slot of that identity is made, so a crash between the two leaves a slot that we know as ours.
        """
        ...

    async def advance(self, confirmed_through: int) -> None:
        """Raise `confirmed_through` while nothing is in flight. Never lowers it."""
        ...

    async def follow(self, source: SourceIdentity, confirmed_through: int) -> None:
        """Go on with the same source under another identity: a standby of it took over, on a new timeline.

        Position and what is copied stay. `confirmed_through` is set, and may go back to where the old timeline ended.
        Durable before a stream of that identity begins.
        """
        ...

    async def forget(self) -> None:
        """Delete the checkpoint: the pipeline was removed, and its slot with it."""
        ...
