"""COPY's text format is read back to the values that were written, for any text."""

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contracts.codes import Code
from dataplane.failures import Permanent
from dataplane.sources.postgres import copytext

ESCAPES = {"\\": "\\\\", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t", "\v": "\\v"}


def row(values: Sequence[str | None]) -> bytes:
    """Write a row as the server does."""
    fields = ("\\N" if value is None else "".join(ESCAPES.get(each, each) for each in value) for value in values)
    return "\t".join(fields).encode() + b"\n"


values = st.one_of(
    st.none(),
    st.text(max_size=8),
    st.text("\\\tnN\n\b\f\r\v", max_size=8),
    st.sampled_from(["", "N", "\\N", "\\\\N", "\\xdeadbeef", '{"a": "\\"b\\\\"}']),
).filter(lambda value: value is None or "\0" not in value)


@settings(max_examples=120, deadline=None)
@given(
    st.integers(1, 4).flatmap(
        lambda width: st.lists(st.lists(values, min_size=width, max_size=width), min_size=1, max_size=12)
    )
)
def test_every_text_comes_back(rows: list[list[str | None]]) -> None:
    """Tabs, newlines, backslashes and NULL are told apart in every place."""
    arrays, mended = copytext.columns([row(each) for each in rows], len(rows[0]))
    assert mended == 0
    for index, array in enumerate(arrays):
        array.validate(full=True)
        assert array.to_pylist() == [each[index] for each in rows]


def test_an_odd_byte_keeps_its_row_and_is_counted() -> None:
    """What is not UTF-8 comes as an escape, as in the stream."""
    arrays, mended = copytext.columns([b"1\tcaf\xe9\n", b"2\t\\N\n"], 2)
    assert arrays[1].to_pylist() == ["caf\\xe9", None]
    assert mended == 1


@pytest.mark.parametrize("rows", [[b"1\t2\n", b"3\n"], [b"1\t2"], [b"1\t2\t3\n", b"1\n"]])
def test_another_number_of_columns_is_refused(rows: list[bytes]) -> None:
    """Also when the sum of two rows would fit."""
    with pytest.raises(Permanent) as refused:
        copytext.columns(rows, 2)
    assert refused.value.code is Code.SOURCE_PROTOCOL


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(values, values), min_size=1, max_size=6))
def test_rows_are_passed_on_only_in_their_grid(rows: list[tuple[str | None, str | None]]) -> None:
    """Any text is plain with its own number of rows and columns and no other, and not when a byte is not UTF-8."""
    text = b"".join(row(each) for each in rows)
    assert copytext.is_plain(text, len(rows), 2)
    assert not copytext.is_plain(text, len(rows) + 1, 2)
    assert not copytext.is_plain(text, len(rows), 3)
    assert not copytext.is_plain(b"\xff" + text, len(rows), 2)
