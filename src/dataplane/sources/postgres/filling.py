"""Fill in what an update did not send, while its table is being copied: one of a key, and for a part of a table any.

An update that leaves a value stored out of line as it was does not send it: the row at the destination has it. While the
table is being copied that row may not be there yet, and when its key changes it may move to where the copy has been
already, so no chunk would bring it. So the value is asked for, at a moment that has seen the update. A row that is not
there any more at that moment was deleted or moved again by what the stream still brings, so only its old key goes.

Where only a part is copied, the destination may lack a row that no chunk brings, or has not brought: nobody would notice, as
updates may find no row meanwhile. So there every update gets all its values, and makes the row whatever is there.

In flow batches and the values that were found; out flow batches in which none of these rows lacks a value.
Pure; `filler` asks the questions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from dataplane.batch import ChangeBatch, Key, Op

Values = Mapping[Key, Sequence[str | None]]
"""By key, in column order: the values of the columns that were asked for."""


def lacking(batch: ChangeBatch, *, of_part: bool = False) -> npt.NDArray[np.int64]:
    """Return the rows that lack a value: those that change their key, and of a table of which a part is copied all."""
    if not batch.unchanged or (batch.key_changed is None and not of_part):
        return np.empty(0, np.int64)
    lacks = np.zeros(len(batch), np.bool_)
    for flags in batch.unchanged.values():
        lacks |= flags
    return np.flatnonzero(lacks if of_part or batch.key_changed is None else lacks & batch.key_changed)


def new_keys(batch: ChangeBatch, rows: npt.NDArray[np.int64]) -> list[Key]:
    """Return the keys that `rows` have from now on."""
    numbers = [number for number, column in enumerate(batch.table.columns) if column.key]
    taken = pa.array(rows)
    return [
        tuple(str(value) for value in key)
        for key in zip(*(batch.rows.column(number).take(taken).to_pylist() for number in numbers), strict=True)
    ]


def fill(batch: ChangeBatch, rows: npt.NDArray[np.int64], found: Values) -> ChangeBatch:
    """Give `rows` the values of the batch's columns that were found by their new keys, and make the others deletes."""
    keys = new_keys(batch, rows)
    columns = sorted(batch.unchanged)
    gone = [int(row) for row, key in zip(rows, keys, strict=True) if key not in found]
    ops = batch.ops.copy()
    ops[gone] = Op.DELETE
    changed = None if batch.key_changed is None else batch.key_changed.copy()
    old: dict[str, list[str | None]] = {}
    if batch.old_keys is not None:
        old = {name: batch.old_keys.column(name).to_pylist() for name in batch.table.key}
    moved = {row for row in gone if changed is not None and changed[row]}
    if changed is not None:
        changed[gone] = False
    taken: dict[int, list[str | None]] = {}
    for number, column in enumerate(batch.table.columns):
        if not gone and number not in batch.unchanged:
            continue
        values = taken[number] = batch.rows.column(number).to_pylist()
        for row in gone:
            if not column.key:
                values[row] = None
            elif row in moved:
                values[row] = old[column.name][row]
    for row, key in zip(rows, keys, strict=True):
        for place, number in enumerate(columns):
            if key in found and batch.unchanged[number][row]:
                taken[number][int(row)] = found[key][place]
    arrays = [
        pa.array(taken[number], pa.string()) if number in taken else batch.rows.column(number)
        for number in range(batch.rows.num_columns)
    ]
    sent = {number: flags & ~np.isin(np.arange(len(batch)), rows) for number, flags in batch.unchanged.items()}
    return replace(
        batch,
        rows=pa.RecordBatch.from_arrays(arrays, schema=batch.rows.schema),
        ops=ops,
        key_changed=changed,
        unchanged={number: flags for number, flags in sent.items() if flags.any()},
    )
