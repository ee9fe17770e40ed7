"""A dead letter: one change that a destination refused, or that waits behind such a one, with all that applies it again.

In flow a batch's row and the cause; out flows a value that a sink writes down in the transaction of the set, and that a
replay turns into a batch again. Values are the source's text, as in a batch. Letters hold data: they stay where the
pipeline's rows are, on the customer's side, and nothing but their number goes up. Pure.
"""

import numpy as np
import pyarrow as pa
from msgspec import Struct

from contracts.codes import Code
from dataplane.batch import ChangeBatch, Op, Position, TableSchema

MESSAGE_CHARACTERS_MAX = 2_000
"""So much of the server's words is kept."""


class Cause(Struct, frozen=True, kw_only=True):
    """Why a change is a dead letter. `message` is the destination's own word and may quote the row."""

    code: Code
    sql_state: str | None = None
    column: str | None = None
    message: str = ""


BEHIND = Cause(code=Code.BEHIND_DEAD_LETTER, message="an earlier change of this key is a dead letter")


class DeadLetter(Struct, frozen=True, kw_only=True):
    """One change. `row` maps every column to its text, or None for NULL; `unchanged` names values that did not travel.

    `old_key` maps the key's columns to the key before the change, where it changed. `commit_time` is in microseconds since
    1970. `keys` are the digests of the keys that the change touches, its own first.
    """

    table: TableSchema
    op: Op
    row: dict[str, str | None]
    old_key: dict[str, str | None] | None
    unchanged: tuple[str, ...]
    position: Position
    commit_time: int
    keys: tuple[bytes, ...]
    cause: Cause

    @property
    def key(self) -> dict[str, str | None]:
        """The change's key, by column."""
        return {name: self.row[name] for name in self.table.key}


def letter(batch: ChangeBatch, row: int, keys: tuple[bytes, ...], cause: Cause) -> DeadLetter:
    """Return one row of a batch as a dead letter."""
    old_key = None
    if batch.old_keys is not None and batch.key_changed is not None and batch.key_changed[row]:
        old_key = dict(zip(batch.table.key, (column[row].as_py() for column in batch.old_keys.columns), strict=True))
    columns = batch.table.columns
    return DeadLetter(
        table=batch.table,
        op=Op(int(batch.ops[row])),
        row={column.name: batch.rows.column(at)[row].as_py() for at, column in enumerate(columns)},
        old_key=old_key,
        unchanged=tuple(columns[at].name for at, flags in batch.unchanged.items() if flags[row]),
        position=Position(int(batch.commit_lsns[row]), int(batch.ordinals[row])),
        commit_time=int(batch.commit_times[row]),
        keys=keys,
        cause=cause,
    )


def batch_of(each: DeadLetter) -> ChangeBatch:
    """Return the change as a batch of one row."""
    columns = each.table.columns
    names = [column.name for column in columns]
    old = each.old_key
    return ChangeBatch(
        table=each.table,
        rows=pa.record_batch([pa.array([each.row.get(name)], pa.string()) for name in names], names=names),
        ops=np.array([each.op], dtype=np.uint8),
        commit_lsns=np.array([each.position.lsn], dtype=np.uint64),
        ordinals=np.array([each.position.ordinal], dtype=np.uint32),
        commit_times=np.array([each.commit_time], dtype=np.int64),
        old_keys=None
        if old is None
        else pa.record_batch([pa.array([old.get(n)], pa.string()) for n in each.table.key], names=list(each.table.key)),
        key_changed=None if old is None else np.array([True]),
        unchanged={at: np.array([True]) for at, name in enumerate(names) if name in each.unchanged},
    )
