"""A source's server without a server: a log of transactions, what its tables held after each, slots, and sessions on it.

`FakeSource` obeys the law of its port: it resumes where its slot is and gives whole transactions, some of them joined as
they would arrive; where copies are asked for, it plans them with the source's own plan and puts their chunks between
transactions, each read at a later moment than all that it has given. Tables are ORDERS and LINES.
"""

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random
from types import MappingProxyType

import numpy as np
from msgspec import structs
from tests.dataplane.buffers.changes import ORDERS, rows_of

from dataplane.batch import START, ChangeBatch, ChangeSet, Chunk, Key, KeyRange, Op, Position, TableSchema, Truncate
from dataplane.checkpoint import Checkpoint, CheckpointStore, Cursor, SourceIdentity
from dataplane.sinks.memory import Memory
from dataplane.sinks.replay import pick
from dataplane.sources.port import SourceGauges
from dataplane.sources.postgres import publication
from dataplane.worker.joining import join, joinable

PIPELINE = "pipeline-1"
IDENTITY = SourceIdentity(system_identifier="1", timeline=1, database="shop", slot="pm_1", publication="pm_1")
LINES = TableSchema("public", "lines", ORDERS.columns)
TABLES = {each.table: each for each in (ORDERS, LINES)}
KEY = ["id bigint"]
CHUNK_ROWS_MAX = 5
PIECE_TRANSACTIONS_MAX = 4

Point = Callable[[str], Awaitable[None]]
Rows = Mapping[str, str | None]
"""A table's notes by their ids."""


class Origin:
    """The source's server: a log of transactions, each a list of sets, and what it was told as flushed."""

    def __init__(self) -> None:
        self.log: list[list[ChangeSet]] = []
        self.slots: dict[str, int] = {}
        """How far each was told that it may forget."""
        self.slot_numbers = itertools.count(1)
        self.more = asyncio.Event()
        self.states: dict[int, dict[str, dict[str, str | None]]] = {0: {table: {} for table in TABLES}}
        """What the tables held after each transaction, by its end."""
        self.violations: list[str] = []

    @property
    def flushed(self) -> int:
        return max(self.slots.values(), default=0)

    def must(self, holds: bool, otherwise: str) -> None:
        """Note what must never be: a worker takes what is raised for a mistake of ours, and tries again."""
        if not holds:
            self.violations.append(otherwise)
            raise AssertionError(otherwise)

    def commit(self, *transactions: list[ChangeSet]) -> None:
        for transaction in transactions:
            self.states[transaction[-1].commit_end_lsn] = _after(self.states[self.end], transaction)
            self.log.append(transaction)
        self.more.set()

    @property
    def end(self) -> int:
        return self.log[-1][-1].commit_end_lsn if self.log else 0


def _after(before: dict[str, dict[str, str | None]], transaction: list[ChangeSet]) -> dict[str, dict[str, str | None]]:
    after = {table: dict(rows) for table, rows in before.items()}
    for change in transaction:
        for item in change.items:
            if isinstance(item, Truncate):
                after[item.table.table].clear()
            else:
                change_rows(after[item.table.table], item)
    return after


def change_rows(rows: dict[str, str | None], batch: ChangeBatch) -> None:
    """Do to a table's rows what a batch says."""
    keys, notes = (column.to_pylist() for column in batch.rows.columns)
    old = batch.old_keys.column(0).to_pylist() if batch.old_keys is not None else keys
    moved = batch.key_changed if batch.key_changed is not None else np.zeros(len(batch), np.bool_)
    kept = batch.unchanged.get(1, np.zeros(len(batch), np.bool_))
    for number, op in enumerate(batch.ops.tolist()):
        before = rows.pop(old[number] if moved[number] else keys[number], None)
        if op != Op.DELETE:
            rows[keys[number]] = before if kept[number] else notes[number]


@dataclass
class Copy:
    """A table's copy in one session."""

    table: str
    number: int
    resync: int
    index: int = 0
    last: Key | None = None
    moment: int | None = None
    through: int = 0
    read: bool = False
    settled: bool = False

    @staticmethod
    def of(plan: publication.CopyPlan) -> "Copy":
        copy, cursor = Copy(plan.table, plan.copy, plan.resync), plan.cursor
        if cursor is not None:
            copy.resume(cursor)
        return copy

    def resume(self, cursor: Cursor) -> None:
        self.index, self.through, self.read = cursor.chunks, cursor.through, cursor.read
        self.last = None if cursor.last is None else tuple(cursor.last)
        self.moment = None if cursor.moment is None else int(cursor.moment)


def copied(schema: TableSchema, rows: Rows, position: Position) -> ChangeBatch:
    """Return rows of a copy that stands at `position`."""
    count = len(rows)
    return ChangeBatch(
        table=schema,
        rows=rows_of([int(key) for key in rows], list(rows.values())),
        ops=np.full(count, Op.INSERT, dtype=np.uint8),
        commit_lsns=np.full(count, position.lsn, dtype=np.uint64),
        ordinals=np.full(count, position.ordinal, dtype=np.uint32),
        commit_times=np.zeros(count, dtype=np.int64),
    )


class FakeSource:
    """A session on an `Origin`. Without `resyncs` its tables count as copied; else they are copied, and as it says again."""

    def __init__(
        self, origin: Origin, destination: Memory, point: Point, resyncs: Mapping[str, int] | None, random: Random
    ) -> None:
        self._origin = origin
        self._destination = destination
        self._point = point
        self._resyncs = resyncs
        self._random = random
        self._copies: list[Copy] = []
        self._slot = ""
        self._position = START
        self._passed = 0
        self._given = 0
        self._begun = False
        """Of the transaction that is given out in parts, something went out."""
        self.gauges = SourceGauges(tables_total=1, tables_copied=1)

    async def open(self, checkpoints: CheckpointStore) -> None:
        await self._point("source.open")
        checkpoint = await checkpoints.load()
        wanted, origin = list(TABLES), self._origin
        resyncs = self._resyncs if self._resyncs is not None else MappingProxyType({})
        afresh = publication.behind(wanted, resyncs, checkpoint) == set(wanted)
        if afresh or checkpoint is None or checkpoint.source is None or self._arrived_nothing(checkpoint):
            await self._start_over(checkpoints, publication.afresh(wanted, resyncs))
        else:
            seen = publication.PublicationSeen(frozenset(wanted), None, True)
            self._copies = [Copy.of(each) for each in publication.plan(wanted, resyncs, seen, checkpoint).copies]
            self._slot = checkpoint.source.slot
            if self._resyncs is None:
                origin.slots.setdefault(self._slot, 0)  # one of before had died when it was to make it
            self._position, self._passed = checkpoint.position, origin.slots.get(self._slot, 0)
            origin.must(self._slot in origin.slots, f"nobody has made the slot {self._slot} of the checkpoint")
        if self._resyncs is None:
            self._copies = []
        await self._point("source.opened")

    def _arrived_nothing(self, checkpoint: Checkpoint) -> bool:
        return self._resyncs is not None and not checkpoint.snapshot_done and not checkpoint.cursors

    async def _start_over(self, checkpoints: CheckpointStore, plan: publication.Plan) -> None:
        origin = self._origin
        self._slot = f"pm_{next(origin.slot_numbers)}"
        await checkpoints.begin(structs.replace(IDENTITY, slot=self._slot))
        await self._point("source.begun")
        # Where nothing is copied all of the log counts, also what was there before.
        origin.slots[self._slot] = self._passed = origin.end if self._resyncs is not None else 0
        await checkpoints.advance(self._passed)
        self._copies = [Copy.of(each) for each in plan.copies]

    # ---- giving -------------------------------------------------------------------------------------------------

    async def changes(self) -> AsyncIterator[ChangeSet]:
        log = self._origin.log
        ends = (number for number, each in enumerate(log) if each[-1].commit_end_lsn > self._passed)
        place = next(ends, len(log))
        while True:
            while self._unsettled and (place == len(log) or self._random.random() < 0.4):
                async for change in self._copied():
                    yield change
            while place == len(log):
                self._origin.more.clear()
                await self._origin.more.wait()
            sets, count = self._piece(log[place : place + PIECE_TRANSACTIONS_MAX])
            for change in sets:
                await self._point("source.changes")
                kept = self._kept(change)
                if kept is not None:
                    self._position = max(self._position, kept.last)
                    yield kept
            place += count
            self._passed = max(self._passed, log[place - 1][-1].commit_end_lsn)

    def _piece(self, following: Sequence[list[ChangeSet]]) -> tuple[list[ChangeSet], int]:
        """Return what arrives at once, and how many transactions that is: one, or where copies are made perhaps a few."""
        count = 1 if self._resyncs is None else self._random.randint(1, len(following))
        small = list(itertools.takewhile(lambda each: len(each) == 1 and joinable(each[0]), following[:count]))
        return ([join([each[0] for each in small])], len(small)) if small else (following[0], 1)

    def _kept(self, change: ChangeSet) -> ChangeSet | None:
        """Leave out what a copy has, or will have, as the decoder does."""
        items = tuple(kept for item in change.items if (kept := self._kept_of(item)) is not None)
        begun, self._begun = self._begun, not change.ends and (self._begun or bool(items))
        if not items and not (begun and change.ends):
            return None
        return replace(change, items=items, begins=not begun)

    def _kept_of(self, item: ChangeBatch | Truncate) -> ChangeBatch | Truncate | None:
        copy = next((each for each in self._unsettled if each.table == item.table.table), None)
        if copy is None:
            return item
        if copy.moment is None:
            return None
        if isinstance(item, Truncate):
            return item if item.position.lsn > copy.moment else None
        later = item.commit_lsns > copy.moment
        return pick(item, later) if later.any() else None

    # ---- copying ------------------------------------------------------------------------------------------------

    @property
    def _unsettled(self) -> list[Copy]:
        return [copy for copy in self._copies if not copy.settled]

    async def _copied(self) -> AsyncIterator[ChangeSet]:
        """Give one more chunk, or say that a table is settled; once all is read, only the stream can bring it on."""
        settling = [copy for copy in self._unsettled if copy.read and copy.through <= self._passed]
        reading = [copy for copy in self._unsettled if not copy.read]
        if settling:
            yield self._settle(settling[0])
        elif reading:
            async for change in self._chunk(self._random.choice(reading)):
                yield change

    async def _chunk(self, copy: Copy) -> AsyncIterator[ChangeSet]:
        origin, random, schema = self._origin, self._random, TABLES[copy.table]
        through, rows = origin.end, origin.states[origin.end][copy.table]
        left = sorted((key for key in rows if copy.last is None or int(key) > int(copy.last[0])), key=int)
        keys = left[: random.randint(1, CHUNK_ROWS_MAX)]
        upto = (keys[-1],) if len(keys) < len(left) else None
        await self._point("source.chunk")
        fresh, after = copy.index == 0, copy.last
        self._given += 1
        chunk = Chunk(
            number=self._given,
            copy=copy.number,
            index=copy.index,
            key=KEY,
            upto=upto,
            through=through,
            read=upto is None,
            rows=len(keys),
            moment=str(through) if fresh else None,
        )
        if fresh:
            copy.moment = through
        copy.last, copy.read, copy.through = upto, upto is None, max(copy.through, through)
        copy.index += 1
        items: tuple[ChangeBatch | Truncate, ...] = (Truncate(schema, self._position, fresh, KeyRange(after, upto)),)
        cut = random.randint(1, len(keys)) if keys else 0
        parts = [keys[:cut], keys[cut:]] if keys[cut:] else [keys]
        for number, part in enumerate(parts):
            batch = copied(schema, {key: rows[key] for key in part}, self._position)
            ends = number == len(parts) - 1
            yield ChangeSet(
                items=(*items, batch) if part else items,
                first=self._position,
                last=self._position,
                begins=number == 0,
                ends=ends,
                commit_end_lsn=self._passed if ends else 0,
                commit_time=0,
                transactions=int(ends),
                snapshot_of=copy.table,
                resync=copy.resync,
                chunk=chunk,
            )
            items = ()
            await self._point("source.chunk")

    def _settle(self, copy: Copy) -> ChangeSet:
        self._given += 1
        copy.settled = True
        return ChangeSet(
            items=(),
            first=self._position,
            last=self._position,
            begins=True,
            ends=True,
            commit_end_lsn=self._passed,
            commit_time=0,
            transactions=0,
            snapshot_of=copy.table,
            snapshot_ends=not self._unsettled,
            resync=copy.resync,
            chunk=Chunk(
                number=self._given,
                copy=copy.number,
                index=copy.index,
                key=KEY,
                upto=None,
                through=copy.through,
                read=True,
                settled=True,
            ),
        )

    # ---- the rest of the port -----------------------------------------------------------------------------------

    def confirm(self, lsn: int, chunk: int = 0) -> None:
        held = self._destination.checkpoints[PIPELINE]
        # One that was frozen tells a slot that another owner has left behind meanwhile.
        is_ours = held.source is not None and held.source.slot == self._slot
        durable = not is_ours or lsn <= held.confirmed_through
        self._origin.must(durable, "the source was told of what is not durable")
        if self._slot in self._origin.slots:
            self._origin.slots[self._slot] = max(self._origin.slots[self._slot], lsn)

    def schemas(self) -> tuple[TableSchema, ...]:
        return tuple(TABLES.values())

    async def remove(self, checkpoints: CheckpointStore) -> None:
        await self._point("source.remove")
        await checkpoints.load()
        self._origin.slots.clear()

    async def close(self) -> None:
        return None
