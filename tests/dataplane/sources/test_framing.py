"""Frames of the wire protocol come out whole however the socket cuts them, and a hostile one is refused."""

import struct
from itertools import pairwise

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.codes import Code
from dataplane.failures import Permanent
from dataplane.sources.postgres.framing import LENGTH_MAX, Cutter, Taken, copy_data, error_of
from dataplane.sources.postgres.messages import Messages

ROWS = [b"w" + bytes(24) + b"I" + b"x" * size for size in (0, 1, 5, 300, 70_000)]
KEEPALIVE = b"k" + (77).to_bytes(8, "big") + bytes(8) + b"\x01"


def frame(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack(">I", len(body) + 4) + body


STREAM = b"".join((*map(copy_data, ROWS), frame(b"N", b"Mnotice\0\0"), copy_data(KEEPALIVE), copy_data(ROWS[1])))
SHORT = b"".join((*map(copy_data, ROWS[:4]), copy_data(KEEPALIVE), frame(b"S", b"a\0b\0"), copy_data(ROWS[1])))


def together(parts: list[Taken]) -> Taken:
    whole = Taken()
    for part in parts:
        whole.messages = Messages.of([*whole.messages, *part.messages])
        whole.byte_size += part.byte_size
        whole.flow_bytes += part.flow_bytes
        whole.wal_end = max(whole.wal_end, part.wal_end)
        whole.asked |= part.asked
        whole.ended |= part.ended
        whole.error = whole.error or part.error
    return whole


def check(cutter: Cutter, chunks: list[bytes], rows: list[bytes]) -> None:
    taken = [cutter.cut(chunk) for chunk in chunks]
    whole = together(taken)
    assert list(whole.messages) == rows
    assert whole.byte_size == sum(map(len, rows))
    assert (whole.wal_end, whole.asked, whole.ended) == (77, True, False)
    assert not taken[-1].cut


def test_a_stream_may_be_cut_at_every_byte() -> None:
    """In two pieces at each place, and into single bytes."""
    for at in range(1, len(SHORT)):
        check(Cutter(), [SHORT[:at], SHORT[at:]], [*ROWS[:4], ROWS[1]])
    check(Cutter(), [SHORT[at : at + 1] for at in range(len(SHORT))], [*ROWS[:4], ROWS[1]])


@given(st.lists(st.integers(1, len(STREAM) - 1), max_size=20))
def test_a_stream_may_be_cut_anywhere_and_often(places: list[int]) -> None:
    """Also within a large frame, many times."""
    edges = [0, *sorted(set(places)), len(STREAM)]
    chunks = [STREAM[start:stop] for start, stop in pairwise(edges)]
    check(Cutter(), chunks, [*ROWS, ROWS[1]])


def test_a_cut_frame_is_told() -> None:
    """It shows that the server has more to send, and how much is missing of the frame."""
    cutter = Cutter()
    whole = copy_data(ROWS[3])
    assert not cutter.cut(whole).cut
    taken = cutter.cut(whole + whole[:100])
    assert taken.cut
    assert list(taken.messages) == [ROWS[3]]
    assert cutter.missing_bytes == len(whole) - 100
    assert list(cutter.cut(whole[100:]).messages) == [ROWS[3]]


@pytest.mark.parametrize("length", [0, 3, LENGTH_MAX + 1, 0x7FFFFFFF, 0xFFFFFFFF])
@pytest.mark.parametrize("kind", [b"d", b"N", b"E"])
def test_an_impossible_length_is_refused(kind: bytes, length: int) -> None:
    """Before anything is kept for it."""
    with pytest.raises(Permanent) as refused:
        Cutter().cut(kind + struct.pack(">I", length) + b"w")
    assert refused.value.code is Code.SOURCE_PROTOCOL


def test_a_message_that_has_no_place_in_a_stream_is_refused() -> None:
    """A row of a query, for one."""
    with pytest.raises(Permanent):
        Cutter().cut(frame(b"D", b"\0\0"))


def test_an_empty_copy_message_says_nothing() -> None:
    """Neither a row nor an end."""
    whole = Cutter().cut(frame(b"d", b"") + copy_data(ROWS[1]))
    assert list(whole.messages) == [ROWS[1]]
    assert not whole.ended


def test_the_end_of_the_stream_comes_after_its_rows() -> None:
    """With the server's reason, when it gives one."""
    body = b"SFATAL\0C57P01\0Mterminating connection\0Dwhy\0\0"
    taken = Cutter().cut(copy_data(ROWS[1]) + frame(b"E", body) + frame(b"Z", b"I"))
    assert list(taken.messages) == [ROWS[1]]
    assert taken.ended
    assert isinstance(taken.error, psycopg.errors.AdminShutdown)
    assert taken.error.sqlstate == "57P01"
    quiet = Cutter().cut(frame(b"c", b""))
    assert quiet.ended
    assert quiet.error is None


def test_an_error_that_nobody_knows_is_still_an_error() -> None:
    """A state of a newer server, or none at all."""
    for body in (b"CXX999\0Mnew\0\0", b"", b"\0"):
        assert isinstance(error_of(body), psycopg.OperationalError)
