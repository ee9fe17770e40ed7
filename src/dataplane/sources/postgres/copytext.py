"""Parse COPY's text format into Arrow strings, across rows.

In flow the rows of a COPY TO STDOUT, one bytes object each; out flow one string column for each column, with the same
texts that the stream gives for the same values. Where nobody needs the values, `is_plain` says whether the rows may go on
unparsed. Called by the snapshot. No I/O.

Tabs and newlines inside values come escaped, so the bare ones are the table's grid. Backslashes are rare but for bytea
and JSON; they are taken out for a whole column at once.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from contracts.codes import Code
from dataplane.failures import Permanent
from dataplane.sources.postgres import tuples
from dataplane.sources.postgres.messages import PADDING_BYTES, Bytes, Offsets

Bounds = npt.NDArray[np.int32]

_TAB, _NEWLINE, _BACKSLASH, _NULL_LETTER = (ord(letter) for letter in "\t\n\\N")

_ESCAPES = np.arange(256, dtype=np.uint8)
for _letter, _meaning in (("b", 8), ("f", 12), ("n", 10), ("r", 13), ("t", 9), ("v", 11)):
    _ESCAPES[ord(_letter)] = _meaning


def columns(rows: Sequence[bytes], column_count: int) -> tuple[list[pa.Array], int]:
    """Return the columns of `rows`, and how many values were not valid UTF-8 (as `tuples.strings` mends them).

    Raises:
        Permanent: a row has another number of columns (Code.SOURCE_PROTOCOL).
    """
    count = len(rows)
    lengths = np.fromiter(map(len, rows), np.int64, count)
    buffer = np.frombuffer(b"".join((*rows, bytes(PADDING_BYTES))), np.uint8)
    ends = np.cumsum(lengths)
    if column_count == 0 or not (buffer[ends - 1] == _NEWLINE).all():
        raise Permanent(Code.SOURCE_PROTOCOL, "a row of a COPY does not end with a newline")
    tabs = np.flatnonzero(buffer == _TAB)
    if len(tabs) != count * (column_count - 1):
        raise Permanent(Code.SOURCE_PROTOCOL, "a row of a COPY has another number of columns than its table")
    edges = np.empty((count, column_count + 1), np.int64)
    edges[:, 0] = ends - lengths - 1
    edges[:, 1:-1] = tabs.reshape(count, column_count - 1)
    edges[:, -1] = ends - 1
    if not (edges[:, 1:] > edges[:, :-1]).all():
        raise Permanent(Code.SOURCE_PROTOCOL, "a row of a COPY has another number of columns than its table")
    escaped = bool((buffer == _BACKSLASH).any())
    arrays = []
    mended = 0
    for index in range(column_count):
        array, odd = _column(buffer, edges[:, index] + 1, edges[:, index + 1], escaped=escaped)
        arrays.append(array)
        mended += odd
    return arrays, mended


def is_plain(text: bytes, row_count: int, column_count: int) -> bool:
    """Say whether the rows, one behind the other, can be passed on as they are: valid UTF-8, in the right grid."""
    if text.count(b"\n") != row_count or text.count(b"\t") != row_count * (column_count - 1):
        return False
    if text.isascii():
        return True
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def _column(buffer: Bytes, starts: Offsets, ends: Offsets, *, escaped: bool) -> tuple[pa.Array, int]:
    lengths = ends - starts
    if not escaped:
        return tuples.strings(buffer, starts, lengths, None)
    null = (lengths == 2) & (buffer[starts] == _BACKSLASH) & (buffer[starts + 1] == _NULL_LETTER)
    valid = None
    if null.any():
        valid = ~null
        lengths = np.where(null, 0, lengths)
    raw = tuples.gather(buffer, starts, lengths)
    offsets, data = (
        np.frombuffer(part, kind) for part, kind in zip(raw.buffers()[1:], (np.int32, np.uint8), strict=True)
    )
    offsets = offsets[: len(starts) + 1]
    slashes = np.flatnonzero(data[: int(offsets[-1])] == _BACKSLASH)
    if not len(slashes):
        return tuples.labelled(raw, valid)
    data, offsets = _unescaped(data[: int(offsets[-1])], offsets, slashes)
    array = pa.Array.from_buffers(pa.binary(), len(starts), [None, pa.py_buffer(offsets), pa.py_buffer(data)])
    return tuples.labelled(array, valid)


def _unescaped(data: Bytes, offsets: Bounds, slashes: Offsets) -> tuple[Bytes, Bounds]:
    """Take the escapes out of a column's bytes.

    In a run of backslashes every other one escapes the byte behind it. Runs may reach over the edge between two values,
    but a value never ends with half an escape, so the count stays right.
    """
    fresh = np.ones(len(slashes), np.bool_)
    fresh[1:] = slashes[1:] != slashes[:-1] + 1
    run_starts = np.flatnonzero(fresh)
    run_of = np.cumsum(fresh) - 1
    place = np.arange(len(slashes)) - run_starts[run_of]
    escapes = slashes[place % 2 == 0]
    kept = np.ones(len(data), np.bool_)
    kept[escapes] = False
    meanings = data.copy()
    meanings[escapes + 1] = _ESCAPES[data[escapes + 1]]
    removed = np.searchsorted(escapes, offsets, side="left")
    return meanings[kept], (offsets - removed).astype(np.int32)
