"""A destination in memory for tests of sources: it keeps tables and checkpoint as a transactional sink would.

Values are what the source gave, so a table here can be compared with the source's own text of it.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

from msgspec.structs import replace

from dataplane.batch import START, ChangeBatch, ChangeSet, Op, Position, Truncate
from dataplane.checkpoint import Checkpoint, SourceIdentity
from dataplane.sinks import durable, replay
from dataplane.sinks.memory import is_meant, is_within
from dataplane.sources.port import Source

Row = dict[str, str | None]
Key = tuple[str | None, ...]
Tables = dict[str, dict[Key, Row]]

WAIT_SECONDS_MAX = 20.0


@dataclass
class Destination:
    """Tables by name, rows by key; `sets` are those that came since the last session began."""

    checkpoint: Checkpoint | None = None
    tables: Tables = field(default_factory=dict)
    sets: list[ChangeSet] = field(default_factory=list)
    advanced: list[int] = field(default_factory=list)
    rows_repeated: int = 0
    lenient: bool = False
    """Rows may be missing here: a delete may find none at any time."""
    chunk: int = 0
    """The number of the newest chunk that is durable."""
    _staged: Tables | None = None

    async def load(self) -> Checkpoint | None:
        return self.checkpoint

    async def begin(self, source: SourceIdentity) -> None:
        self.checkpoint = Checkpoint(
            epoch=1,
            source=source,
            position=START,
            confirmed_through=0,
            snapshot_done=False,
            tables_owned=[],
            tables_copied=[],
        )

    async def advance(self, confirmed_through: int) -> None:
        assert self.checkpoint is not None
        self.advanced.append(confirmed_through)
        self._keep(confirmed_through=max(self.checkpoint.confirmed_through, confirmed_through))

    async def follow(self, source: SourceIdentity, confirmed_through: int) -> None:
        self._keep(source=source, confirmed_through=confirmed_through)

    async def forget(self) -> None:
        self.checkpoint = None

    def _keep(self, **changes: object) -> None:
        assert self.checkpoint is not None
        self.checkpoint = replace(self.checkpoint, **changes)

    def lose_session(self) -> None:
        """Forget what was not committed, as a destination does when its client is killed."""
        self._staged = None
        self.chunk = 0
        self.sets.clear()

    def apply(self, change: ChangeSet) -> int | None:
        """Apply one set. Return what the source may be told, or None while a transaction is open."""
        self.sets.append(change)
        assert change.first <= change.last
        assert self.checkpoint is not None
        if change.chunk is not None:
            held = self.checkpoint
            assert replay.unseen(change, held.position, held.tables_copied, held.cursors), "a chunk came twice"
        if change.begins:
            assert self._staged is None, "a transaction began within another"
            self._staged = {name: dict(rows) for name, rows in self.tables.items()}
        assert self._staged is not None, "a set came without its begin"
        for item in change.items:
            self._apply_item(item, copied=change.chunk is not None)
        if not change.ends:
            assert change.commit_end_lsn == 0
            return None
        assert self.checkpoint is not None
        self.tables, self._staged = self._staged, None
        self.checkpoint = durable.after(self.checkpoint, change)
        if change.chunk is not None:
            self.chunk = change.chunk.number
        return self.checkpoint.confirmed_through

    def _apply_item(self, item: ChangeBatch | Truncate, *, copied: bool) -> None:
        """Rows of a copy replace their range; what the stream brings for a table that is being copied may be there."""
        assert self.checkpoint is not None
        assert self._staged is not None
        name = item.table.table
        if isinstance(item, Truncate):
            if item.only is not None:
                rows = self._staged.setdefault(name, {})
                for key in [key for key in rows if is_within(key, item.only, item.table) and is_meant(key, item)]:
                    del rows[key]
            elif copied or item.position > self.checkpoint.position:
                self._staged[name] = {}
            return
        tolerant = not copied and name in self.checkpoint.unsettled
        table = self._staged.setdefault(item.table.table, {})
        columns = [column.name for column in item.table.columns]
        rows = item.rows.to_pylist()
        old_keys = item.old_keys.to_pylist() if item.old_keys is not None else None
        for number, row in enumerate(rows):
            position = Position(int(item.commit_lsns[number]), int(item.ordinals[number]))
            if not copied and position <= self.checkpoint.position:
                self.rows_repeated += 1
                continue
            key = tuple(row[name] for name in item.table.key)
            if item.ops[number] == Op.DELETE:
                assert all(row[name] is None for name in columns if name not in item.table.key)
                assert key in table or tolerant or self.lenient, "a row was deleted twice"
                table.pop(key, None)
                continue
            before = key
            if item.key_changed is not None and item.key_changed[number]:
                assert old_keys is not None
                before = tuple(old_keys[number][name] for name in item.table.key)
            old = table.pop(before, None)
            if old is None and tolerant and any(flags[number] for flags in item.unchanged.values()):
                continue
            for index, flags in item.unchanged.items():
                if flags[number]:
                    assert old is not None, "a value is unchanged, but there is no row"
                    row[columns[index]] = old[columns[index]]
            if item.ops[number] == Op.INSERT:
                assert old is None or tolerant or copied, "a row was inserted twice"
            table[key] = row


class Reading:
    """Iterates a source into a destination. Only what the destination committed is confirmed."""

    def __init__(self, source: Source, destination: Destination) -> None:
        self.source = source
        self.destination = destination
        self._changes: AsyncIterator[ChangeSet] = source.changes()

    async def until(self, done: Callable[[], bool], *, seconds_max: float = WAIT_SECONDS_MAX) -> None:
        """Apply sets until `done` says so, which is asked after each commit."""
        async with asyncio.timeout(seconds_max):
            while not done():
                await self.one()

    async def one(self) -> ChangeSet:
        """Apply the next set."""
        change = await anext(self._changes)
        confirmed = self.destination.apply(change)
        if confirmed is not None:
            self.source.confirm(confirmed, self.destination.chunk)
        return change

    async def idle(self, seconds: float) -> None:
        """Let the source run while it must give nothing."""
        task = asyncio.ensure_future(anext(self._changes))
        done, _ = await asyncio.wait([task], timeout=seconds)
        assert not done, "something came"
        self._pending = task
        task.cancel()
        await asyncio.wait([task])
        self._changes = self.source.changes()
