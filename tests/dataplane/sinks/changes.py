"""A source's log for tests: rows are changed one by one in words, and come out as the sets that a source would make."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from msgspec import structs

from contracts.backfilling import Condition
from dataplane.batch import ChangeBatch, ChangeSet, Chunk, Column, KeyRange, Op, Position, TableSchema, Truncate
from dataplane.checkpoint import SourceIdentity

SOURCE = SourceIdentity(
    system_identifier="7000000000000000001", timeline=1, database="shop", slot="pm_shop_1", publication="pm_shop"
)

Row = Mapping[str, str | None]


def table(name: str, columns: Mapping[str, str], key: Sequence[str] = ("id",), schema: str = "public") -> TableSchema:
    """A table whose `columns` map names to type texts."""
    return TableSchema(
        schema, name, tuple(Column(each, type_, 0, each in key, each not in key) for each, type_ in columns.items())
    )


@dataclass(frozen=True)
class Change:
    """One row's change. `old` is the key before it was changed, `unchanged` names values that did not travel."""

    table: TableSchema
    op: Op
    row: Row
    old: Row | None = None
    unchanged: frozenset[str] = frozenset()


def insert(of: TableSchema, **row: str | None) -> Change:
    return Change(of, Op.INSERT, row)


def update(of: TableSchema, *, old: Row | None = None, unchanged: Iterable[str] = (), **row: str | None) -> Change:
    return Change(of, Op.UPDATE, row, old, frozenset(unchanged))


def delete(of: TableSchema, **key: str | None) -> Change:
    return Change(of, Op.DELETE, key)


@dataclass(frozen=True)
class Emptied:
    """A truncate."""

    table: TableSchema


def batch(changes: Sequence[Change], lsn: int, ordinal: int = 0, commit_time: int = 0) -> ChangeBatch:
    """One batch of changes of one table and one transaction."""
    of = changes[0].table
    names = [column.name for column in of.columns]
    changed = np.array([change.old is not None for change in changes])
    unchanged = {
        number: flags
        for number, name in enumerate(names)
        if (flags := np.array([name in change.unchanged for change in changes])).any()
    }
    return ChangeBatch(
        table=of,
        rows=pa.record_batch(
            [pa.array([change.row.get(name) for change in changes], pa.string()) for name in names], names=names
        ),
        ops=np.array([change.op for change in changes], dtype=np.uint8),
        commit_lsns=np.full(len(changes), lsn, dtype=np.uint64),
        ordinals=np.arange(ordinal, ordinal + len(changes), dtype=np.uint32),
        commit_times=np.full(len(changes), commit_time, dtype=np.int64),
        old_keys=pa.record_batch(
            [pa.array([(change.old or {}).get(name) for change in changes], pa.string()) for name in of.key],
            names=list(of.key),
        )
        if changed.any()
        else None,
        key_changed=changed if changed.any() else None,
        unchanged=unchanged,
    )


@dataclass
class Log:
    """Hands out positions, as one source does."""

    lsn: int = 1000
    ordinal: int = 0
    copied: int = 0
    _made: list[ChangeSet] = field(default_factory=list)

    def transaction(self, *changes: Change | Emptied) -> ChangeSet:
        """One whole transaction as one set."""
        (made,) = self.parts([changes])
        return made

    def parts(self, parts: Sequence[Sequence[Change | Emptied]]) -> list[ChangeSet]:
        """One transaction that arrives in several sets."""
        self.lsn += 100
        self.ordinal = 0
        sets = []
        for number, changes in enumerate(parts):
            first = Position(self.lsn, self.ordinal)
            items = self._items(changes)
            ends = number == len(parts) - 1
            sets.append(
                ChangeSet(
                    items=tuple(items),
                    first=first,
                    last=Position(self.lsn, self.ordinal - 1),
                    begins=number == 0,
                    ends=ends,
                    commit_end_lsn=self.lsn + 50 if ends else 0,
                    commit_time=self.lsn,
                    transactions=1 if ends else 0,
                )
            )
        return sets

    def snapshot(
        self, of: TableSchema, rows: Sequence[Row] = (), *, last: bool = False, resync: int = 0, lsn: int = 999
    ) -> ChangeSet:
        """A table's snapshot as one set. Its positions begin again for each table, as nothing forbids."""
        changes = [Change(of, Op.INSERT, row) for row in rows]
        items: list[ChangeBatch | Truncate] = [Truncate(of, Position(lsn, 0), for_snapshot=True)]
        if changes:
            items.append(batch(changes, lsn, 1))
        return ChangeSet(
            items=tuple(items),
            first=Position(lsn, 0),
            last=Position(lsn, len(rows)),
            begins=True,
            ends=True,
            commit_end_lsn=0,
            commit_time=999,
            transactions=1,
            snapshot_of=of.table,
            snapshot_ends=last,
            resync=resync,
        )

    def chunk(
        self,
        of: TableSchema,
        rows: Sequence[Row],
        *,
        index: int,
        upto: str | None,
        after: str | None = None,
        copy: int = 1,
        resync: int = 0,
        ranged: bool = True,
    ) -> ChangeSet:
        """One chunk of a table's copy, at the place where the log is."""
        place = Position(self.lsn, 0)
        only = KeyRange(None if after is None else (after,), None if upto is None else (upto,))
        items: list[ChangeBatch | Truncate] = []
        if ranged or index == 0:
            items.append(Truncate(of, place, for_snapshot=index == 0, only=only if ranged else None))
        if rows:
            items.append(batch([Change(of, Op.INSERT, row) for row in rows], self.lsn))
        return self._copied(of, items, copy, index, upto, resync, rows=len(rows))

    def part(
        self, of: TableSchema, rows: Sequence[Row], where: tuple[Condition, ...] = (), *, index: int = 0, copy: int = 2
    ) -> ChangeSet:
        """The only chunk of a copy of a part: in the place of the rows that match `where`, or over what is there."""
        items: list[ChangeBatch | Truncate] = []
        if where:
            items.append(Truncate(of, Position(self.lsn, 0), only=KeyRange(None, None), where=where))
        items.append(batch([Change(of, Op.INSERT, row) for row in rows], self.lsn))
        return self.as_part(self._copied(of, items, copy, index, None, 0, rows=len(rows)), over=not where)

    @staticmethod
    def as_part(change: ChangeSet, *, over: bool = False) -> ChangeSet:
        """The same set of a copy that reaches number 7 of what was asked of parts."""
        assert change.chunk is not None
        return dataclasses.replace(change, chunk=structs.replace(change.chunk, part=True, over=over, backfill=7))

    def settled(self, of: TableSchema, *, index: int, copy: int = 1, resync: int = 0, last: bool = False) -> ChangeSet:
        """The set that says that the stream has passed a table's copy."""
        made = self._copied(of, [], copy, index, None, resync, settled=True)
        return dataclasses.replace(made, snapshot_ends=last)

    def _copied(
        self,
        of: TableSchema,
        items: Sequence[ChangeBatch | Truncate],
        copy: int,
        index: int,
        upto: str | None,
        resync: int,
        *,
        rows: int = 0,
        settled: bool = False,
    ) -> ChangeSet:
        self.copied += 1
        place = Position(self.lsn, 0)
        chunk = Chunk(
            number=self.copied,
            copy=copy,
            index=index,
            key=["id integer"],
            upto=None if upto is None else (upto,),
            through=self.lsn + 60,
            read=upto is None,
            settled=settled,
            rows=rows,
            bytes=10 * rows,
        )
        return ChangeSet(
            items=tuple(items),
            first=place,
            last=place,
            begins=True,
            ends=True,
            commit_end_lsn=self.lsn + 50,
            commit_time=self.lsn,
            transactions=1,
            snapshot_of=of.table,
            resync=resync,
            chunk=chunk,
        )

    def _items(self, changes: Sequence[Change | Emptied]) -> list[ChangeBatch | Truncate]:
        items: list[ChangeBatch | Truncate] = []
        run: list[Change] = []
        for change in [*changes, None]:
            if run and (change is None or isinstance(change, Emptied) or change.table != run[0].table):
                items.append(batch(run, self.lsn, self.ordinal, self.lsn))
                self.ordinal += len(run)
                run = []
            if isinstance(change, Emptied):
                items.append(Truncate(change.table, Position(self.lsn, self.ordinal)))
                self.ordinal += 1
            elif change is not None:
                run.append(change)
        return items


def joined(sets: Sequence[ChangeSet]) -> ChangeSet:
    """Several whole transactions as one set."""
    return ChangeSet(
        items=tuple(item for each in sets for item in each.items),
        first=sets[0].first,
        last=sets[-1].last,
        begins=True,
        ends=True,
        commit_end_lsn=sets[-1].commit_end_lsn,
        commit_time=sets[-1].commit_time,
        transactions=sum(each.transactions for each in sets),
    )
