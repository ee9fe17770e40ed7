"""What becomes of changes as records of a topic: keys, values and partitions, without a broker."""

import json

import pyarrow as pa
from aiokafka.partitioner import murmur2
from hypothesis import given
from hypothesis import strategies as st
from tests.dataplane.sinks.changes import Change, batch, delete, insert, table, update

from contracts.kafka import Format
from dataplane.batch import Op
from dataplane.sinks.kafka import envelope, jsontext
from dataplane.sinks.kafka.envelope import UNAVAILABLE, Origin
from dataplane.sinks.kafka.partitions import partitions

ITEMS = table("items", {"id": "integer", "name": "text", "paid": "boolean", "rate": "double precision"})
ORIGIN = Origin("shop", "base")
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=20)
Written = list[tuple[str | None, object]]


def written(changes: list[Change], format_: Format, *, copied: bool = False) -> Written:
    """Keys and values as a consumer reads them: a tombstone is None."""
    made = envelope.records(batch(changes, 700, commit_time=9_000_000), format_, ORIGIN, copied=copied)
    assert made.keys is not None
    pairs = zip(made.keys.to_pylist(), made.values.to_pylist(), strict=True)
    return [(key.decode(), value and json.loads(value)) for key, value in pairs]


CHANGES = [
    insert(ITEMS, id="1", name='a"\n', paid="t", rate="1.5"),
    update(ITEMS, id="1", name=None, paid="f", rate="NaN", unchanged=["name"]),
    update(ITEMS, old={"id": "1"}, id="2", name="b", paid=None, rate=None),
    delete(ITEMS, id="2"),
]


def test_a_row_alone_is_its_values_and_a_delete_is_a_tombstone() -> None:
    """A value that did not travel is left out, and a changed key is a tombstone of the old one before the row."""
    assert written(CHANGES, Format.JSON) == [
        ('{"id":1}', {"id": 1, "name": 'a"\n', "paid": True, "rate": 1.5}),
        ('{"id":1}', {"id": 1, "paid": False, "rate": "NaN"}),
        ('{"id":1}', None),
        ('{"id":2}', {"id": 2, "name": "b", "paid": None, "rate": None}),
        ('{"id":2}', None),
    ]


def test_an_envelope_says_what_debezium_says() -> None:
    """Operation, row, key of what is gone, and a tombstone after each delete, in the source's order."""
    found = written(CHANGES, Format.DEBEZIUM_JSON)
    nothing = {"name": None, "paid": None, "rate": None}
    told = [(key, value and (value["op"], value["before"], value["after"])) for key, value in found]  # type: ignore[index]
    assert told == [
        ('{"id":1}', ("c", None, {"id": 1, "name": 'a"\n', "paid": True, "rate": 1.5})),
        ('{"id":1}', ("u", None, {"id": 1, "name": UNAVAILABLE, "paid": False, "rate": "NaN"})),
        ('{"id":1}', ("d", {"id": 1, **nothing}, None)),
        ('{"id":1}', None),
        ('{"id":2}', ("c", None, {"id": 2, "name": "b", "paid": None, "rate": None})),
        ('{"id":2}', ("d", {"id": 2, **nothing}, None)),
        ('{"id":2}', None),
    ]
    first = found[0][1]
    assert isinstance(first, dict)
    assert first["ts_ms"] == 9000
    assert first["source"] == {
        "connector": "postgresql",
        "name": "shop",
        "snapshot": "false",
        "db": "base",
        "schema": "public",
        "table": "items",
        "lsn": 700,
        "ordinal": 0,
        "ts_ms": 9000,
    }


def test_rows_of_a_copy_are_reads() -> None:
    """As Debezium's snapshots have it."""
    ((_, value),) = written(CHANGES[:1], Format.DEBEZIUM_JSON, copied=True)
    assert isinstance(value, dict)
    assert (value["op"], value["source"]["snapshot"]) == ("r", "true")


@given(st.lists(st.none() | TEXTS, min_size=1, max_size=8))
def test_every_text_comes_back_from_json(texts: list[str | None]) -> None:
    """Whatever it holds: quotes, control characters, the ends of Unicode; NULL is null."""
    made = jsontext.quoted(pa.array(texts, pa.string()))
    assert [json.loads(each) for each in made.to_pylist()] == texts


@given(st.lists(st.none() | st.floats(), min_size=1, max_size=8))
def test_every_float_comes_back_from_json(numbers: list[float | None]) -> None:
    """What JSON has no number for is a string with PostgreSQL's own word."""
    words = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}
    texts = [None if each is None else words.get(repr(each), repr(each)) for each in numbers]
    made = jsontext.converter("double precision")(pa.array(texts, pa.string()))
    expected = [text if text in words.values() else each for text, each in zip(texts, numbers, strict=True)]
    assert [json.loads(each) for each in made.to_pylist()] == expected


@given(st.lists(TEXTS, min_size=1, max_size=12), TEXTS)
def test_every_envelope_is_json_with_the_rows_values(names: list[str], column: str) -> None:
    """For any text in a column of any name."""
    of = table("items", {"id": "integer", f"c{column}": "text"})
    changes = [Change(of, Op.INSERT, {"id": str(number), f"c{column}": name}) for number, name in enumerate(names)]
    found = [value["after"] for _, value in written(changes, Format.DEBEZIUM_JSON)]  # type: ignore[index]
    assert found == [{"id": number, f"c{column}": name} for number, name in enumerate(names)]


@given(st.lists(st.binary(max_size=40), min_size=1, max_size=20), st.integers(1, 1000), st.integers(0, 3))
def test_a_key_has_the_partition_that_javas_client_gives_it(keys: list[bytes], count: int, skipped: int) -> None:
    """Keys of any bytes and lengths, also in a part of a longer column."""
    made = partitions(pa.array([b"before"] * skipped + keys, pa.binary()).slice(skipped), count)
    assert made.tolist() == [(murmur2(each) & 0x7FFFFFFF) % count for each in keys]
