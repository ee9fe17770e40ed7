"""What arrives again after a restart: rows at or before the checkpoint's position are cut off, across columns.

A source resumes from where it was told that rows are durable, which may lie before what the destination holds. In flows
a set and what is durable; out flows what is still to be applied, or None. Pure; every sink calls it first.

Positions do not tell for a copy, whose rows stand where the stream is. A chunk is known by its copy and its number within
that; a copy without chunks, as older releases made it, by its table.
"""

from collections.abc import Collection, Mapping
from dataclasses import replace
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from dataplane.batch import ChangeBatch, ChangeSet, Chunk, Position, Truncate
from dataplane.checkpoint import Cursor


def unseen(
    change: ChangeSet,
    position: Position,
    tables_copied: Collection[str],
    cursors: Mapping[str, Cursor] = MappingProxyType({}),
) -> ChangeSet | None:
    """Return the part of `change` that comes after `position`: the set itself, a cut one, or None when nothing does."""
    if change.snapshot_of is not None and change.chunk is not None:
        return None if _is_copied(change.chunk, cursors.get(change.snapshot_of)) else change
    if change.snapshot_of is not None:
        copied = change.snapshot_of in tables_copied and change.last <= position
        return None if copied else change
    if change.first > position:
        return change
    if change.last <= position:
        return None
    items = [rest for item in change.items if (rest := _after(item, position)) is not None]
    # Nothing is left where only rows come after it that the source left out: a copy of their table has them.
    return replace(change, items=tuple(items), first=min((_first(item) for item in items), default=change.last))


def _is_copied(chunk: Chunk, cursor: Cursor | None) -> bool:
    if cursor is None or cursor.copy < chunk.copy:
        return False
    return cursor.copy > chunk.copy or (cursor.settled if chunk.settled else chunk.index < cursor.chunks)


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
