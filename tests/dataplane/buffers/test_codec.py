"""A set comes out of the buffer's bytes as it went in, and bytes that are no set are refused."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.dataplane.buffers.changes import change_sets, large_transaction, same, transaction

from dataplane.buffers import codec


@settings(max_examples=150, deadline=None)
@given(change_sets())
def test_any_set_survives_the_round_trip(change) -> None:
    """Rows, keys, flags, truncates, schemas and positions are the same after encoding and decoding."""
    assert same(codec.decode(codec.encode(change)), change)


def test_a_set_is_read_from_a_slice_of_a_message() -> None:
    """Decoding works on a view into a larger message, at any alignment."""
    change = transaction(7, [1, 2, 3])
    encoded = codec.encode(change)
    assert same(codec.decode(memoryview(b"x" + encoded)[1:]), change)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 400), st.integers(0, 60))
def test_damaged_bytes_are_an_error(cut: int, extra: int) -> None:
    """A set that was cut off, or is something else, raises ValueError."""
    encoded = codec.encode(transaction(7, list(range(50)), "y" * 20))
    damaged = encoded[: min(cut, len(encoded) - 1)] + b"\xff" * extra
    with pytest.raises(ValueError):
        codec.decode(damaged)


def test_another_format_is_refused(monkeypatch) -> None:
    """A half of another release is told so instead of misreading."""
    monkeypatch.setattr(codec, "FORMAT", 9)
    encoded = codec.encode(large_transaction(7, [[1], [2]])[0])
    monkeypatch.undo()
    with pytest.raises(ValueError, match="format 9"):
        codec.decode(encoded)
