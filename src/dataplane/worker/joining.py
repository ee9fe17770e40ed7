"""Small transactions joined into larger ones for the destination, when more than one waits.

A destination's commit costs the same for one row and for a thousand. So whatever waits while the destination is busy is
made one set; when nothing waits, a set goes alone and at once. Only whole transactions are joined, so what the
destination shows is always a state that the source had. Pure: the queue calls it, nothing waits here.

Within the joined set the rows of one table stand in one batch as far as barriers (a truncate, another schema) allow;
rows of different tables become visible together and need no order among them.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from dataplane.batch import ChangeBatch, ChangeSet, Flags, Truncate


def joinable(change: ChangeSet) -> bool:
    """Say whether the set may be joined with others: whole transactions of the stream, and no part of a snapshot."""
    return change.begins and change.ends and change.snapshot_of is None and not change.snapshot_ends


def join(changes: Sequence[ChangeSet]) -> ChangeSet:
    """Return one set that is all of `changes`, which are joinable and in order."""
    if len(changes) == 1:
        return changes[0]
    first, last = changes[0], changes[-1]
    return ChangeSet(
        items=tuple(_join_items([item for change in changes for item in change.items])),
        first=first.first,
        last=last.last,
        begins=True,
        ends=True,
        commit_end_lsn=last.commit_end_lsn,
        commit_time=last.commit_time,
        transactions=sum(change.transactions for change in changes),
        mark=last.mark,
    )


def _join_items(items: Sequence[ChangeBatch | Truncate]) -> list[ChangeBatch | Truncate]:
    joined: list[ChangeBatch | Truncate] = []
    waiting: dict[str, list[ChangeBatch]] = {}
    for item in items:
        if isinstance(item, Truncate):
            # A foreign key may tie other tables to this one, so everything before it is applied before it.
            joined += [_join_batches(batches) for batches in waiting.values()]
            waiting.clear()
            joined.append(item)
            continue
        run = waiting.setdefault(item.table.table, [])
        if run and not _same_shape(run[-1], item):
            joined.append(_join_batches(run))
            run.clear()
        run.append(item)
    return joined + [_join_batches(batches) for batches in waiting.values()]


def _same_shape(one: ChangeBatch, other: ChangeBatch) -> bool:
    return (one.table is other.table or one.table == other.table) and one.rows.schema.equals(other.rows.schema)


def _join_batches(batches: Sequence[ChangeBatch]) -> ChangeBatch:
    if len(batches) == 1:
        return batches[0]
    old_keys, key_changed = _join_old_keys(batches)
    return ChangeBatch(
        table=batches[0].table,
        rows=pa.concat_batches([batch.rows for batch in batches]),
        ops=np.concatenate([batch.ops for batch in batches]),
        commit_lsns=np.concatenate([batch.commit_lsns for batch in batches]),
        ordinals=np.concatenate([batch.ordinals for batch in batches]),
        commit_times=np.concatenate([batch.commit_times for batch in batches]),
        old_keys=old_keys,
        key_changed=key_changed,
        unchanged=_join_unchanged(batches),
    )


def _join_old_keys(batches: Sequence[ChangeBatch]) -> tuple[pa.RecordBatch | None, Flags | None]:
    shape = next((batch.old_keys.schema for batch in batches if batch.old_keys is not None), None)
    if shape is None:
        return None, None
    return (
        pa.concat_batches(
            [batch.old_keys if batch.old_keys is not None else _nulls(shape, batch) for batch in batches]
        ),
        np.concatenate(
            [
                batch.key_changed if batch.key_changed is not None else np.zeros(len(batch), dtype=np.bool_)
                for batch in batches
            ]
        ),
    )


def _nulls(shape: pa.Schema, batch: ChangeBatch) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([pa.nulls(len(batch), field.type) for field in shape], schema=shape)


def _join_unchanged(batches: Sequence[ChangeBatch]) -> dict[int, Flags]:
    columns = sorted({index for batch in batches for index in batch.unchanged})
    return {
        index: np.concatenate(
            [
                batch.unchanged[index] if index in batch.unchanged else np.zeros(len(batch), dtype=np.bool_)
                for batch in batches
            ]
        )
        for index in columns
    }
