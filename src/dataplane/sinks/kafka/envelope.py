"""A batch of changes → the records of a topic: keys and values as bytes, in the batch's order.

In flows a `ChangeBatch`; out flow `Records`. Called by `delivery`. Pure, and column by column: a record's JSON is made by
joining columns, never by walking rows.

`debezium_json` is Debezium's envelope without schemas, as its PostgreSQL connector writes it with `tombstones.on.delete`:
`before`, `after`, `source`, `op` (`r` of a copy, `c`, `u`, `d`, `t`) and `ts_ms`. A table's replica identity gives no old
row but its key, so `before` is null for an update and holds the key for a delete. A value that the source did not send
because it did not change is `__debezium_unavailable_value`.

`json` is the row alone; a delete is a tombstone; a value that the source did not send is left out.

In both the record's key is the row's key as a JSON object, and null for a table without one. A row whose key changed is
a delete of the old key, and then a row with the new one.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from contracts.kafka import Format
from dataplane.batch import ChangeBatch, Column, Op, Position, TableSchema
from dataplane.sinks.kafka import jsontext

UNAVAILABLE = "__debezium_unavailable_value"
CONNECTOR = "postgresql"

_BEFORE, _BETWEEN, _SELF, _AFTER = 0, 1, 2, 3
"""What a row becomes, in this order: the delete of its old key, the tombstone of that, itself, and its own tombstone."""


@dataclass(frozen=True, slots=True)
class Records:
    """Records of one topic, in order. A value of None is a tombstone; `keys` is None for a table without a key."""

    keys: pa.BinaryArray | None
    values: pa.BinaryArray

    def __len__(self) -> int:
        return len(self.values)


@dataclass(frozen=True, slots=True)
class Origin:
    """What a Debezium envelope says of where rows come from: the connector's logical name, and the database."""

    name: str
    database: str


def records(batch: ChangeBatch, format_: Format, origin: Origin, *, copied: bool) -> Records:
    """Return the records of a batch; `copied` says that its rows are of a table's copy."""
    keys = _keys(batch.table, batch.rows)
    removed = batch.ops == Op.DELETE
    moved = batch.key_changed if batch.key_changed is not None else np.zeros(len(batch), dtype=np.bool_)
    if format_ is Format.JSON:
        values = _blanked(_object(batch, leave_out=True), removed)
        return _arranged(len(batch), [(keys, values, None, _SELF), (_old_keys(batch), None, moved & ~removed, _BEFORE)])
    envelopes = _Envelopes(batch, origin)
    written = envelopes.write(copied=copied)
    parts: list[_Part] = [(keys, written, None, _SELF), (keys, None, removed, _AFTER)]
    if moved.any():
        old = _old_keys(batch)
        parts += [(old, envelopes.write_removals(), moved & ~removed, _BEFORE), (old, None, moved & ~removed, _BETWEEN)]
    return _arranged(len(batch), parts)


def emptied(table: TableSchema, format_: Format, origin: Origin, position: Position, commit_time: int) -> bytes | None:
    """Return the value that says a table was emptied; None where the format has no word for it."""
    if format_ is Format.JSON:
        return None
    source = _source(table, origin, copied=False)
    return (
        f'{{"before":null,"after":null,{source}"lsn":{position.lsn},"ordinal":{position.ordinal},'
        f'"ts_ms":{commit_time // 1000}}},"op":"t","ts_ms":{commit_time // 1000}}}'
    ).encode()


_Part = tuple[pa.StringArray | None, pa.StringArray | None, npt.NDArray[np.bool_] | None, int]
"""Keys, values (None: tombstones), which rows have it (None: all), and where it stands within its row."""


def _arranged(count: int, parts: list[_Part]) -> Records:
    """Put what `count` rows become in the rows' order."""
    wanted = [(part, np.arange(count) if part[2] is None else np.flatnonzero(part[2])) for part in parts]
    wanted = [(part, numbers) for part, numbers in wanted if len(numbers)]
    if len(wanted) == 1:
        # Only what every row has can be alone.
        keys, values, _, _ = wanted[0][0]
        return Records(_binary(keys), _binary(values))
    order = np.argsort(np.concatenate([numbers * 4 + part[3] for part, numbers in wanted]), kind="stable")
    keyless = wanted[0][0][0] is None
    keys = None if keyless else pa.concat_arrays([_taken(part[0], numbers) for part, numbers in wanted])
    values = pa.concat_arrays([_taken(part[1], numbers) for part, numbers in wanted])
    taken = pa.array(order)
    return Records(_binary(None if keys is None else keys.take(taken)), _binary(values.take(taken)))


def _taken(values: pa.StringArray | None, numbers: npt.NDArray[np.int64]) -> pa.StringArray:
    if values is None:
        return pa.nulls(len(numbers), pa.string())
    return values if len(values) == len(numbers) else values.take(pa.array(numbers))


def _binary(values: pa.StringArray | None) -> pa.BinaryArray | None:
    return None if values is None else values.cast(pa.binary())


def _keys(table: TableSchema, rows: pa.RecordBatch) -> pa.StringArray | None:
    columns = [(column, rows.column(number)) for number, column in enumerate(table.columns) if column.key]
    return _joined([("{", columns, "}")]) if columns else None


def _old_keys(batch: ChangeBatch) -> pa.StringArray | None:
    if batch.old_keys is None:
        return None
    columns = [column for column in batch.table.columns if column.key]
    return _joined([("{", list(zip(columns, batch.old_keys.columns, strict=True)), "}")])


def _joined(objects: list[tuple[str, list[tuple[Column, pa.StringArray]], str]]) -> pa.StringArray:
    """Return JSON made of objects: each has what stands before its first field, its fields, and what stands behind."""
    pieces: list[str | pa.StringArray] = []
    for front, columns, back in objects:
        pieces.append(front)
        for number, (column, values) in enumerate(columns):
            pieces += [f"{',' if number else ''}{_name(column)}:", jsontext.converter(column.type)(values)]
        pieces.append(back)
    return pc.binary_join_element_wise(*pieces, "")


def _name(column: Column) -> str:
    return jsontext.quoted(pa.array([column.name]))[0].as_py()  # type: ignore[no-any-return]


def _fields(batch: ChangeBatch, *, leave_out: bool) -> list[str | pa.StringArray]:
    """Return the pieces of a row's fields; a value that was not sent is left out, or is Debezium's word for that."""
    pieces: list[str | pa.StringArray] = []
    # Keys were always sent: with one of them first, every other field can bring its own comma.
    for number, column in sorted(enumerate(batch.table.columns), key=lambda each: not each[1].key):
        values = jsontext.converter(column.type)(batch.rows.column(number))
        name = f"{',' if pieces else ''}{_name(column)}:"
        absent = batch.unchanged.get(number)
        if absent is None:
            pieces += [name, values]
        elif leave_out:
            field = pc.binary_join_element_wise(name, values, "")
            pieces.append(pc.if_else(pa.array(absent), "", field))
        else:
            pieces += [name, pc.if_else(pa.array(absent), f'"{UNAVAILABLE}"', values)]
    return pieces


def _object(batch: ChangeBatch, *, leave_out: bool) -> pa.StringArray:
    return pc.binary_join_element_wise("{", *_fields(batch, leave_out=leave_out), "}", "")


def _blanked(values: pa.StringArray, away: npt.NDArray[np.bool_]) -> pa.StringArray:
    return pc.if_else(pa.array(away), pa.scalar(None, pa.string()), values) if away.any() else values


def _source(table: TableSchema, origin: Origin, *, copied: bool) -> str:
    """Return the constant front of an envelope's `source`."""
    schema, name, database, logical = (
        jsontext.quoted(pa.array([each]))[0].as_py()
        for each in (table.schema, table.name, origin.database, origin.name)
    )
    snapshot = "true" if copied else "false"
    return (
        f'"source":{{"connector":"{CONNECTOR}","name":{logical},"snapshot":"{snapshot}","db":{database},'
        f'"schema":{schema},"table":{name},'
    )


class _Envelopes:
    """Debezium's envelopes of one batch."""

    def __init__(self, batch: ChangeBatch, origin: Origin) -> None:
        self._batch = batch
        self._origin = origin
        milliseconds = _texts(batch.commit_times // 1000)
        self._places = [
            '"lsn":', _texts(batch.commit_lsns), ',"ordinal":', _texts(batch.ordinals), ',"ts_ms":', milliseconds,
        ]  # fmt: skip
        self._milliseconds = milliseconds

    def write(self, *, copied: bool) -> pa.StringArray:
        """Return each row's own envelope."""
        batch = self._batch
        removed = batch.ops == Op.DELETE
        after = _object(batch, leave_out=False)
        op: str | pa.StringArray = "r"
        if not copied:
            # Under its new key the row is one that consumers have never seen.
            ops = batch.ops if batch.key_changed is None else np.where(batch.key_changed, Op.INSERT, batch.ops)
            op = pa.DictionaryArray.from_arrays(ops.astype(np.int8), ["c", "u", "d"]).cast(pa.string())
        before: str | pa.StringArray = "null"
        if removed.any():
            gone = pa.array(removed)
            before = pc.if_else(gone, self._whole(batch.rows), "null")
            after = pc.if_else(gone, "null", after)
        return self._enveloped(before, after, op, copied=copied)

    def write_removals(self) -> pa.StringArray:
        """Return the delete of each row's old key."""
        assert self._batch.old_keys is not None
        return self._enveloped(self._whole(self._batch.old_keys), "null", "d", copied=False)

    def _whole(self, held: pa.RecordBatch) -> pa.StringArray:
        """Return objects with all columns of the table, of which `held` may have only some: the others are null."""
        empty = pa.nulls(len(self._batch), pa.string())
        names = held.schema.names
        columns = [
            (column, held.column(names.index(column.name)) if column.key else empty)
            for column in self._batch.table.columns
        ]
        return _joined([("{", columns, "}")])

    def _enveloped(
        self,
        before: str | pa.StringArray,
        after: str | pa.StringArray,
        op: str | pa.StringArray,
        *,
        copied: bool,
    ) -> pa.StringArray:
        source = _source(self._batch.table, self._origin, copied=copied)
        pieces = [
            '{"before":', before, ',"after":', after, ",", source, *self._places, '},"op":"', op, '","ts_ms":',
            self._milliseconds, "}",
        ]  # fmt: skip
        return pc.binary_join_element_wise(*pieces, "")


def _texts(numbers: npt.NDArray[np.generic]) -> pa.StringArray:
    return pa.array(numbers).cast(pa.string())
