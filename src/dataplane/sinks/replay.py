"""What arrives again after a restart: rows at or before the checkpoint's position are cut off, across columns.

A source resumes from where it was told that rows are durable, which may lie before what the destination holds. In flows
a set and what is durable; out flows what is still to be applied, or None. Pure; every sink calls it first.

Positions alone do not tell for a snapshot: a second table's rows may have positions that the first one's have passed.
So a set of a snapshot is known by its table: it arrives again only if that table was copied whole.
"""

from collections.abc import Collection
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from dataplane.batch import ChangeBatch, ChangeSet, Position, Truncate


def unseen(change: ChangeSet, position: Position, tables_copied: Collection[str]) -> ChangeSet | None:
    """Return the part of `change` that comes after `position`: the set itself, a cut one, or None when nothing does."""
    if change.snapshot_of is not None:
        copied = change.snapshot_of in tables_copied and change.last <= position
        return None if copied else change
    if change.first > position:
        return change
    if change.last <= position:
        return None
    items = [rest for item in change.items if (rest := _after(item, position)) is not None]
    return replace(change, items=tuple(items), first=min(_first(item) for item in items))


def pick(batch: ChangeBatch, rows: npt.NDArray[np.bool_] | npt.NDArray[np.int64]) -> ChangeBatch:
    """Return the rows of `batch` that `rows`, flags or row numbers, names: in their order, all parts alike."""
    numbers = np.flatnonzero(rows) if rows.dtype == np.bool_ else rows
    taken = pa.array(numbers)
    return ChangeBatch(
        table=batch.table,
        rows=batch.rows.take(taken),
        ops=batch.ops[numbers],
        commit_lsns=batch.commit_lsns[numbers],
        ordinals=batch.ordinals[numbers],
        commit_times=batch.commit_times[numbers],
        old_keys=None if batch.old_keys is None else batch.old_keys.take(taken),
        key_changed=None if batch.key_changed is None else batch.key_changed[numbers],
        unchanged={column: flags[numbers] for column, flags in batch.unchanged.items()},
    )


def _after(item: ChangeBatch | Truncate, position: Position) -> ChangeBatch | Truncate | None:
    if isinstance(item, Truncate):
        return item if item.position > position else None
    later = (item.commit_lsns > position.lsn) | (
        (item.commit_lsns == position.lsn) & (item.ordinals > position.ordinal)
    )
    if later.all():
        return item
    return pick(item, later) if later.any() else None


def _first(item: ChangeBatch | Truncate) -> Position:
    if isinstance(item, Truncate):
        return item.position
    return Position(int(item.commit_lsns[0]), int(item.ordinals[0]))
