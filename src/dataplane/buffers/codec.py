"""A `ChangeSet` as bytes and back, exactly: what a buffer carries from the source's half to the sink's.

One encoded set is a small msgpack header, which says all that is not a column, followed by one Arrow IPC stream for
each batch. A batch's positions, times, old keys and flags travel as further columns behind its rows; they are found by
their place and not by their name, so a table may have any column names. Decoding copies no column.

Called by buffers; `frames` cuts the bytes into messages. The header starts with a format number, so that halves of
different releases refuse each other instead of misreading.
"""

import struct
from collections.abc import Iterator
from typing import Any

import msgspec
import numpy.typing as npt
import pyarrow as pa
from msgspec import Struct

from contracts.backfilling import Condition
from dataplane.batch import ChangeBatch, ChangeSet, Chunk, Column, KeyRange, Position, TableSchema, Truncate

FORMAT = 3
FORMAT_OF_PARTS = 4
"""Of a copy of a part of a table: a release that reads format 3 alone would empty more than that part."""
_LENGTH = struct.Struct("<I")
_ALIGNMENT = 8
"""Arrow reads its buffers in place only where they are aligned."""


class _Table(Struct, frozen=True, array_like=True):
    schema: str
    name: str
    columns: list[Column]


class _Batch(Struct, frozen=True, array_like=True, tag="b"):
    table: int
    length_bytes: int
    columns: int
    old_columns: int
    """0 when no row changed its key."""
    unchanged: list[int]


class _Truncate(Struct, frozen=True, array_like=True, tag="t"):
    table: int
    position: Position
    for_snapshot: bool
    only: KeyRange | None
    where: tuple[Condition, ...] = ()


class _Header(Struct, frozen=True, array_like=True):
    format: int
    tables: list[_Table]
    items: list[_Batch | _Truncate]
    first: Position
    last: Position
    begins: bool
    ends: bool
    commit_end_lsn: int
    commit_time: int
    transactions: int
    snapshot_of: str | None
    snapshot_ends: bool
    resync: int
    chunk: Chunk | None


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_Header)


def encode(change: ChangeSet) -> bytes:
    """Return the bytes of one set."""
    numbers: dict[TableSchema, int] = {}
    items: list[_Batch | _Truncate] = []
    payloads: list[pa.Buffer] = []
    for item in change.items:
        table = numbers.setdefault(item.table, len(numbers))
        if isinstance(item, Truncate):
            items.append(_Truncate(table, item.position, item.for_snapshot, item.only, item.where))
            continue
        payload = _batch_bytes(item)
        payloads.append(payload)
        items.append(
            _Batch(
                table,
                payload.size,
                item.rows.num_columns,
                item.old_keys.num_columns if item.old_keys is not None else 0,
                sorted(item.unchanged),
            )
        )
    header = _encoder.encode(
        _Header(
            FORMAT_OF_PARTS if change.chunk is not None and change.chunk.part else FORMAT,
            [_Table(table.schema, table.name, list(table.columns)) for table in numbers],
            items,
            change.first,
            change.last,
            change.begins,
            change.ends,
            change.commit_end_lsn,
            change.commit_time,
            change.transactions,
            change.snapshot_of,
            change.snapshot_ends,
            change.resync,
            change.chunk,
        )
    )
    padding = b"\0" * (-(_LENGTH.size + len(header)) % _ALIGNMENT)
    return b"".join([_LENGTH.pack(len(header)), header, padding, *(memoryview(each) for each in payloads)])


def decode(data: bytes | memoryview) -> ChangeSet:
    """Return the set that `encode` was given.

    Raises:
        ValueError: these are not the bytes of a set in this format.
    """
    try:
        (length,) = _LENGTH.unpack_from(data)
        header = _decoder.decode(memoryview(data)[_LENGTH.size : _LENGTH.size + length])
    except (struct.error, msgspec.MsgspecError) as error:
        raise ValueError("a set in the buffer cannot be read") from error
    if header.format not in (FORMAT, FORMAT_OF_PARTS):
        raise ValueError(
            f"a set in the buffer has format {header.format}, and this release reads up to {FORMAT_OF_PARTS}"
        )
    tables = [TableSchema(table.schema, table.name, tuple(table.columns)) for table in header.tables]
    offset = _LENGTH.size + length
    offset += -offset % _ALIGNMENT
    return ChangeSet(
        items=tuple(_items(header, tables, pa.py_buffer(data), offset)),
        first=header.first,
        last=header.last,
        begins=header.begins,
        ends=header.ends,
        commit_end_lsn=header.commit_end_lsn,
        commit_time=header.commit_time,
        transactions=header.transactions,
        snapshot_of=header.snapshot_of,
        snapshot_ends=header.snapshot_ends,
        resync=header.resync,
        chunk=header.chunk,
    )


def _items(
    header: _Header, tables: list[TableSchema], data: pa.Buffer, offset: int
) -> Iterator[ChangeBatch | Truncate]:
    for item in header.items:
        table = tables[item.table]
        if isinstance(item, _Truncate):
            yield Truncate(table, item.position, item.for_snapshot, item.only, item.where)
            continue
        try:
            with pa.ipc.open_stream(data.slice(offset, item.length_bytes)) as reader:
                batch = reader.read_next_batch()
        except (pa.ArrowInvalid, OSError, StopIteration, IndexError) as error:
            raise ValueError("a batch in the buffer cannot be read") from error
        yield _batch(table, item, batch)
        offset += item.length_bytes


def _batch_bytes(batch: ChangeBatch) -> pa.Buffer:
    columns = [
        *batch.rows.columns,
        pa.array(batch.ops),
        pa.array(batch.commit_lsns),
        pa.array(batch.ordinals),
        pa.array(batch.commit_times),
    ]
    fields = [
        *batch.rows.schema,
        *(
            pa.field(f"__pm_{name}", column.type)
            for name, column in zip(("op", "lsn", "ordinal", "time"), columns[batch.rows.num_columns :], strict=True)
        ),
    ]
    if batch.old_keys is not None and batch.key_changed is not None:
        columns += [pa.array(batch.key_changed), *batch.old_keys.columns]
        fields += [pa.field("__pm_key_changed", pa.bool_()), *batch.old_keys.schema]
    for index in sorted(batch.unchanged):
        columns.append(pa.array(batch.unchanged[index]))
        fields.append(pa.field(f"__pm_unchanged_{index}", pa.bool_()))
    schema = pa.schema(fields)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema) as writer:
        writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=schema))
    return sink.getvalue()


def _batch(table: TableSchema, item: _Batch, batch: pa.RecordBatch) -> ChangeBatch:
    place = item.columns
    ops, lsns, ordinals, times = (_numbers(batch.column(place + step)) for step in range(4))
    place += 4
    old_keys = key_changed = None
    if item.old_columns:
        key_changed = _numbers(batch.column(place))
        old_keys = _columns(batch, place + 1, item.old_columns)
        place += 1 + item.old_columns
    return ChangeBatch(
        table=table,
        rows=_columns(batch, 0, item.columns),
        ops=ops,
        commit_lsns=lsns,
        ordinals=ordinals,
        commit_times=times,
        old_keys=old_keys,
        key_changed=key_changed,
        unchanged={index: _numbers(batch.column(place + step)) for step, index in enumerate(item.unchanged)},
    )


def _columns(batch: pa.RecordBatch, start: int, count: int) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays(
        batch.columns[start : start + count],
        schema=pa.schema([batch.schema.field(index) for index in range(start, start + count)]),
    )


def _numbers(column: pa.Array) -> npt.NDArray[Any]:
    array: npt.NDArray[Any] = column.to_numpy(zero_copy_only=False)
    return array
