"""Many changes of one table made few: what is left to do for each key once all of them have happened.

In flow the batches of one table between two barriers, in order; out flow steps that the sink carries out one after the
other. The last state of a key wins, a row that was inserted and deleted again leaves nothing, and a changed key is a
delete of the old one and a new row under the new one: a swap of two keys within a transaction comes out right, because
all deletes of a step come before its rows. Pure, and across rows: keys are compared by their codes.

Keys are compared by their text. That is enough even where the destination holds two texts for equal (`1.0` and `1.00`):
a source always names a key by the text that the row has, so every life of a row has one text, and deletes come first.

One case needs more: a row whose key changed while a value did not travel (unchanged TOAST). That value lies at the
destination under the old key, so the row is moved there by itself, in its place among the others.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from dataplane.batch import ChangeBatch, Op
from dataplane.sinks.replay import pick

Numbers = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Update:
    """Rows that get new values in `columns` only (numbers of columns, without the key's). All have that in common."""

    columns: tuple[int, ...]
    rows: pa.RecordBatch


@dataclass(frozen=True, slots=True)
class Merged:
    """What is left of a run of changes. No key stands in two of the parts; deletes come first.

    `deletes` has the key columns, the others have all of them. `inserts` are rows whose keys the destination does not
    have, `upserts` rows that it has or may have.
    """

    deletes: pa.RecordBatch | None = None
    upserts: pa.RecordBatch | None = None
    updates: tuple[Update, ...] = ()
    inserts: pa.RecordBatch | None = None


@dataclass(frozen=True, slots=True)
class Moves:
    """Rows that keep a value while their key changes: each one is an UPDATE under its old key, in order."""

    batch: ChangeBatch


def merge(batch: ChangeBatch, *, unsettled: bool = False) -> list[Merged | Moves]:
    """Return what is to be done for the changes of `batch`, in order.

    Of an `unsettled` table any row may be there already: then one that was inserted and deleted again is deleted.
    """
    if bool((batch.ops == Op.INSERT).all()) and batch.key_changed is None:
        return [Merged(inserts=batch.rows)]
    moving = _moving(batch)
    if not moving.any():
        return [_merge_run(batch, unsettled=unsettled)]
    steps: list[Merged | Moves] = []
    edges = np.flatnonzero(np.diff(moving.astype(np.int8))) + 1
    for start, end in zip([0, *edges.tolist()], [*edges.tolist(), len(batch)], strict=True):
        run = pick(batch, np.arange(start, end))
        steps.append(Moves(run) if moving[start] else _merge_run(run, unsettled=unsettled))
    return steps


def as_upserts(step: Merged) -> Merged:
    """Return the same step with its inserts among the upserts: for a destination that may already have those keys."""
    if step.inserts is None:
        return step
    parts = [part for part in (step.upserts, step.inserts) if part is not None]
    return Merged(deletes=step.deletes, upserts=pa.concat_batches(parts), updates=step.updates)


def _moving(batch: ChangeBatch) -> Flags:
    moving = np.zeros(len(batch), dtype=np.bool_)
    if batch.key_changed is not None:
        for flags in batch.unchanged.values():
            moving |= flags
        moving &= batch.key_changed
    return moving


@dataclass(frozen=True, slots=True)
class _Events:
    """What happens to keys, in order. A changed key makes two events: its old one ends, its new one begins."""

    codes: Numbers
    rows: Numbers
    """The row of the batch that the event comes from."""
    keys: Numbers
    """The event's place in the array of all keys: new ones first, then the old ones of changed keys."""
    ends: Flags
    begins: Flags


def _events(batch: ChangeBatch) -> tuple[_Events, list[pa.Array]]:
    numbers = [number for number, column in enumerate(batch.table.columns) if column.key]
    keys = [batch.rows.column(number) for number in numbers]
    rows = np.arange(len(batch))
    ends = batch.ops == Op.DELETE
    begins = batch.ops == Op.INSERT
    if batch.key_changed is None or batch.old_keys is None or not batch.key_changed.any():
        return _Events(_codes(keys), rows, rows, ends, begins), keys
    changed = np.flatnonzero(batch.key_changed)
    taken = pa.array(changed)
    old = [batch.old_keys.column(place).take(taken) for place in range(len(keys))]
    keys = [pa.concat_arrays([new, former]) for new, former in zip(keys, old, strict=True)]
    order = np.argsort(np.concatenate([2 * rows + 1, 2 * changed]), kind="stable")
    events = _Events(
        codes=_codes(keys)[order],
        rows=np.concatenate([rows, changed])[order],
        keys=order,
        ends=np.concatenate([ends, np.ones(len(changed), dtype=np.bool_)])[order],
        begins=np.concatenate([begins | batch.key_changed, np.zeros(len(changed), dtype=np.bool_)])[order],
    )
    return events, keys


def _codes(keys: Sequence[pa.Array]) -> Numbers:
    """Return one number for each row, equal where all key columns are equal, dense from 0."""
    codes = _dense(keys[0])
    for column in keys[1:]:
        more = _dense(column)
        # Both are below the number of rows, so the product stays far below 2^63.
        codes = _dense(pa.array(codes * (int(more.max()) + 1) + more))
    return codes


def _dense(column: pa.Array) -> Numbers:
    codes: Numbers = column.dictionary_encode().indices.to_numpy().astype(np.int64)
    return codes


def _merge_run(batch: ChangeBatch, *, unsettled: bool) -> Merged:
    if len(batch) == 0:
        return Merged()
    events, keys = _events(batch)
    count = int(events.codes.max()) + 1
    places = np.arange(len(events.codes))
    first, last = np.empty(count, dtype=np.int64), np.empty(count, dtype=np.int64)
    # Of repeated targets the last assignment holds: numpy promises it, and it makes this a search for the newest.
    first[events.codes[::-1]] = places[::-1]
    last[events.codes] = places
    fresh, dead = events.begins[first], events.ends[last]
    if unsettled:
        fresh = np.zeros_like(fresh)
    gone = last[dead & ~fresh]
    names = list(batch.table.key)
    deletes = pa.record_batch([key.take(pa.array(events.keys[gone])) for key in keys], names=names)
    kept = np.flatnonzero(~dead & ~fresh)
    new = np.flatnonzero(~dead & fresh)
    sources = _sources(batch, events, count)
    upserts, updates = _split_updates(batch, events.rows[last[kept]], kept, sources)
    inserts = _gather(batch, events.rows[last[new]], new, sources)
    return Merged(
        deletes=deletes if len(gone) else None,
        upserts=upserts if upserts.num_rows else None,
        updates=updates,
        inserts=inserts if len(new) else None,
    )


def _sources(batch: ChangeBatch, events: _Events, count: int) -> Mapping[int, Numbers]:
    """For each column with unchanged values: the row that holds each key's newest known value, or -1 for none.

    After a delete a key begins again with an insert, which knows every value: nothing from before it can be taken.
    """
    sources: dict[int, Numbers] = {}
    for column, flags in batch.unchanged.items():
        if not flags.any():
            continue
        known = np.flatnonzero(~events.ends & ~flags[events.rows])
        rows = np.full(count, -1, dtype=np.int64)
        rows[events.codes[known]] = events.rows[known]
        sources[column] = rows
    return sources


def _gather(batch: ChangeBatch, rows: Numbers, codes: Numbers, sources: Mapping[int, Numbers]) -> pa.RecordBatch:
    """Return `rows`, the newest of `codes`, with what they did not send taken from where it is known."""
    taken = batch.rows.take(pa.array(rows))
    for column, known in sources.items():
        origin = known[codes]
        values = batch.rows.column(column).take(pa.array(np.where(origin >= 0, origin, rows)))
        taken = taken.set_column(column, taken.schema.field(column), values)
    return taken


def _split_updates(
    batch: ChangeBatch, rows: Numbers, codes: Numbers, sources: Mapping[int, Numbers]
) -> tuple[pa.RecordBatch, tuple[Update, ...]]:
    """Part rows that are known whole from those of which some columns must stay as they are, grouped by which."""
    gathered = _gather(batch, rows, codes, sources)
    if not sources or not len(codes):
        return gathered, ()
    columns = np.array(sorted(sources))
    missing = np.stack([sources[int(column)][codes] < 0 for column in columns], axis=1)
    if not missing.any():
        return gathered, ()
    patterns, group = np.unique(missing, axis=0, return_inverse=True)
    group = group.reshape(-1)
    whole = pa.array(np.flatnonzero(~missing.any(axis=1)))
    updates = []
    for number, pattern in enumerate(patterns):
        if pattern.any():
            left = set(columns[pattern].tolist())
            sent = [place for place, column in enumerate(batch.table.columns) if not column.key and place not in left]
            taken = gathered.take(pa.array(np.flatnonzero(group == number)))
            updates.append(Update(columns=tuple(sent), rows=taken))
    return gathered.take(whole), tuple(updates)
