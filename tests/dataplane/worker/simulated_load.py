"""What a simulated life writes at its source: transactions over a few keys of two tables, drawn from a seed. Pure.

Rows come, change, leave their value as it is, move to another key and go; some transactions come in many sets, now and
then a table is emptied. In lives with dead letters some values are such that the destination refuses them.
"""

from random import Random

import numpy as np
import pyarrow as pa
from tests.dataplane.buffers.changes import rows_of
from tests.dataplane.worker.origin import LINES, ORDERS, TABLES

from dataplane.batch import ChangeBatch, ChangeSet, Op, Position, TableSchema, Truncate

KEYS = 12
POISON = "poison"


class Load:
    """Draws transactions, one after the other, for tables as those before have left them."""

    def __init__(self, random: Random, *, poison: float) -> None:
        self._random = random
        self._poison = poison
        self._rows: dict[str, dict[str, str | None]] = {table: {} for table in TABLES}
        self._number = 0

    def transaction(self) -> list[ChangeSet]:
        """Draw the next one: one set, or several that belong together."""
        random = self._random
        self._number += 1
        lsn = self._number * 10
        count = random.randint(2, 5) if random.random() < 0.2 else 1
        sets: list[ChangeSet] = []
        ordinal = 0
        for number in range(count):
            items: list[ChangeBatch | Truncate] = []
            first = ordinal
            for table in random.sample([ORDERS, LINES], random.randint(1, 2)):
                if count == 1 and random.random() < 0.02:
                    items.append(Truncate(table, Position(lsn, ordinal)))
                    self._rows[table.table].clear()
                    ordinal += 1
                items.append(self._changes(table, lsn, ordinal))
                ordinal += len(items[-1].ops)
            ends = number == count - 1
            sets.append(
                ChangeSet(
                    items=tuple(items),
                    first=Position(lsn, first),
                    last=Position(lsn, ordinal - 1),
                    begins=number == 0,
                    ends=ends,
                    commit_end_lsn=lsn + 1 if ends else 0,
                    commit_time=lsn * 1000,
                    transactions=int(ends),
                )
            )
        return sets

    def _changes(self, table: TableSchema, lsn: int, ordinal: int) -> ChangeBatch:
        rows, random = self._rows[table.table], self._random
        count = random.randint(1, 4)
        keys, notes, ops, old, kept = [], [], [], [], []
        for key in random.sample(range(KEYS), count):
            there, free = str(key) in rows, [other for other in range(KEYS) if str(other) not in rows]
            drawn = random.random()
            note: str | None = f"note {lsn}" if random.random() >= self._poison else f"{POISON} {lsn}"
            former, stays = None, False
            if there and drawn < 0.25:
                op, note = Op.DELETE, None
                rows.pop(str(key))
            elif there and drawn < 0.4 and free:
                op, former = Op.UPDATE, str(key)
                rows.pop(former)
                key = random.choice(free)
            elif there and drawn < 0.5:
                op, note, stays = Op.UPDATE, None, True
            else:
                op = Op.UPDATE if there else Op.INSERT
            if op is not Op.DELETE and not stays:
                rows[str(key)] = note
            keys.append(key)
            notes.append(note)
            ops.append(op)
            old.append(former)
            kept.append(stays)
        return _batch(table, lsn, ordinal, keys, notes, ops, old, kept)


def _batch(
    table: TableSchema,
    lsn: int,
    ordinal: int,
    keys: list[int],
    notes: list[str | None],
    ops: list[Op],
    old: list[str | None],
    kept: list[bool],
) -> ChangeBatch:
    count = len(keys)
    moved = np.array([each is not None for each in old])
    return ChangeBatch(
        table=table,
        rows=rows_of(keys, notes),
        ops=np.array(ops, dtype=np.uint8),
        commit_lsns=np.full(count, lsn, dtype=np.uint64),
        ordinals=np.arange(ordinal, ordinal + count, dtype=np.uint32),
        commit_times=np.full(count, lsn * 1000, dtype=np.int64),
        old_keys=pa.RecordBatch.from_arrays([pa.array(old, pa.string())], names=["id"]) if moved.any() else None,
        key_changed=moved if moved.any() else None,
        unchanged={1: np.array(kept)} if any(kept) else {},
    )
