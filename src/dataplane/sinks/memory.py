"""A destination in this process's memory, under the same law as a database: for tests of whatever feeds a sink.

`Memory` is the destination, `MemorySink` one owner's session on it. Rows live as dictionaries of text values; nothing
here is quick, and nothing is left out of the law: fence, position, whole transactions, ownership of tables, dead letters.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from msgspec.structs import replace

from contracts.backfilling import Comparison
from contracts.codes import Code
from contracts.delivery import OnRefused, OnSchemaChange
from contracts.v2 import PipelineSink
from dataplane.batch import ChangeBatch, ChangeSet, KeyRange, Op, TableSchema, Truncate
from dataplane.checkpoint import Checkpoint, Progress, SourceIdentity
from dataplane.failures import Permanent, RetryLater
from dataplane.sinks import drift, durable, parking, replay
from dataplane.sinks.letters import BEHIND, Cause, DeadLetter, letter
from dataplane.sinks.ownership import Claimed, Ownership
from dataplane.sinks.port import SinkGauges

_STOPS = PipelineSink(connection="memory")

Key = tuple[str | None, ...]
Row = dict[str, str | None]
Tables = dict[str, dict[Key, Row]]

_NUMBERS = frozenset({"smallint", "integer", "bigint", "numeric", "oid"})


@dataclass
class Memory:
    """The destination: its tables, keyed by `schema.table` and each row's key, and the pipelines' checkpoints."""

    tables: Tables = field(default_factory=dict)
    checkpoints: dict[str, Checkpoint] = field(default_factory=dict)
    owners: dict[str, str] = field(default_factory=dict)
    epochs: int = 0
    refuses: Callable[[str, Row], bool] = lambda table, row: False
    """Whether a table takes a row: what a constraint is to a database."""
    letters: dict[str, list[DeadLetter]] = field(default_factory=dict)
    """The pipelines' dead letters, oldest first."""
    columns: dict[str, frozenset[str]] = field(default_factory=dict)
    """The columns that each table was made with or given."""
    shapes: dict[str, dict[str, drift.Known]] = field(default_factory=dict)
    """The shapes that each pipeline's tables are known by, where it is to pause at another one."""

    def rows(self, table: str) -> dict[Key, Row]:
        """Return what the table holds; other sessions see no open transaction."""
        return self.tables.get(table, {})


class MemorySink:
    """One owner's session on a `Memory`."""

    def __init__(
        self, memory: Memory, *, pipeline_id: str, ownership: Ownership, settings: PipelineSink = _STOPS
    ) -> None:
        self._memory = memory
        self._pipeline_id = pipeline_id
        self._ownership = ownership
        self._settings = settings
        self._letters: list[DeadLetter] = []
        self._letters_total = 0
        self._ignored: dict[str, int] = {}
        self._guard: drift.ShapeGuard | None = None
        self._epoch = 0
        self._draft: Tables | None = None
        self._rows = 0
        self._transactions = 0
        self._chunk = 0

    async def open(self) -> Checkpoint | None:
        """Claim the pipeline."""
        row = self._memory.checkpoints.get(self._pipeline_id)
        self._ownership.check(Claimed(row.epoch, self._memory.owners[self._pipeline_id]) if row else None)
        held = await self.load()
        self._memory.epochs += 1
        self._epoch = self._ownership.epoch = self._memory.epochs
        self._memory.owners[self._pipeline_id] = self._ownership.owner
        self._memory.checkpoints[self._pipeline_id] = replace(held or durable.nothing(0), epoch=self._epoch)
        self._draft = None
        self._rows = self._transactions = self._letters_total = self._chunk = 0
        known = self._memory.shapes.get(self._pipeline_id, {})
        pauses = self._settings.on_schema_change is OnSchemaChange.PAUSE
        self._guard = drift.ShapeGuard(known, self._settings.resumes) if pauses else None
        if not pauses:
            self._memory.shapes.pop(self._pipeline_id, None)
        return await self.load()

    @property
    def gauges(self) -> SinkGauges:
        """As the port says."""
        count = len(self._memory.letters.get(self._pipeline_id, ()))
        ignored = sum(self._ignored.values())
        return SinkGauges(dead_letters=count, dead_letters_total=self._letters_total, columns_ignored=ignored)

    async def look_again(self) -> None:
        """Nothing is remembered that could be out of date."""

    async def load(self) -> Checkpoint | None:
        """Return the checkpoint."""
        held = self._memory.checkpoints.get(self._pipeline_id)
        return None if held is None or held == durable.nothing(held.epoch) else held

    async def begin(self, source: SourceIdentity) -> None:
        """Start over with a new source identity."""
        held = self._held()
        fresh = durable.nothing(self._epoch)
        self._memory.checkpoints[self._pipeline_id] = replace(fresh, source=source, tables_owned=held.tables_owned)

    async def advance(self, confirmed_through: int) -> None:
        """Raise what the source may be told."""
        held = self._held()
        highest = max(held.confirmed_through, confirmed_through)
        self._memory.checkpoints[self._pipeline_id] = replace(held, confirmed_through=highest)

    async def follow(self, source: SourceIdentity, confirmed_through: int) -> None:
        """Go on with the same source under another identity."""
        held = self._held()
        self._memory.checkpoints[self._pipeline_id] = replace(held, source=source, confirmed_through=confirmed_through)

    async def forget(self) -> None:
        """Delete the checkpoint."""
        self._held()
        self._memory.letters.pop(self._pipeline_id, None)
        self._memory.shapes.pop(self._pipeline_id, None)
        del self._memory.checkpoints[self._pipeline_id]
        self._ownership.epoch = 0

    def _held(self) -> Checkpoint:
        held = self._memory.checkpoints.get(self._pipeline_id)
        if held is None or held.epoch != self._epoch:
            raise RetryLater(Code.SINK_FENCED, "a newer owner has claimed this pipeline")
        return held

    async def apply(self, change: ChangeSet) -> Progress | None:
        """Apply one set to a draft; with `ends` the draft becomes the destination."""
        held = self._held()
        unseen = replay.unseen(change, held.position, held.tables_copied, held.cursors)
        if unseen is not None:
            self._stop_at_new_shape(unseen, held)
        if unseen is not None:
            held = self._write(unseen, held)
        if not change.ends or (unseen is None and self._draft is not None):
            return None
        if unseen is None:
            held = replace(held, confirmed_through=max(held.confirmed_through, change.commit_end_lsn))
        else:
            held = durable.after(held, unseen)
        self._commit(held)
        self._chunk = durable.newest_chunk(self._chunk, change)
        progress = durable.progress(
            held, change.commit_time, rows=self._rows, transactions=self._transactions, chunk=self._chunk
        )
        self._draft, self._rows, self._transactions = None, 0, 0
        return progress

    def _stop_at_new_shape(self, change: ChangeSet, held: Checkpoint) -> None:
        verdict = self._guard.judge(change) if self._guard is not None else None
        if verdict is None:
            return
        known = self._memory.shapes.setdefault(self._pipeline_id, {})
        known |= {name: each for name, (_, each) in verdict.learned.items()}
        if verdict.stop is None:
            return
        if verdict.front is not None:
            self._commit(durable.after(self._write(verdict.front, held), verdict.front))
        self._draft = None
        known[verdict.stop.table.table] = verdict.stop.known
        where, column = verdict.stop.table.table, verdict.stop.column
        raise Permanent(Code.SCHEMA_CHANGED, "the table's shape has changed", table=where, column=column)

    def _commit(self, held: Checkpoint) -> None:
        """Make the draft the destination."""
        self._memory.checkpoints[self._pipeline_id] = held
        if self._draft is not None:
            self._memory.tables.update(self._draft)
            before = self._memory.letters.get(self._pipeline_id, [])
            self._letters_total += sum(each not in before for each in self._letters)
            self._memory.letters[self._pipeline_id] = self._letters

    def _carried(self, batch: ChangeBatch) -> ChangeBatch:
        """Return the batch with the columns that the table has, or has been given for it."""
        table = batch.table
        names = frozenset(column.name for column in table.columns)
        held = self._memory.columns.setdefault(table.table, names)
        if self._settings.on_schema_change is not OnSchemaChange.IGNORE:
            self._memory.columns[table.table] = held | names
            return batch
        self._ignored[table.table] = len(names - held)
        kept = tuple(column for column in table.columns if column.name in held)
        return drift.narrowed(batch, TableSchema(table.schema, table.name, kept))

    def _write(self, change: ChangeSet, held: Checkpoint) -> Checkpoint:
        if self._draft is None:
            self._draft, self._letters = {}, list(self._memory.letters.get(self._pipeline_id, ()))
        for item in change.items:
            if isinstance(item, Truncate):
                if item.for_snapshot:
                    held = self._own(item.table, held)
                self._clear(item)
                if item.only is None or item.for_snapshot:
                    self._letters = [each for each in self._letters if each.table.table != item.table.table]
            else:
                self._write_batch(self._carried(item), tolerant=item.table.table in held.unsettled)
        self._rows += change.row_count
        self._transactions += change.transactions
        return held

    def _own(self, table: TableSchema, held: Checkpoint) -> Checkpoint:
        if table.table in held.tables_owned:
            return held
        if self._memory.rows(table.table):
            raise Permanent(Code.SINK_TABLE_NOT_EMPTY, "the table has rows already", table=table.table)
        self._memory.columns[table.table] = frozenset(column.name for column in table.columns)
        held = replace(held, tables_owned=[*held.tables_owned, table.table])
        self._memory.checkpoints[self._pipeline_id] = held
        self._memory.tables.setdefault(table.table, {})
        return held

    def _clear(self, item: Truncate) -> None:
        only = item.only
        if only is None:
            assert self._draft is not None
            self._draft[item.table.table] = {}
            return
        rows = self._drafted(item.table)
        for key in [key for key in rows if is_within(key, only, item.table) and is_meant(key, item)]:
            del rows[key]

    def _drafted(self, table: TableSchema) -> dict[Key, Row]:
        assert self._draft is not None
        if table.table not in self._draft:
            if table.table not in self._memory.tables:
                raise Permanent(Code.SINK_TABLE_MISMATCH, "the table is gone from the destination", table=table.table)
            self._draft[table.table] = {key: dict(row) for key, row in self._memory.tables[table.table].items()}
        return self._draft[table.table]

    def _write_batch(self, batch: ChangeBatch, *, tolerant: bool) -> None:
        name = batch.table.table
        held = self._drafted(batch.table)
        old_keys = batch.old_keys.to_pylist() if batch.old_keys is not None else None
        keys = parking.Keys(batch)
        parked = {key for each in self._letters if each.table.table == name for key in each.keys}
        for number, row in enumerate(batch.rows.to_pylist()):
            cause = BEHIND if keys.is_behind(number, parked) else self._refusal(batch, number, row)
            if cause is not None:
                self._park(letter(batch, number, keys.of(number), cause))
                parked.update(keys.of(number))
                continue
            key = tuple(row[column] for column in batch.table.key)
            former = key
            if old_keys is not None and batch.key_changed is not None and batch.key_changed[number]:
                former = tuple(old_keys[number].values())
            before = held.pop(former, None)
            if batch.ops[number] == Op.DELETE:
                continue
            left = [column for column, flags in batch.unchanged.items() if flags[number]]
            if left and before is None and tolerant:
                continue
            for column in left:
                if before is None:
                    raise Permanent(Code.SINK_ROW_MISSING, "an update found no row of its key", table=name)
                row[batch.table.columns[column].name] = before[batch.table.columns[column].name]
            held[key] = {**(before or {}), **row} if batch.ops[number] == Op.UPDATE else row

    def _refusal(self, batch: ChangeBatch, number: int, row: Row) -> Cause | None:
        """Return why the destination refuses a row, if it becomes a letter for that."""
        name = batch.table.table
        if batch.ops[number] == Op.DELETE or not self._memory.refuses(name, row):
            return None
        if self._settings.on_refused is OnRefused.STOP:
            raise Permanent(Code.SINK_CONSTRAINT, "the table does not take this row", table=name)
        return Cause(code=Code.SINK_CONSTRAINT, message="the table does not take this row")

    def _park(self, each: DeadLetter) -> None:
        if len(self._letters) >= self._settings.dead_letters_max:
            raise Permanent(Code.DEAD_LETTERS_FULL, "no more dead letters are allowed", table=each.table.table)
        self._letters.append(each)

    async def close(self) -> None:
        """Drop what is open."""
        self._draft = None


def is_within(key: Key, only: KeyRange, table: TableSchema) -> bool:
    """Compare keys as a database does whose key columns are numbers or plain texts."""
    types = [column.type for column in table.columns if column.key]

    def order(values: Sequence[str | None]) -> list[Decimal | str]:
        return [_ordered(value, type_) for value, type_ in zip(values, types, strict=True)]

    return (only.after is None or order(key) > order(only.after)) and (
        only.upto is None or order(key) <= order(only.upto)
    )


def is_meant(key: Key, item: Truncate) -> bool:
    """Say whether a key matches the conditions of a barrier."""
    columns = [column for column in item.table.columns if column.key]
    values = {column.name: _ordered(value, column.type) for column, value in zip(columns, key, strict=True)}
    types = {column.name: column.type for column in columns}
    return all(
        _matches(values[each.column], each.comparison, [_ordered(value, types[each.column]) for value in each.values])
        for each in item.where
    )


def _ordered(value: str | None, type_: str) -> Decimal | str:
    return Decimal(str(value)) if type_ in _NUMBERS else str(value)


def _matches(value: Any, comparison: Comparison, values: Sequence[Any]) -> bool:
    match comparison:
        case Comparison.EQUAL | Comparison.IN:
            return value in values
        case Comparison.NOT_EQUAL:
            return value not in values
        case Comparison.BELOW:
            return bool(value < values[0])
        case Comparison.UP_TO:
            return bool(value <= values[0])
        case Comparison.ABOVE:
            return bool(value > values[0])
        case Comparison.FROM:
            return bool(value >= values[0])
        case Comparison.BETWEEN:
            return bool(values[0] <= value <= values[1])
        case Comparison.IS_NULL:
            return False  # no column of a key is
        case Comparison.IS_NOT_NULL:
            return True
