"""Joining small transactions changes how many there are, and nothing of what they do."""

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.dataplane.buffers.changes import ORDERS, batches, inserts, large_transaction, schemas, transaction

from dataplane.batch import ChangeBatch, ChangeSet, Position, Truncate
from dataplane.worker.joining import join, joinable


def _events(items) -> dict[str, list[object]]:
    """Everything that happens to each table, in order; a truncate is an event of its table."""
    events: dict[str, list[object]] = {}
    for item in items:
        of_table = events.setdefault(item.table.table, [])
        if isinstance(item, Truncate):
            of_table.append(("truncate", item.position))
            continue
        rows = item.rows.to_pylist() if len(set(item.rows.schema.names)) == item.rows.num_columns else []
        for place in range(len(item)):
            old = item.old_keys.slice(place, 1).columns if item.old_keys is not None else None
            changed = bool(item.key_changed[place]) if item.key_changed is not None else False
            of_table.append(
                (
                    rows[place] if rows else [column[place].as_py() for column in item.rows.columns],
                    int(item.ops[place]),
                    int(item.commit_lsns[place]),
                    int(item.ordinals[place]),
                    int(item.commit_times[place]),
                    [column[0].as_py() for column in old] if old is not None and changed else None,
                    {index for index, flags in item.unchanged.items() if flags[place]},
                    item.table,
                )
            )
    return events


@st.composite
def _runs(draw) -> list[ChangeSet]:
    tables = draw(st.lists(schemas(), min_size=1, max_size=2))
    sets = []
    for lsn in range(draw(st.integers(1, 6))):
        table = draw(st.sampled_from(tables))
        item = draw(st.one_of(batches(table), st.just(Truncate(table, Position(lsn, 0)))))
        sets.append(ChangeSet((item,), Position(lsn, 0), Position(lsn, 5), True, True, lsn + 1, lsn, 1))
    return sets


@settings(max_examples=150, deadline=None)
@given(_runs())
def test_each_table_sees_the_same_changes_in_the_same_order(changes) -> None:
    """For each table the joined set has every change once, in order, with truncates in their place."""
    joined = join(changes)
    assert _events(joined.items) == _events([item for change in changes for item in change.items])


def test_the_joined_set_stands_where_the_last_one_stood() -> None:
    """It begins where the first begins, ends where the last ends, and counts all transactions."""
    joined = join([transaction(10, [1]), transaction(20, [2, 3]), transaction(30, [4])])
    assert (joined.first, joined.last) == (Position(10, 0), Position(30, 0))
    assert (joined.commit_end_lsn, joined.commit_time, joined.transactions) == (31, 30_000, 3)
    assert joined.begins
    assert joined.ends


def test_batches_of_one_table_become_one() -> None:
    """A hundred transactions of one row each are one batch of a hundred rows for the sink."""
    joined = join([transaction(lsn, [lsn]) for lsn in range(1, 101)])
    (batch,) = joined.items
    assert isinstance(batch, ChangeBatch)
    assert batch.rows.column(0).to_pylist() == [str(lsn) for lsn in range(1, 101)]


def test_a_truncate_is_a_barrier_for_every_table() -> None:
    """What stood before a truncate is still applied before it."""
    emptied = Truncate(ORDERS, Position(20, 0))
    middle = ChangeSet((emptied,), Position(20, 0), Position(20, 0), True, True, 21, 0, 1)
    items = join([transaction(10, [1]), middle, transaction(30, [2])]).items
    assert [type(item) for item in items] == [ChangeBatch, Truncate, ChangeBatch]


def test_parts_of_a_large_transaction_and_snapshots_are_never_joined() -> None:
    """Only whole transactions of the stream may be joined."""
    assert not any(joinable(part) for part in large_transaction(5, [[1], [2], [3]]))
    snapshot = ChangeSet((inserts(5, [1]),), Position(5, 0), Position(5, 0), True, True, 0, 0, 1, snapshot_of="a.b")
    assert not joinable(snapshot)
    assert joinable(transaction(5, [1]))
