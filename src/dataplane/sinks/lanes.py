"""Which of several lanes a change goes through, and what is left of a set for lanes that have a part of it already.

In flow sets and the number of lanes (`sink.parallelism` with `consistency: key`); out flow parts of a set that may be
applied at the same time, or the part that is still to be applied. Pure, and across rows.

A key's lane depends on nothing but the key's text and the number of lanes, so all changes of a key go through one lane, in
their order, and whoever reads them again after a crash finds the same lane, however the stream is cut into sets then. What
a lane may have beyond the checkpoint is of one set, the one in which the crash was, and the lane says which tables went
undivided in it. So these rules are a part of what lies at the destination: they never change.

A set is not divided, and is applied as one transaction while no lane writes, if something in it concerns more than one
key: a truncate, a part of a copy, a part of a large transaction, a key that changes into one of another lane.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from dataplane.batch import START, ChangeBatch, ChangeSet, Position, TableSchema, Truncate
from dataplane.sinks.replay import pick

Numbers = npt.NDArray[np.int64]
Digests = npt.NDArray[np.uint64]

UNDIVIDED_LANE = 0
"""The lane of tables that are not divided."""

_WEIGHTS = 64
_MULTIPLIER = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1

_EXACT_TYPES = (
    "smallint",
    "integer",
    "bigint",
    "oid",
    "uuid",
    "text",
    "character varying",
    "boolean",
    "bytea",
    "date",
    "timestamp",
)
"""Types of which two values are equal only if their texts are. Others (1.0 and 1.00 of a numeric) could part one key."""


def _mixed(number: int) -> int:
    number = (number ^ (number >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    number = (number ^ (number >> 27)) * 0x94D049BB133111EB & _MASK
    return number ^ (number >> 31)


_WEIGHT = np.array([_mixed(_MULTIPLIER * (place + 1) & _MASK) | 1 for place in range(_WEIGHTS)], dtype=np.uint64)


@dataclass(frozen=True, slots=True)
class Ahead:
    """What lanes have beyond the checkpoint: where each is, and how the set was divided. Nothing after a clean end."""

    lanes: int = 1
    reached: Mapping[int, Position] = field(default_factory=dict)
    undivided: frozenset[str] = frozenset()

    @property
    def furthest(self) -> Position:
        """The position of the lane that is ahead of all; START if none is."""
        return max(self.reached.values(), default=START)

    def beyond(self, position: Position) -> bool:
        """Say whether any lane is beyond `position`."""
        return self.furthest > position


def has_exact_key(table: TableSchema) -> bool:
    """Say whether two keys of the table are equal only if their texts are."""
    return bool(table.key) and all(_is_exact(column.type) for column in table.columns if column.key)


def _is_exact(type_: str) -> bool:
    plain = type_.partition("(")[0]
    return not type_.endswith("]") and (plain in _EXACT_TYPES or plain.startswith("timestamp "))


def is_divisible(change: ChangeSet) -> bool:
    """Say whether the set concerns keys alone: whole transactions of the stream, without a truncate."""
    whole = change.begins and change.ends and change.snapshot_of is None and not change.snapshot_ends
    return whole and not any(isinstance(item, Truncate) for item in change.items)


def divide(change: ChangeSet, lanes: int, undivided: Collection[str]) -> list[ChangeSet] | None:
    """Return the part of each lane, in the order of lanes; None if the set is to be applied as one.

    `undivided` are the tables whose rows all go through one lane. A part has the positions of the whole set.
    """
    parts: list[list[ChangeBatch]] = [[] for _ in range(lanes)]
    for item in change.items:
        assert isinstance(item, ChangeBatch), "a truncate concerns more than one key"
        if item.table.table in undivided:
            parts[UNDIVIDED_LANE].append(item)
            continue
        numbers = _lanes_of(item, lanes)
        if numbers is None:
            return None
        order = np.argsort(numbers, kind="stable")
        ends = np.cumsum(np.bincount(numbers, minlength=lanes)).tolist()
        together = pick(item, order)
        for lane, (start, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
            if end > start:
                parts[lane].append(_slice(together, start, end))
    if sum(1 for part in parts if part) < 2:
        return None
    return [replace(change, items=tuple(part)) for part in parts]


def unseen(change: ChangeSet, ahead: Ahead) -> ChangeSet:
    """Return the set without the changes that their lanes have already. Its positions stay."""
    if change.snapshot_of is not None or change.first > ahead.furthest:
        return change
    items = [rest for item in change.items if (rest := _unseen(item, ahead)) is not None]
    return replace(change, items=tuple(items))


def _unseen(item: ChangeBatch | Truncate, ahead: Ahead) -> ChangeBatch | Truncate | None:
    if isinstance(item, Truncate):
        return item
    if item.table.table in ahead.undivided:
        numbers = np.full(len(item), UNDIVIDED_LANE, dtype=np.int64)
    else:
        numbers = lanes_of_keys(_keys(item), ahead.lanes)
    seen = np.zeros(len(item), dtype=np.bool_)
    for lane, reached in ahead.reached.items():
        seen |= (numbers == lane) & (
            (item.commit_lsns < reached.lsn) | ((item.commit_lsns == reached.lsn) & (item.ordinals <= reached.ordinal))
        )
    if not seen.any():
        return item
    return None if seen.all() else pick(item, ~seen)


def _lanes_of(batch: ChangeBatch, lanes: int) -> Numbers | None:
    """Return each row's lane; None if a row changes its key into one of another lane."""
    numbers = lanes_of_keys(_keys(batch), lanes)
    if batch.key_changed is not None and batch.old_keys is not None and batch.key_changed.any():
        changed = np.flatnonzero(batch.key_changed)
        former = lanes_of_keys([column.take(pa.array(changed)) for column in batch.old_keys.columns], lanes)
        if bool((former != numbers[changed]).any()):
            return None
    return numbers


def _keys(batch: ChangeBatch) -> list[pa.Array]:
    return [batch.rows.column(number) for number, column in enumerate(batch.table.columns) if column.key]


def lanes_of_keys(columns: Sequence[pa.Array], lanes: int) -> Numbers:
    """Return the lane of each key, of which `columns` hold the parts."""
    digests = _digests(columns[0])
    for column in columns[1:]:
        digests = digests * np.uint64(_MULTIPLIER) + _digests(column)
    digests ^= digests >> np.uint64(32)
    digests *= np.uint64(0xD6E8FEB86659FD93)
    digests ^= digests >> np.uint64(32)
    numbers: Numbers = (digests % np.uint64(lanes)).astype(np.int64)
    return numbers


def _digests(column: pa.Array) -> Digests:
    """Return one number for each value of a string column: its bytes, each weighed by its place, modulo 2^64."""
    if len(column) == 0:
        return np.zeros(0, dtype=np.uint64)
    _, offsets, data = column.buffers()
    width = np.int64 if pa.types.is_large_string(column.type) else np.int32
    ends = np.frombuffer(offsets, dtype=width, count=column.offset + len(column) + 1)[column.offset :].astype(np.int64)
    first, last = int(ends[0]), int(ends[-1])
    ends = ends - first
    content = np.frombuffer(data if data is not None else b"", dtype=np.uint8, count=last)[first:]
    places = np.arange(last - first) - np.repeat(ends[:-1], np.diff(ends))
    terms = (content.astype(np.uint64) + np.uint64(1)) * _WEIGHT[places % _WEIGHTS]
    sums = np.concatenate([np.zeros(1, dtype=np.uint64), np.cumsum(terms, dtype=np.uint64)])
    digests: Digests = sums[ends[1:]] - sums[ends[:-1]]
    return digests


def _slice(batch: ChangeBatch, start: int, end: int) -> ChangeBatch:
    """Return the rows from `start` to before `end`; nothing is copied."""
    length = end - start
    changed = None if batch.key_changed is None else batch.key_changed[start:end]
    moved = changed is not None and bool(changed.any())
    return ChangeBatch(
        table=batch.table,
        rows=batch.rows.slice(start, length),
        ops=batch.ops[start:end],
        commit_lsns=batch.commit_lsns[start:end],
        ordinals=batch.ordinals[start:end],
        commit_times=batch.commit_times[start:end],
        old_keys=batch.old_keys.slice(start, length) if moved and batch.old_keys is not None else None,
        key_changed=changed if moved else None,
        unchanged={column: flags[start:end] for column, flags in batch.unchanged.items()},
    )
