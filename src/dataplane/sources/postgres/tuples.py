"""Decode the tuples of many row messages of one table at once, column by column, into Arrow strings.

In flow a buffer and the offsets of Insert, Update and Delete messages of one relation; out flow, for each column, where
every row's value lies, and from that the columns of a batch. Called by the decoder, for 1 to tens of thousands of rows.

A tuple has no table of contents: a column starts where the one before it ended. So the walk goes column by column, and
handles all rows of a column in one step. The bytes of a column are then moved by one Arrow `take` over the whole buffer,
read as a string array whose elements are by turns a value and the gap up to the next one. Nothing looks at one value.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from contracts.codes import Code
from dataplane.batch import Flags
from dataplane.failures import Permanent
from dataplane.sources.postgres.messages import Bytes, Offsets, words

NULL, UNCHANGED, TEXT = (ord(letter) for letter in "nut")
NEW, KEY, OLD = (ord(letter) for letter in "NKO")

SINGLY_MAX = 16

TUPLE_HEADER_BYTES = 3
"""The letter that says which tuple it is, and the number of its columns."""


@dataclass(slots=True)
class Cells:
    """Where the values of one column lie, for all rows: `kinds` are the letters of the protocol.

    A value that is not text has the length 0 and starts where it would stand.
    """

    kinds: Bytes
    starts: Offsets
    lengths: Offsets


def walk(buffer: Bytes, at: Offsets, column_count: int) -> tuple[list[Cells], Offsets]:
    """Walk along the tuples whose first columns start at `at`. Return their cells and where each tuple ends.

    Raises:
        Permanent: a value is of a kind that we did not ask for (Code.SOURCE_PROTOCOL).
    """
    view = words(buffer)
    limit = len(view) - 1
    cells = []
    for _ in range(column_count):
        if len(at) and int(at.max()) > limit:
            raise Permanent(Code.SOURCE_PROTOCOL, "a row is longer than its message")
        word = view[at]
        kinds = word.astype(np.uint8)
        lengths = (word >> np.uint64(8)).astype(np.uint32).byteswap().astype(np.int64)
        text = kinds == TEXT
        if text.all():
            starts = at + 5
            at = starts + lengths
        else:
            if not (text | (kinds == NULL) | (kinds == UNCHANGED)).all():
                raise Permanent(Code.SOURCE_PROTOCOL, "a value is neither text, nor null, nor unchanged")
            lengths[~text] = 0
            starts = at + np.where(text, 5, 1)
            at = starts + lengths
        cells.append(Cells(kinds, starts, lengths))
    return cells, at


def check_header(buffer: Bytes, at: Offsets, column_count: int) -> None:
    """Check that the tuples at `at` have as many columns as their relation.

    Raises:
        Permanent: they have not (Code.SOURCE_PROTOCOL).
    """
    counts = (buffer[at + 1].astype(np.int64) << 8) | buffer[at + 2]
    if not (counts == column_count).all():
        raise Permanent(Code.SOURCE_PROTOCOL, "a row has another number of columns than its relation")


def gather(buffer: Bytes, starts: Offsets, lengths: Offsets) -> pa.Array:
    """Return the values as an Arrow binary column. `starts` must not decrease, and values must not overlap."""
    count = len(starts)
    if count <= SINGLY_MAX:
        # A few values are copied sooner than Arrow's machinery is set up.
        whole = buffer.data
        ends = (starts + lengths).tolist()
        return pa.array([bytes(whole[at:end]) for at, end in zip(starts.tolist(), ends, strict=True)], pa.binary())
    bounds = np.empty(2 * count, np.int32)
    bounds[0::2] = starts
    bounds[1::2] = starts + lengths
    source = pa.Array.from_buffers(
        pa.binary(), 2 * count - 1, [None, pa.py_buffer(bounds), pa.py_buffer(buffer)], null_count=0
    )
    return source.take(_evens(count))


_EVENS = pa.array(np.arange(0, 2 << 16, 2, dtype=np.int32))


def _evens(count: int) -> pa.Array:
    if count <= len(_EVENS):
        return _EVENS.slice(0, count)
    return pa.array(np.arange(0, 2 * count, 2, dtype=np.int32))


def labelled(values: pa.Array, valid: Flags | None) -> tuple[pa.Array, int]:
    r"""Return a binary column as strings, null where it is not `valid`, and how many values had to be mended.

    A value that is not valid UTF-8 keeps its row: its odd bytes become `\xNN`.
    """
    count = len(values)
    _, offsets, data = values.buffers()
    if data is None:
        data = pa.py_buffer(b"")
    bitmap = None
    null_count = 0
    if valid is not None:
        null_count = count - int(np.count_nonzero(valid))
        bitmap = pa.py_buffer(np.packbits(valid, bitorder="little")) if null_count else None
    column = pa.Array.from_buffers(pa.string(), count, [bitmap, offsets, data], null_count=null_count)
    return _mended(column)


def strings(buffer: Bytes, starts: Offsets, lengths: Offsets, valid: Flags | None) -> tuple[pa.Array, int]:
    """Gather and label values in one step."""
    return labelled(gather(buffer, starts, lengths), valid)


def _mended(column: pa.Array) -> tuple[pa.Array, int]:
    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        values: list[bytes | None] = column.view(pa.binary()).to_pylist()
        texts = [None if value is None else value.decode("utf-8", "backslashreplace") for value in values]
        odd = sum(text is not None and text.encode() != value for value, text in zip(values, texts, strict=True))
        return pa.array(texts, pa.string()), odd
    return column, 0


@dataclass(slots=True)
class Rows:
    """The tuples of one relation's row messages, as cells: `new` for every row, `old` for those rows that sent one.

    For a Delete `new` is the tuple that it sent. `old_rows` are the row numbers of `old`, and `whole` says for each of
    them whether it was the whole row (replica identity full) or its key alone.
    """

    new: list[Cells]
    old: list[Cells]
    old_rows: npt.NDArray[np.int64]
    whole: Flags


def read(buffer: Bytes, starts: Offsets, ends: Offsets, updates: Flags, column_count: int) -> Rows:
    """Find every value of the row messages that start at `starts`. `updates` marks the Updates among them.

    Raises:
        Permanent: a message does not have the form of the protocol (Code.SOURCE_PROTOCOL).
    """
    at = starts + 5
    letters = buffer[at]
    check_header(buffer, at, column_count)
    with_old = updates & (letters != NEW)
    old: list[Cells] = []
    old_rows = np.flatnonzero(with_old)
    at = at + TUPLE_HEADER_BYTES
    if len(old_rows):
        old, old_ends = walk(buffer, at[old_rows], column_count)
        if int(old_ends.max()) + TUPLE_HEADER_BYTES > len(buffer) or not (buffer[old_ends] == NEW).all():
            raise Permanent(Code.SOURCE_PROTOCOL, "an Update has no new row")
        check_header(buffer, old_ends, column_count)
        at[old_rows] = old_ends + TUPLE_HEADER_BYTES
    new, new_ends = walk(buffer, at, column_count)
    if not (new_ends == ends).all():
        raise Permanent(Code.SOURCE_PROTOCOL, "a row ends elsewhere than its message")
    return Rows(new, old, old_rows, letters[old_rows] == OLD)


def take_from_old(rows: Rows, column: int, key: bool) -> Cells:
    """Return a column's cells, with the old value where the new one was not sent because it did not change.

    The old tuple's value is known when the tuple was whole, or the column is part of the key.
    """
    cells = rows.new[column]
    if not len(rows.old_rows):
        return cells
    unchanged = cells.kinds[rows.old_rows] == UNCHANGED
    known = unchanged if key else unchanged & rows.whole
    if not known.any():
        return cells
    old = rows.old[column]
    kinds, starts, lengths = cells.kinds.copy(), cells.starts.copy(), cells.lengths.copy()
    targets = rows.old_rows[known]
    kinds[targets], starts[targets], lengths[targets] = old.kinds[known], old.starts[known], old.lengths[known]
    return Cells(kinds, starts, lengths)


def names(columns: Sequence[str], arrays: Sequence[pa.Array]) -> pa.RecordBatch:
    """Return a record batch of string columns."""
    schema = pa.schema([pa.field(name, pa.string()) for name in columns])
    return pa.RecordBatch.from_arrays(list(arrays), schema=schema)
