"""Decode runs of logical replication messages into change sets: across rows, never along them.

In flow pieces of the stream as `transactions` cuts them (whole transactions, or parts of a large one); out flow
`ChangeSet`s. Called by the source, inline for small pieces and in a thread for large ones, one call at a time. No I/O:
what a Relation message does not say (type names, nullability) the source looks up beforehand and tells by `learn`.

State between two pieces is what a large transaction needs: its commit position and how many rows came already.
Rejected: decoding message by message, which costs seven times as much.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from contracts.codes import Code
from dataplane.batch import ChangeBatch, ChangeSet, Flags, Op, Position, TableSchema, Truncate
from dataplane.failures import Permanent
from dataplane.sources.postgres import tuples
from dataplane.sources.postgres.messages import (
    BEGIN,
    COMMIT,
    DELETE,
    INSERT,
    MESSAGE,
    ORIGIN,
    POSTGRES_EPOCH_MICROSECONDS,
    RELATION,
    TRUNCATE,
    TYPE,
    UPDATE,
    Relation,
    Run,
    big_endian_32,
    big_endian_64,
    join,
    relation,
    truncated,
)
from dataplane.sources.postgres.moment import Moment, Transactions
from dataplane.sources.postgres.transactions import Piece

_ROW, _BEGIN, _COMMIT, _RELATION, _TRUNCATE, _IGNORED, _UNKNOWN = range(7)

_CLASSES = np.full(256, _UNKNOWN, np.uint8)
for _letter, _class in (
    (INSERT, _ROW),
    (UPDATE, _ROW),
    (DELETE, _ROW),
    (BEGIN, _BEGIN),
    (COMMIT, _COMMIT),
    (RELATION, _RELATION),
    (TRUNCATE, _TRUNCATE),
    (TYPE, _IGNORED),
    (ORIGIN, _IGNORED),
    (MESSAGE, _IGNORED),
):
    _CLASSES[_letter] = _class

_OPS = np.zeros(256, np.uint8)
_OPS[INSERT], _OPS[UPDATE], _OPS[DELETE] = Op.INSERT, Op.UPDATE, Op.DELETE

_LENGTHS_MIN = {BEGIN: 21, COMMIT: 26}
_ROW_BYTES_MIN = 8


@dataclass(slots=True)
class _Open:
    """A large transaction of which some pieces were decoded already."""

    lsn: int
    commit_time: int
    rows: int
    begun: bool
    """Whether a set of it has gone out."""
    transaction: int = 0


class _Places(NamedTuple):
    """For each message of a run: the commit and the number of the row within it."""

    lsns: npt.NDArray[np.uint64]
    times: npt.NDArray[np.int64]
    ordinals: npt.NDArray[np.uint32]
    transactions: Transactions | None = None
    """The numbers of the transactions, while a copy needs them."""

    def position(self, message: int) -> Position:
        return Position(int(self.lsns[message]), int(self.ordinals[message]))


class Undescribed(Exception):
    """Relations came whose rows cannot be decoded before somebody has looked up what their message does not say."""

    def __init__(self, relations: Sequence[Relation]) -> None:
        """`relations` stand in the order in which they came."""
        super().__init__(", ".join(map(_name, relations)))
        self.relations = relations


class Decoder:
    """Turns pieces into change sets. `undecodable_values` counts the values that were not valid UTF-8."""

    def __init__(self, tables: Collection[str]) -> None:
        """Decode the changes of `tables` (schema.table); those of others, which left the pipeline, are left out."""
        self.undecodable_values = 0
        self._tables = frozenset(tables)
        self._skip_before: dict[str, int] = {}
        self._skip_seen: dict[str, Moment] = {}
        self._schemas: dict[Relation, TableSchema] = {}
        self._current: dict[int, Relation] = {}
        self._open: _Open | None = None

    def skip_before(self, table: str, lsn: int) -> None:
        """Leave out what was committed to `table` before `lsn`: a snapshot at that position has it."""
        self._skip_before[table] = lsn

    def skip_seen(self, table: str, moment: Moment | None) -> None:
        """Leave out of `table` what a copy of that moment has; None: nothing any more."""
        if moment is not None:
            self._skip_seen[table] = moment
        else:
            self._skip_seen.pop(table, None)

    def learn(self, seen: Relation, schema: TableSchema) -> None:
        """Say how the rows of a relation are described; `schema` has its columns in the same order."""
        assert len(schema.columns) == len(seen.columns)
        self._schemas[seen] = schema

    def decode(self, piece: Piece) -> ChangeSet | None:
        """Decode one piece. Return None when it changes nothing (empty transactions).

        Raises:
            Undescribed: relations came that `learn` must tell about first; nothing was decoded yet.
            Permanent: a message is not of the protocol, or is cut (Code.SOURCE_PROTOCOL).
        """
        run = join(piece.messages, in_progress=piece.in_progress)
        classes = _CLASSES[run.types]
        self._check(run, classes)
        described = {int(at): relation(_message(run, int(at))) for at in np.flatnonzero(classes == _RELATION)}
        unknown = [seen for seen in described.values() if _name(seen) in self._tables and seen not in self._schemas]
        if unknown:
            raise Undescribed(tuple(dict.fromkeys(unknown)))
        begins = np.flatnonzero(classes == _BEGIN)
        commits = np.flatnonzero(classes == _COMMIT)
        truncates = {int(at): truncated(_message(run, int(at))) for at in np.flatnonzero(classes == _TRUNCATE)}
        weights = (classes == _ROW).astype(np.int64)
        for at, relations in truncates.items():
            weights[at] = len(relations)
        places = self._places(run, begins, weights)
        items = tuple(self._items(run, classes, places, described, truncates))
        begun = self._open is not None and self._open.begun
        self._carry_over(piece, run, begins, weights, begun=begun or bool(items))
        if not items and not (begun and piece.ends):
            return None
        changing = np.flatnonzero(weights)
        if len(changing):
            final = places.position(int(changing[-1]))
            first = places.position(int(changing[0]))
            last = Position(final.lsn, final.ordinal + int(weights[changing[-1]]) - 1)
        else:
            # Only the end of a large transaction: it stands behind its last row.
            first = last = places.position(len(weights) - 1)
        return ChangeSet(
            items=items,
            first=first,
            last=last,
            begins=not begun,
            ends=piece.ends,
            commit_end_lsn=int(big_endian_64(run.buffer, run.starts[commits[-1:]] + 10)[0]) if piece.ends else 0,
            commit_time=int(places.times[-1]),
            transactions=len(commits),
        )

    def _check(self, run: Run, classes: npt.NDArray[np.uint8]) -> None:
        if (classes == _UNKNOWN).any():
            letter = int(run.types[classes == _UNKNOWN][0])
            raise Permanent(Code.SOURCE_PROTOCOL, f"a message of the unknown type {letter:#x} arrived")
        lengths = run.ends - run.starts
        short = (lengths < _ROW_BYTES_MIN) & (classes == _ROW)
        for letter, least in _LENGTHS_MIN.items():
            short |= (run.types == letter) & (lengths < least)
        if short.any():
            raise Permanent(Code.SOURCE_PROTOCOL, "a message is shorter than its form")

    def _places(self, run: Run, begins: npt.NDArray[np.int64], weights: npt.NDArray[np.int64]) -> _Places:
        """Number the rows of each transaction. A Begin already says where and when its transaction commits."""
        carried = self._open or _Open(0, 0, 0, begun=False)
        transaction = np.zeros(len(weights), np.int64)
        transaction[begins] = 1
        transaction = np.cumsum(transaction)
        lsns = np.concatenate(([np.uint64(carried.lsn)], big_endian_64(run.buffer, run.starts[begins] + 1)))
        times = np.concatenate(
            (
                [np.int64(carried.commit_time)],
                big_endian_64(run.buffer, run.starts[begins] + 9).view(np.int64) + POSTGRES_EPOCH_MICROSECONDS,
            )
        )
        before = np.cumsum(weights) - weights
        bases = np.concatenate(([-carried.rows], before[begins]))
        ordinals = (before - bases[transaction]).astype(np.uint32)
        numbers = None
        if self._skip_seen:
            begun = big_endian_32(run.buffer, run.starts[begins] + 17)
            numbers = np.concatenate(([np.uint32(carried.transaction)], begun))[transaction]
        return _Places(lsns[transaction], times[transaction], ordinals, numbers)

    def _carry_over(
        self, piece: Piece, run: Run, begins: npt.NDArray[np.int64], weights: npt.NDArray[np.int64], *, begun: bool
    ) -> None:
        if piece.ends:
            self._open = None
        elif piece.begins:
            if not len(begins):
                raise Permanent(Code.SOURCE_PROTOCOL, "a transaction came without its begin")
            start = run.starts[begins[:1]]
            self._open = _Open(
                lsn=int(big_endian_64(run.buffer, start + 1)[0]),
                commit_time=int(big_endian_64(run.buffer, start + 9).view(np.int64)[0]) + POSTGRES_EPOCH_MICROSECONDS,
                rows=int(weights.sum()),
                begun=begun,
                transaction=int(big_endian_32(run.buffer, start + 17)[0]),
            )
        else:
            assert self._open is not None, "a part of a transaction came without its begin"
            self._open.rows += int(weights.sum())
            self._open.begun = begun

    def _items(
        self,
        run: Run,
        classes: npt.NDArray[np.uint8],
        places: _Places,
        described: dict[int, Relation],
        truncates: dict[int, tuple[int, ...]],
    ) -> Iterator[ChangeBatch | Truncate]:
        """Cut the run where a table changes its shape or is emptied; give the batches between the cuts."""
        start = 0
        for at in sorted((*described, *truncates)):
            seen = described.get(at)
            if seen is not None:
                if self._current.get(seen.id) == seen:
                    continue
                yield from self._batches(run, classes, places, start, at)
                self._current[seen.id] = seen
            else:
                yield from self._batches(run, classes, places, start, at)
                lsn, ordinal = places.position(at)
                for number, relation_id in enumerate(truncates[at]):
                    schema = self._schema(relation_id)
                    if schema is not None and len(self._kept(schema.table, places, np.array([at]))):
                        yield Truncate(schema, Position(lsn, ordinal + number))
            start = at + 1
        yield from self._batches(run, classes, places, start, len(classes))

    def _schema(self, relation_id: int) -> TableSchema | None:
        """Return how the relation is described now, or None when it is not of this pipeline."""
        seen = self._current.get(relation_id)
        if seen is None:
            raise Permanent(Code.SOURCE_PROTOCOL, f"a row of relation {relation_id} came before its description")
        return self._schemas[seen] if _name(seen) in self._tables else None

    def _batches(
        self, run: Run, classes: npt.NDArray[np.uint8], places: _Places, start: int, stop: int
    ) -> Iterator[ChangeBatch]:
        messages = np.flatnonzero(classes[start:stop] == _ROW) + start
        if not len(messages):
            return
        relations = big_endian_32(run.buffer, run.starts[messages] + 1)
        if (relations == relations[0]).all():
            groups = [(int(relations[0]), messages)]
        else:
            values, firsts = np.unique(relations, return_index=True)
            groups = [(int(value), messages[relations == value]) for value in values[np.argsort(firsts)]]
        for relation_id, members in groups:
            schema = self._schema(relation_id)
            if schema is None:
                continue
            kept = self._kept(schema.table, places, members)
            if len(kept):
                yield self._batch(run, places, kept, schema)

    def _kept(self, table: str, places: _Places, messages: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return those messages that no copy of the table has already."""
        least, moment = self._skip_before.get(table), self._skip_seen.get(table)
        if least is not None:
            messages = messages[places.lsns[messages] >= np.uint64(least)]
        if moment is not None and places.transactions is not None:
            messages = messages[~moment.sees(places.transactions[messages])]
        return messages

    def _batch(self, run: Run, places: _Places, messages: npt.NDArray[np.int64], schema: TableSchema) -> ChangeBatch:
        """Decode the row messages of one relation."""
        types = run.types[messages]
        deletes = types == DELETE
        rows = tuples.read(run.buffer, run.starts[messages], run.ends[messages], types == UPDATE, len(schema.columns))
        any_delete = bool(deletes.any())
        arrays: list[pa.Array] = []
        unchanged: dict[int, Flags] = {}
        for index, column in enumerate(schema.columns):
            cells = tuples.take_from_old(rows, index, column.key)
            if cells.all_text and (column.key or not any_delete):
                arrays.append(self._texts(run, cells))
                continue
            valid = cells.kinds == tuples.TEXT
            if any_delete and not column.key:
                valid &= ~deletes
            arrays.append(self._strings(run, cells, valid))
            flags = cells.kinds == tuples.UNCHANGED
            if flags.any():
                unchanged[index] = flags
        old_keys, key_changed = self._old_keys(run, schema, rows, arrays)
        return ChangeBatch(
            table=schema,
            rows=tuples.names([column.name for column in schema.columns], arrays),
            ops=_OPS[types],
            commit_lsns=places.lsns[messages],
            ordinals=places.ordinals[messages],
            commit_times=places.times[messages],
            old_keys=old_keys,
            key_changed=key_changed,
            unchanged=unchanged,
        )

    def _texts(self, run: Run, cells: tuples.Cells) -> pa.Array:
        column, mended = tuples.column(run.buffer, cells)
        self.undecodable_values += mended
        return column

    def _strings(self, run: Run, cells: tuples.Cells, valid: Flags) -> pa.Array:
        lengths = np.where(valid, cells.ends - cells.starts, 0)
        column, mended = tuples.strings(run.buffer, cells.starts, lengths, valid)
        self.undecodable_values += mended
        return column

    def _old_keys(
        self, run: Run, schema: TableSchema, rows: tuples.Rows, arrays: list[pa.Array]
    ) -> tuple[pa.RecordBatch | None, Flags | None]:
        """Return the keys before those Updates that changed them, spread over all rows of the batch.

        An old tuple alone does not say that the key changed: a whole one always comes, and so does a key with a value
        that is stored out of line. So old and new are compared.
        """
        if not len(rows.old_rows):
            return None, None
        count = len(arrays[0])
        keys = [index for index, column in enumerate(schema.columns) if column.key]
        targets = pa.array(rows.old_rows)
        changed = np.zeros(len(rows.old_rows), np.bool_)
        olds = []
        for index in keys:
            cells = rows.old[index]
            old = self._strings(run, cells, cells.kinds == tuples.TEXT)
            new = arrays[index].take(targets)
            same = pc.fill_null(pc.equal(old, new), False).to_numpy(zero_copy_only=False)
            both_null = np.asarray(pc.and_(old.is_null(), new.is_null()).to_numpy(zero_copy_only=False))
            changed |= ~(same | both_null)
            olds.append(old)
        if not changed.any():
            return None, None
        sources = np.full(count, -1, np.int64)
        sources[rows.old_rows[changed]] = np.flatnonzero(changed)
        picks = pa.array(sources, mask=sources < 0)
        flags = np.zeros(count, np.bool_)
        flags[rows.old_rows[changed]] = True
        names = [schema.columns[index].name for index in keys]
        return tuples.names(names, [old.take(picks) for old in olds]), flags


def _name(seen: Relation) -> str:
    return f"{seen.schema}.{seen.name}"


def _message(run: Run, at: int) -> bytes:
    return run.buffer[run.starts[at] : run.ends[at]].tobytes()
