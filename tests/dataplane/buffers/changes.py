"""Sets of changes for tests: small ones by hand, and any that a source may make from hypothesis."""

import numpy as np
import pyarrow as pa
from hypothesis import strategies as st

from dataplane.batch import ChangeBatch, ChangeSet, Column, Op, Position, TableSchema, Truncate

ORDERS = TableSchema(
    "public",
    "orders",
    (
        Column("id", "bigint", 20, key=True, nullable=False),
        Column("note", "text", 25, key=False, nullable=True),
    ),
)


def rows_of(ids: list[int], notes: list[str | None]) -> pa.RecordBatch:
    """Rows of ORDERS."""
    return pa.RecordBatch.from_arrays(
        [pa.array([str(each) for each in ids], pa.string()), pa.array(notes, pa.string())], names=["id", "note"]
    )


def inserts(lsn: int, ids: list[int], note: str = "x") -> ChangeBatch:
    """A batch of one transaction's inserts into ORDERS."""
    count = len(ids)
    return ChangeBatch(
        table=ORDERS,
        rows=rows_of(ids, [note] * count),
        ops=np.full(count, Op.INSERT, dtype=np.uint8),
        commit_lsns=np.full(count, lsn, dtype=np.uint64),
        ordinals=np.arange(count, dtype=np.uint32),
        commit_times=np.full(count, lsn * 1000, dtype=np.int64),
    )


def transaction(lsn: int, ids: list[int], note: str = "x") -> ChangeSet:
    """One whole transaction of inserts."""
    return ChangeSet(
        items=(inserts(lsn, ids, note),),
        first=Position(lsn, 0),
        last=Position(lsn, len(ids) - 1),
        begins=True,
        ends=True,
        commit_end_lsn=lsn + 1,
        commit_time=lsn * 1000,
        transactions=1,
    )


def large_transaction(lsn: int, parts: list[list[int]], note: str = "x") -> list[ChangeSet]:
    """One transaction that arrives in many sets."""
    sets, ordinal = [], 0
    for number, ids in enumerate(parts):
        batch = inserts(lsn, ids, note)
        ends = number == len(parts) - 1
        sets.append(
            ChangeSet(
                items=(
                    ChangeBatch(
                        batch.table,
                        batch.rows,
                        batch.ops,
                        batch.commit_lsns,
                        batch.ordinals + np.uint32(ordinal),
                        batch.commit_times,
                    ),
                ),
                first=Position(lsn, ordinal),
                last=Position(lsn, ordinal + len(ids) - 1),
                begins=number == 0,
                ends=ends,
                commit_end_lsn=lsn + 1 if ends else 0,
                commit_time=lsn * 1000,
                transactions=1 if ends else 0,
            )
        )
        ordinal += len(ids)
    return sets


def ids_of(change: ChangeSet) -> list[int]:
    """The keys of a set's rows, in order."""
    return [
        int(value)
        for item in change.items
        if isinstance(item, ChangeBatch)
        for value in item.rows.column(0).to_pylist()
    ]


def same(one: ChangeSet, other: ChangeSet) -> bool:
    """Say whether two sets are equal in everything."""
    scalars = ("first", "last", "begins", "ends", "commit_end_lsn", "commit_time", "transactions", "snapshot_of")
    return (
        all(getattr(one, name) == getattr(other, name) for name in (*scalars, "snapshot_ends"))
        and len(one.items) == len(other.items)
        and all(_same_item(left, right) for left, right in zip(one.items, other.items, strict=True))
    )


def _same_item(one: ChangeBatch | Truncate, other: ChangeBatch | Truncate) -> bool:
    if isinstance(one, Truncate) or isinstance(other, Truncate):
        return one == other
    arrays = ("ops", "commit_lsns", "ordinals", "commit_times", "key_changed")
    return (
        one.table == other.table
        and one.rows.equals(other.rows, check_metadata=True)
        and one.rows.schema.equals(other.rows.schema)
        and (one.old_keys is None) == (other.old_keys is None)
        and (one.old_keys is None or other.old_keys is None or one.old_keys.equals(other.old_keys))
        and all(_same_array(getattr(one, name), getattr(other, name)) for name in arrays)
        and one.unchanged.keys() == other.unchanged.keys()
        and all(_same_array(one.unchanged[index], other.unchanged[index]) for index in one.unchanged)
    )


def _same_array(one: np.ndarray | None, other: np.ndarray | None) -> bool:  # type: ignore[type-arg]
    if one is None or other is None:
        return one is other
    return one.dtype == other.dtype and bool(np.array_equal(one, other))


# ---- Any set ---------------------------------------------------------------------------------------------------------

NAMES = st.one_of(st.sampled_from(["id", "__pm_op", "__pm_unchanged_0", "a"]), st.text(min_size=1, max_size=5))
VALUES = st.one_of(st.none(), st.text(max_size=8))
LSNS = st.integers(0, 2**63 - 1)


@st.composite
def schemas(draw: st.DrawFn) -> TableSchema:
    """Any table, with at least one key column."""
    names = draw(st.lists(NAMES, min_size=1, max_size=4))
    columns = [
        Column(name, draw(st.text(max_size=6)), draw(st.integers(0, 2**31)), draw(st.booleans()), draw(st.booleans()))
        for name in names
    ]
    columns[0] = columns[0]._replace(key=True)
    return TableSchema(draw(NAMES), draw(NAMES), tuple(columns))


def _strings(draw: st.DrawFn, names: list[str], count: int) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays(
        [pa.array(draw(st.lists(VALUES, min_size=count, max_size=count)), pa.string()) for _ in names], names=names
    )


@st.composite
def batches(draw: st.DrawFn, table: TableSchema | None = None) -> ChangeBatch:
    """Any batch; some are slices of larger ones, as a source may make them."""
    table = table or draw(schemas())
    count = draw(st.integers(0, 5))
    key_changed = np.array(draw(st.lists(st.booleans(), min_size=count, max_size=count)), dtype=np.bool_)
    changes_keys = draw(st.booleans())
    rows = _strings(draw, [column.name for column in table.columns], count + 2).slice(draw(st.integers(0, 2)), count)
    return ChangeBatch(
        table=table,
        rows=rows,
        ops=np.array(draw(st.lists(st.integers(0, 2), min_size=count, max_size=count)), dtype=np.uint8),
        commit_lsns=np.array(draw(st.lists(LSNS, min_size=count, max_size=count)), dtype=np.uint64),
        ordinals=np.arange(count, dtype=np.uint32),
        commit_times=np.array(draw(st.lists(st.integers(-(2**62), 2**62), min_size=count, max_size=count)), np.int64),
        old_keys=_strings(draw, list(table.key), count) if changes_keys else None,
        key_changed=key_changed if changes_keys else None,
        unchanged={
            index: np.array(draw(st.lists(st.booleans(), min_size=count, max_size=count)), dtype=np.bool_)
            for index in draw(st.sets(st.integers(0, len(table.columns) - 1)))
        },
    )


POSITIONS = st.builds(Position, LSNS, st.integers(0, 2**32 - 1))


@st.composite
def change_sets(draw: st.DrawFn) -> ChangeSet:
    """Any set."""
    truncates = st.builds(Truncate, schemas(), POSITIONS, st.booleans())
    return ChangeSet(
        items=tuple(draw(st.lists(st.one_of(batches(), truncates), max_size=4))),
        first=draw(POSITIONS),
        last=draw(POSITIONS),
        begins=draw(st.booleans()),
        ends=draw(st.booleans()),
        commit_end_lsn=draw(LSNS),
        commit_time=draw(st.integers(0, 2**62)),
        transactions=draw(st.integers(0, 10**9)),
        snapshot_of=draw(st.one_of(st.none(), st.just("public.orders"))),
        snapshot_ends=draw(st.booleans()),
    )
