"""Fill in what an update of a key did not send, while its table is being copied.

An update that leaves a value stored out of line as it was does not send it: the row at the destination has it. While the
table is being copied that row may not be there yet, and when its key changes it may move to where the copy has been
already, so no chunk would bring it. So the value is asked for, at a moment that has seen the update. A row that is not
there any more at that moment was deleted or moved again by what the stream still brings, so only its old key goes.

In flow batches and the values that were found; out flow batches in which no row both changes its key and lacks a value.
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


def lacking(batch: ChangeBatch) -> npt.NDArray[np.int64]:
    """Return the rows that change their key and lack a value."""
    if batch.key_changed is None or not batch.unchanged:
        return np.empty(0, np.int64)
    lacks = np.zeros(len(batch), np.bool_)
    for flags in batch.unchanged.values():
        lacks |= flags
    return np.flatnonzero(lacks & batch.key_changed)


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
    assert batch.old_keys is not None
    assert batch.key_changed is not None
    keys = new_keys(batch, rows)
    columns = sorted(batch.unchanged)
    gone = [int(row) for row, key in zip(rows, keys, strict=True) if key not in found]
    ops, changed = batch.ops.copy(), batch.key_changed.copy()
    ops[gone] = Op.DELETE
    changed[gone] = False
    old = {name: batch.old_keys.column(name).to_pylist() for name in batch.table.key}
    taken: dict[int, list[str | None]] = {}
    for number, column in enumerate(batch.table.columns):
        if not gone and number not in batch.unchanged:
            continue
        values = taken[number] = batch.rows.column(number).to_pylist()
        for row in gone:
            values[row] = old[column.name][row] if column.key else None
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
