"""Transforms change values and columns, and nothing that a sink's guarantees rest on."""

import hashlib
import hmac
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.dataplane.sinks.changes import batch, delete, insert, table, update

from contracts.codes import Code
from contracts.v2 import DropTransform, MaskMethod, MaskTransform
from dataplane.batch import ChangeBatch
from dataplane.failures import Permanent, RetryLater
from dataplane.transforms import make

PEOPLE = table("people", {"id": "integer", "mail": "character varying(80)", "age": "integer", "bio": "text"})


def people() -> ChangeBatch:
    """Rows of every kind: with NULL, with a value that did not travel, with a key that changed, and a deleted one."""
    return batch(
        [
            insert(PEOPLE, id="1", mail="ann@x", age="30", bio="b"),
            insert(PEOPLE, id="2", mail=None, age=None, bio=""),
            update(PEOPLE, id="3", mail="ann@x", age="31", unchanged=["bio"]),
            update(PEOPLE, old={"id": "3"}, id="4", mail="bob@x", age="32", bio="c"),
            delete(PEOPLE, id="1"),
        ],
        1,
    )


def mask(*columns: str, method: MaskMethod = MaskMethod.REDACT, secret: str | None = None) -> MaskTransform:
    return MaskTransform(table="public.people", columns=list(columns), method=method, secret=secret)


def drop(*columns: str) -> DropTransform:
    return DropTransform(table="public.people", columns=list(columns))


def test_redacted_values_say_nothing_but_whether_they_exist(tmp_path: Path) -> None:
    """Every value becomes the same three stars, NULL stays NULL, and the column is text."""
    (redact,) = make([mask("mail", "age")], tmp_path)
    after = redact.apply(people())
    assert after.rows.column(1).to_pylist() == ["***", None, "***", "***", None]
    assert after.rows.column(2).to_pylist() == ["***", None, "***", "***", None]
    assert after.rows.column(3).to_pylist() == people().rows.column(3).to_pylist()
    assert [(column.type, column.type_oid) for column in after.table.columns[1:3]] == [("text", 25), ("text", 25)]
    assert after.table == redact.schema(PEOPLE)


def test_hashed_values_stay_equal_under_one_key_only(tmp_path: Path) -> None:
    """The hash is HMAC-SHA-256 in hex, keyed by the secret."""
    for name in ("one", "two"):
        (tmp_path / name).write_text(f"key {name}\n")
    shown = {}
    for name in ("one", "two"):
        (hashed,) = make([mask("mail", method=MaskMethod.HASH, secret=f"file:{name}")], tmp_path)
        shown[name] = hashed.apply(people()).rows.column(1).to_pylist()
        expected = hmac.new(f"key {name}".encode(), b"ann@x", hashlib.sha256).hexdigest()
        assert shown[name][0] == shown[name][2] == expected
        assert shown[name][1] is None
    assert shown["one"][0] != shown["two"][0]


def test_what_older_rows_hold_in_a_new_column_is_masked_too(tmp_path: Path) -> None:
    """It reaches the destination as the rows' own values do."""
    grown = replace(PEOPLE, columns=(*PEOPLE.columns[:3], PEOPLE.columns[3]._replace(missing="secret")))
    (redact,) = make([mask("bio", "mail")], tmp_path)
    assert [column.missing for column in redact.schema(grown).columns] == [None, None, None, "***"]


def test_what_is_said_of_a_column_by_its_number_moves_with_it(tmp_path: Path) -> None:
    """After columns before it are dropped, an unchanged value is still that column's; masks leave it unchanged."""
    first, second = make([drop("mail", "age"), mask("bio")], tmp_path)
    after = second.apply(first.apply(people()))
    assert [column.name for column in after.table.columns] == after.rows.schema.names == ["id", "bio"]
    assert list(after.unchanged) == [1]
    assert after.unchanged[1].tolist() == [False, False, True, False, False]
    assert after.rows.column(1).to_pylist() == ["***", "***", None, "***", None]


def test_a_dropped_column_takes_its_marks_along(tmp_path: Path) -> None:
    """Nothing is said any more of a column that is gone."""
    (transform,) = make([drop("bio")], tmp_path)
    assert transform.apply(people()).unchanged == {}


def test_keys_positions_and_kinds_are_left_alone(tmp_path: Path) -> None:
    """All that a sink's guarantees rest on is what it was."""
    before = people()
    for transform in make([mask("mail"), drop("mail")], tmp_path):
        after = transform.apply(before)
        for name in ("ops", "commit_lsns", "ordinals", "commit_times", "key_changed"):
            assert np.array_equal(getattr(after, name), getattr(before, name))
        assert after.old_keys is before.old_keys
        assert after.rows.column(0).equals(before.rows.column(0))
        assert after.table.key == before.table.key


@pytest.mark.parametrize("transform", [mask("id"), drop("id"), drop("mail", "id")])
def test_a_key_column_is_untouchable(tmp_path: Path, transform: MaskTransform | DropTransform) -> None:
    """It is refused with the names of table and column, for the schema and for a batch."""
    (made,) = make([transform], tmp_path)
    for attempt in (lambda: made.schema(PEOPLE), lambda: made.apply(people())):
        with pytest.raises(Permanent) as caught:
            attempt()
        failure = caught.value
        assert (failure.code, failure.table, failure.column) == (Code.TRANSFORM_KEY_TOUCHED, "public.people", "id")


def test_a_column_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    """Also one that an earlier transform has dropped: a mask must never be passed over."""
    first, second = make([drop("mail"), mask("mail")], tmp_path)
    with pytest.raises(Permanent) as caught:
        second.schema(first.schema(PEOPLE))
    failure = caught.value
    assert (failure.code, failure.table, failure.column) == (Code.TRANSFORM_COLUMN_MISSING, "public.people", "mail")


def test_a_hash_needs_its_secret(tmp_path: Path) -> None:
    """None in the document is refused; one that is not on the node yet is waited for."""
    with pytest.raises(Permanent):
        make([mask("mail", method=MaskMethod.HASH)], tmp_path)
    with pytest.raises(RetryLater) as caught:
        make([mask("mail", method=MaskMethod.HASH, secret="file:nowhere")], tmp_path)
    assert caught.value.code is Code.SECRET_MISSING
