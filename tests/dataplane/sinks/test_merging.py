"""Merging the changes of each key gives what row by row would give."""

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.dataplane.sinks.changes import Change, batch, delete, insert, table, update

from dataplane.batch import ChangeBatch, Op
from dataplane.sinks.postgres.merging import Merged, Moves, as_upserts, merge

ONE = table("one", {"id": "integer", "a": "text", "b": "text"})
TWO = table("two", {"x": "integer", "a": "text", "y": "text", "b": "text"}, key=("x", "y"))

Key = tuple[str | None, ...]
Held = dict[Key, dict[str, str | None]]


def rows_one_by_one(held: Held, batch: ChangeBatch) -> None:
    """Change `held` as the batch says, row by row."""
    names = list(batch.table.key)
    old = batch.old_keys.to_pylist() if batch.old_keys is not None else []
    for number, row in enumerate(batch.rows.to_pylist()):
        key = tuple(row[name] for name in names)
        moved = batch.key_changed is not None and batch.key_changed[number]
        before = held.pop(tuple(old[number].values()) if moved else key, None)
        if batch.ops[number] == Op.DELETE:
            continue
        assert key not in held, "the source's keys are unique"
        for column, flags in batch.unchanged.items():
            if flags[number]:
                assert before is not None
                row[batch.table.columns[column].name] = before[batch.table.columns[column].name]
        held[key] = row


def apply_step(held: Held, step: Merged | Moves, names: tuple[str, ...]) -> None:
    """Change `held` as the destination would: deletes, upserts, updates, inserts."""
    if isinstance(step, Moves):
        rows_one_by_one(held, step.batch)
        return
    touched: list[Key] = []
    for row in step.deletes.to_pylist() if step.deletes else []:
        touched.append(tuple(row.values()))
        held.pop(tuple(row.values()), None)
    for row in step.upserts.to_pylist() if step.upserts else []:
        touched.append(tuple(row[name] for name in names))
        held[touched[-1]] = row
    for group in step.updates:
        for row in group.rows.to_pylist():
            touched.append(tuple(row[name] for name in names))
            for column in group.columns:
                name = list(row)[column]
                held[touched[-1]][name] = row[name]
    for row in step.inserts.to_pylist() if step.inserts else []:
        touched.append(tuple(row[name] for name in names))
        assert touched[-1] not in held, "an insert goes by COPY and must not collide"
        held[touched[-1]] = row
    assert len(touched) == len(set(touched)), "each key is written once"


@st.composite
def histories(draw: st.DrawFn) -> tuple[Held, list[Change]]:
    """Rows that exist already, and changes that a source may make to them."""
    of = draw(st.sampled_from([ONE, TWO]))
    names = list(of.key)
    rest = [column.name for column in of.columns if not column.key]
    keys = st.tuples(*(st.sampled_from(["1", "2", "3"]) for _ in names))
    value = st.sampled_from(["", "p", "q", None])
    held: Held = {}
    for key in draw(st.sets(keys)):
        held[key] = {**dict(zip(names, key, strict=True)), **{name: draw(value) for name in rest}}
    before = {key: {column.name: row[column.name] for column in of.columns} for key, row in held.items()}
    alive, changes = set(before), []
    for _ in range(draw(st.integers(1, 14))):
        key = draw(keys)
        row = {**dict(zip(names, key, strict=True)), **{name: draw(value) for name in rest}}
        if key not in alive:
            alive.add(key)
            changes.append(insert(of, **row))
            continue
        kind = draw(st.sampled_from(["update", "unchanged", "delete", "move", "move"]))
        if kind == "delete":
            alive.remove(key)
            changes.append(delete(of, **dict(zip(names, key, strict=True))))
            continue
        left = draw(st.sets(st.sampled_from(rest), min_size=1)) if kind == "unchanged" or draw(st.booleans()) else set()
        row = {name: None if name in left else each for name, each in row.items()}
        new = draw(keys)
        if kind == "move" and new not in alive:
            alive ^= {key, new}
            old = dict(zip(names, key, strict=True))
            changes.append(update(of, old=old, unchanged=left, **{**row, **dict(zip(names, new, strict=True))}))
        else:
            changes.append(update(of, unchanged=left, **row))
    return before, changes


@settings(max_examples=200, deadline=None)
@given(histories())
def test_merged_changes_leave_what_single_ones_leave(history: tuple[Held, list[Change]]) -> None:
    """Whatever a source does to a few keys, with keys that change and values that do not travel."""
    before, changes = history
    made = batch(changes, 1)
    expected = {key: dict(row) for key, row in before.items()}
    rows_one_by_one(expected, made)
    for steps in (merge(made), [step if isinstance(step, Moves) else as_upserts(step) for step in merge(made)]):
        held = {key: dict(row) for key, row in before.items()}
        for step in steps:
            apply_step(held, step, made.table.key)
        assert held == expected


def test_inserts_alone_are_handed_on_as_they_are() -> None:
    """No key is looked at where nothing but inserts happened: the quickest way of all."""
    made = batch([insert(ONE, id="1", a="x"), insert(ONE, id="2")], 1)
    (step,) = merge(made)
    assert isinstance(step, Merged)
    assert step.inserts is made.rows


def test_a_row_that_came_and_went_leaves_nothing() -> None:
    """An insert and a delete of one key cancel each other."""
    (step,) = merge(batch([insert(ONE, id="1", a="x"), delete(ONE, id="1")], 1))
    assert step == Merged()


def test_two_keys_that_swap_keep_their_rows_apart() -> None:
    """1 → 9, 2 → 1, 9 → 2 within a transaction ends with both keys and the other's values."""
    (step,) = merge(
        batch(
            [
                update(ONE, old={"id": "1"}, id="9", a="first"),
                update(ONE, old={"id": "2"}, id="1", a="second"),
                update(ONE, old={"id": "9"}, id="2", a="first"),
            ],
            1,
        )
    )
    assert isinstance(step, Merged)
    assert step.upserts is not None
    assert {(row["id"], row["a"]) for row in step.upserts.to_pylist()} == {("1", "second"), ("2", "first")}
    assert (step.deletes, step.inserts) == (None, None)
