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
import pyarrow.compute as pc

from contracts.codes import Code
from dataplane.batch import Flags
from dataplane.failures import Permanent
from dataplane.sources.postgres.messages import Bytes, Offsets, words

NULL, UNCHANGED, TEXT = (ord(letter) for letter in "nut")
NEW, KEY, OLD = (ord(letter) for letter in "NKO")

SINGLY_MAX = 16

_NOTHING = np.empty(0, np.uint8)
_BELOW_HEAD = np.uint64(24)
_TEXT_HEAD = np.uint64(TEXT << 32)
_LENGTH_MAX = (1 << 32) - 1
"""Of the eight bytes at a value the first five are its letter and its length."""

TUPLE_HEADER_BYTES = 3
"""The letter that says which tuple it is, and the number of its columns."""


@dataclass(slots=True)
class Cells:
    """Where the values of one column lie, for all rows, from `starts` to `ends`: `kinds` are the letters of the protocol.

    A value that is not text has no length and starts where it would stand. `all_text` says that there is none.
    """

    kinds: Bytes
    starts: Offsets
    ends: Offsets
    all_text: bool = False


def walk(buffer: Bytes, at: Offsets, column_count: int) -> tuple[list[Cells], Offsets]:
    """Walk along the tuples whose first columns start at `at`. Return their cells and where each tuple ends.

    Raises:
        Permanent: a value is of a kind that we did not ask for (Code.SOURCE_PROTOCOL).
    """
    view = words(buffer)
    limit = len(view) - 1
    cells: list[Cells] = []
    if not len(at):
        return [Cells(_NOTHING, at, at, all_text=True)] * column_count, at
    texts = np.full(len(at), TEXT, np.uint8)
    for _ in range(column_count):
        if int(at.max()) > limit:
            raise Permanent(Code.SOURCE_PROTOCOL, "a row is longer than its message")
        word = view[at]
        word.byteswap(inplace=True)
        word >>= _BELOW_HEAD
        word -= _TEXT_HEAD
        # Now it is the length alone, unless the letter was another one: then it is larger than any length.
        if int(word.max()) <= _LENGTH_MAX:
            starts = at + 5
            at = starts + word.view(np.int64)
            cells.append(Cells(texts, starts, at, all_text=True))
        else:
            kinds = ((word + _TEXT_HEAD) >> np.uint64(32)).astype(np.uint8)
            text = kinds == TEXT
            if not (text | (kinds == NULL) | (kinds == UNCHANGED)).all():
                raise Permanent(Code.SOURCE_PROTOCOL, "a value is neither text, nor null, nor unchanged")
            word[~text] = 0
            starts = at + np.where(text, 5, 1)
            at = starts + word.view(np.int64)
            cells.append(Cells(kinds, starts, at))
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
    return _gathered(buffer, starts, starts + lengths, pa.binary())


def _gathered(buffer: Bytes, starts: Offsets, ends: Offsets, kind: pa.DataType) -> pa.Array:
    """Return the values as they are, as a column of this kind. As a string it was not looked at yet."""
    count = len(starts)
    if count <= SINGLY_MAX:
        # A few values are copied sooner than Arrow's machinery is set up.
        whole = buffer.data
        values = [bytes(whole[at:end]) for at, end in zip(starts.tolist(), ends.tolist(), strict=True)]
        return pa.array(values, pa.binary()).view(kind)
    bounds = np.empty(2 * count, np.int32)
    bounds[0::2] = starts
    bounds[1::2] = ends
    source = pa.Array.from_buffers(
        kind, 2 * count - 1, [None, pa.py_buffer(bounds), pa.py_buffer(buffer)], null_count=0
    )
    return pc.call_function("take", [source, _evens(count)], _UNCHECKED)


_UNCHECKED = pc.TakeOptions(boundscheck=False)
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


def column(buffer: Bytes, cells: Cells) -> tuple[pa.Array, int]:
    """Return a column whose values are all text, and how many of them had to be mended, as `labelled` does."""
    return _mended(_gathered(buffer, cells.starts, cells.ends, pa.string()))


def _mended(column: pa.Array) -> tuple[pa.Array, int]:
    data = column.buffers()[2]
    # What has no byte above 127 is valid, whatever the values; asking that of all at once costs a tenth.
    if data is None or not data.size or int(np.frombuffer(data, np.int8).min()) >= 0:
        return column, 0
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
    kinds, starts, ends = cells.kinds.copy(), cells.starts.copy(), cells.ends.copy()
    targets = rows.old_rows[known]
    kinds[targets], starts[targets], ends[targets] = old.kinds[known], old.starts[known], old.ends[known]
    return Cells(kinds, starts, ends)


def names(columns: Sequence[str], arrays: Sequence[pa.Array]) -> pa.RecordBatch:
    """Return a record batch of string columns."""
    schema = pa.schema([pa.field(name, pa.string()) for name in columns])
    return pa.RecordBatch.from_arrays(list(arrays), schema=schema)
