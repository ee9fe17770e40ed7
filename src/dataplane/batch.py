"""What flows through a worker: changes of one table as Arrow columns, grouped into whole or partial transactions.

A source makes `ChangeSet`s, transforms map their batches, a buffer carries them, a sink applies them. Nothing handles
rows one by one on this way. Values are Arrow strings in the source's own text form (PostgreSQL's text output with the
session settings of `sources`), so no type can lose anything on the way; `Column.type` says how to read them.

Order: the items of a set are applied one after the other, and sets in the order in which they were made. Within one
batch rows stand in commit order, and every key's changes in their own order. Rows of different tables of one
transaction may stand in any order: a sink makes them visible together.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa


class Op(IntEnum):
    """What happened to a row. A row of a snapshot is an INSERT."""

    INSERT = 0
    UPDATE = 1
    DELETE = 2


class Position(NamedTuple):
    """The place of a row in the source's order: its transaction's commit LSN and its number within it, from 0.

    Never an LSN alone: many rows share one. Positions compare as tuples. A snapshot's rows have the LSN just before
    the snapshot's consistent point, so every streamed row comes after them.
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


@dataclass(frozen=True, slots=True)
class Truncate:
    """A table was emptied. It is a barrier: what stands before it in the set is applied before it.

    With `for_snapshot` the rows that follow are the table's snapshot: the sink makes the table if it is missing, and
    refuses one with rows that this pipeline never wrote to.
    """

    table: TableSchema
    position: Position
    for_snapshot: bool = False


@dataclass(frozen=True, slots=True)
class ChangeSet:
    """A run of changes: one or more whole transactions, or a part of a large one.

    A sink opens its own transaction at a set with `begins`, and commits, rows and position together, at one with
    `ends`. Sets in between belong to one large transaction. A table's snapshot counts as one transaction.

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
    """The table (`schema.table`) whose snapshot this is a part of; None for the stream."""
    snapshot_ends: bool = False
    """With this set the snapshot of the last table ends: from here on the stream follows."""
    resync: int = 0
    """Of a snapshot: the table's counter in the pipeline's `resyncs` that this copy reaches. 0 when nobody asked."""
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
