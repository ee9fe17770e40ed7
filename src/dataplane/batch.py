"""What flows through a worker: changes of one table as Arrow columns, grouped into whole or partial transactions.

A source makes `ChangeSet`s, transforms map their batches, a buffer carries them, a sink applies them. Nothing handles
rows one by one on this way. Values are Arrow strings in the source's own text form (PostgreSQL's text output with the
session settings of `sources`), so no type can lose anything on the way; `Column.type` says how to read them.

Order: the items of a set are applied one after the other, and sets in the order in which they were made. Within one
batch rows stand in commit order, and every key's changes in their own order. Rows of different tables of one
transaction may stand in any order: a sink makes them visible together.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from msgspec import Struct

from contracts.backfilling import Condition


class Op(IntEnum):
    """What happened to a row. A row of a snapshot is an INSERT."""

    INSERT = 0
    UPDATE = 1
    DELETE = 2


class Position(NamedTuple):
    """The place of a row in the source's order: its transaction's commit LSN and its number within it, from 0.

    Never an LSN alone: many rows share one. Positions compare as tuples. Rows of a table's copy all have the position of
    the last streamed row before them: they stand in the stream there, and move nobody's position.
    """

    lsn: int
    ordinal: int


START = Position(0, 0)
"""Before every row."""


class BufferMark(NamedTuple):
    """A place in a buffer that is data (`confirm: buffer`): which buffer, in hex, and the number of a message in it."""

    incarnation: str
    number: int


class Column(NamedTuple):
    """A column as the source describes it.

    `type` is the source's full type text (`numeric(10,2)`, `character varying(20)`, `integer[]`); `type_oid` its number.
    `missing` is the value, as text, that rows have which were there before the column was added: the source sends
    nothing for them. None stands for NULL.
    """

    name: str
    type: str
    type_oid: int
    key: bool
    nullable: bool
    missing: str | None = None


@dataclass(frozen=True, slots=True)
class TableSchema:
    """A table's shape at one moment. Two batches with different schemas of one table never stand in one batch."""

    schema: str
    name: str
    columns: tuple[Column, ...]

    @property
    def table(self) -> str:
        """`schema.table`."""
        return f"{self.schema}.{self.name}"

    @property
    def key(self) -> tuple[str, ...]:
        """The names of the key columns, in column order."""
        return tuple(column.name for column in self.columns if column.key)


Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class ChangeBatch:
    """Changes of one table, all arrays of equal length, rows in commit order.

    `rows` has one string column for each column of `table`, in order: the new values. For a DELETE the key columns hold
    the deleted key and the others are null.
    `ops` (uint8, `Op`), `commit_lsns` (uint64), `ordinals` (uint32) and `commit_times` (int64, microseconds since 1970,
    UTC) say what, where and when.
    `old_keys` has one string column for each key column: the key before an UPDATE that changed it; rows for which
    `key_changed` is false are null. Both are None when no row of the batch changed its key.
    `unchanged` maps a column's index to the rows whose value the source did not send because it did not change (an
    unchanged TOAST value): their value in `rows` is null but means 'leave it', never NULL.
    """

    table: TableSchema
    rows: pa.RecordBatch
    ops: npt.NDArray[np.uint8]
    commit_lsns: npt.NDArray[np.uint64]
    ordinals: npt.NDArray[np.uint32]
    commit_times: npt.NDArray[np.int64]
    old_keys: pa.RecordBatch | None = None
    key_changed: Flags | None = None
    unchanged: Mapping[int, Flags] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ops)

    @property
    def byte_size(self) -> int:
        """The memory of the row values, in bytes."""
        old = self.old_keys.nbytes if self.old_keys is not None else 0
        return int(self.rows.nbytes) + int(old) + 21 * len(self)


class CopiedBatch(ChangeBatch):
    """Rows of a copy that are still as the source wrote them: `text` is COPY's text format, in the columns of `table`.

    A sink that reads the same format takes it as it is, which spares both ends of the worker most of their work; for
    everybody else `rows` are made of it when they are first asked for. `text` is valid UTF-8 and has the right number of
    lines and fields. None in what `replace` made of such a batch: its rows are others.
    """

    __slots__ = ("_made", "_parse", "text")

    text: bytes | None
    _made: pa.RecordBatch | None
    _parse: Callable[[bytes], pa.RecordBatch] | None

    def __init__(
        self,
        table: TableSchema,
        rows: pa.RecordBatch | None,
        ops: npt.NDArray[np.uint8],
        commit_lsns: npt.NDArray[np.uint64],
        ordinals: npt.NDArray[np.uint32],
        commit_times: npt.NDArray[np.int64],
        old_keys: pa.RecordBatch | None = None,
        key_changed: Flags | None = None,
        unchanged: Mapping[int, Flags] | None = None,
        *,
        text: bytes | None = None,
        parse: Callable[[bytes], pa.RecordBatch] | None = None,
    ) -> None:
        """Hold `rows`, or `text` and what parses it."""
        values = (table, ops, commit_lsns, ordinals, commit_times, old_keys, key_changed, unchanged or {})
        names = ("table", "ops", "commit_lsns", "ordinals", "commit_times", "old_keys", "key_changed", "unchanged")
        for name, value in (*zip(names, values, strict=True), ("text", text), ("_parse", parse), ("_made", rows)):
            object.__setattr__(self, name, value)

    @property
    def rows(self) -> pa.RecordBatch:
        """As in every batch."""
        if self._made is None:
            assert self.text is not None
            assert self._parse is not None
            object.__setattr__(self, "_made", self._parse(self.text))
        return self._made

    @property
    def byte_size(self) -> int:
        """The memory of the row values, in bytes."""
        return len(self.text) + 21 * len(self) if self.text is not None else super().byte_size


Key = tuple[str, ...]
"""The values of a table's key columns, in column order, as text."""


class KeyRange(Struct, frozen=True, array_like=True):
    """The rows whose keys come after `after` and not after `upto`, by the order of the columns' types. None is an open end."""

    after: Key | None
    upto: Key | None


@dataclass(frozen=True, slots=True)
class Truncate:
    """A table was emptied. It is a barrier: what stands before it in the set is applied before it.

    With `for_snapshot` the rows that follow begin the table's copy: the sink makes the table if it is missing, and
    refuses one with rows that this pipeline never wrote to. With `only` no other rows go than those in the range, and of
    them, with `where`, no others than those that match all of it. The rows that follow are all that the source has there.
    """

    table: TableSchema
    position: Position
    for_snapshot: bool = False
    only: KeyRange | None = None
    where: tuple[Condition, ...] = ()
    """On columns of the key, and only together with `only`."""


class Chunk(Struct, frozen=True, kw_only=True):
    """Which part of a table's copy a transaction is. Every set of the transaction carries it.

    A copy comes in chunks, each a transaction that stands at one place of the stream and was read at a later moment:
    what the stream brings until then is replayed over it. So the sink takes rows of the table as they come (an INSERT may
    find its row, an UPDATE or DELETE may find none) from the first chunk to the set with `settled`, which has no rows and
    comes when the stream has passed the last chunk's moment.
    """

    number: int
    """Counts the transactions of this kind in the source's session, from 1."""
    copy: int
    """Which copy of the table: a new one has a higher number."""
    index: int
    """The chunk's number within its copy, from 0. A chunk that is durable and comes again is dropped by it."""
    key: list[str]
    """Names and types of the key columns, so that a cursor is not used after the key was changed."""
    upto: Key | None
    """The last key up to which the table is copied now. None: to its end."""
    through: int
    """Where the source's log ended at the chunk's moment."""
    read: bool
    """No chunk comes after this one."""
    settled: bool = False
    rows: int = 0
    bytes: int = 0
    """The chunk's rows and their size, right in its last set."""
    moment: str | None = None
    """Of a copy's first chunk: the source's snapshot, which says what of the stream every chunk has already."""
    backfill: int = 0
    """The table's number in the pipeline's `backfills` that the copy reaches. 0 when nobody asked."""
    part: bool = False
    """The copy is of some rows of a table that was copied before; all others stay as they are."""
    over: bool = False
    """Nothing was emptied for its rows: the destination may have them already."""


@dataclass(frozen=True, slots=True)
class ChangeSet:
    """A run of changes: one or more whole transactions, or a part of a large one.

    A sink opens its own transaction at a set with `begins`, and commits, rows and position together, at one with
    `ends`. Sets in between belong to one large transaction. A chunk of a table's copy is one transaction.

    `first` and `last` are the positions of the first and last row (or truncate). `commit_end_lsn` is where the last
    whole transaction ends: what the source may be told once this set is durable (0 while the transaction is open).
    `commit_time` is that transaction's commit time, in microseconds since 1970.
    """

    items: tuple[ChangeBatch | Truncate, ...]
    first: Position
    last: Position
    begins: bool
    ends: bool
    commit_end_lsn: int
    commit_time: int
    transactions: int
    snapshot_of: str | None = None
    """The table (`schema.table`) whose copy this is a part of; None for the stream."""
    snapshot_ends: bool = False
    """With this set the copy of the last table ends: from here on all tables are as at the source."""
    resync: int = 0
    """Of a copy: the table's counter in the pipeline's `resyncs` that it reaches. 0 when nobody asked."""
    chunk: Chunk | None = None
    """Of a copy: which part of it. None: the whole table, at one moment of the stream."""
    mark: BufferMark | None = None
    """Of a set with `ends` from a buffer with `confirm: buffer`: where it ends there. It becomes durable with the rows."""

    @property
    def row_count(self) -> int:
        """How many rows the set has."""
        return sum(len(item) for item in self.items if isinstance(item, ChangeBatch))

    @property
    def byte_size(self) -> int:
        """The memory of the set's values, in bytes."""
        return sum(item.byte_size for item in self.items if isinstance(item, ChangeBatch))
