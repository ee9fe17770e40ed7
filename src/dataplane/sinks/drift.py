"""When a table's shape changes at the source: what a sink that is to pause does, and what one that is to ignore leaves out.

In flow sets and the shapes that a person has accepted; out flows the part that comes before the first row of a new shape,
or the same rows without the columns that the destination lacks. Pure: sinks keep the shapes beside their checkpoint.

A shape is known from the first set that has it. One that differs stops the pipeline, at the end of the transaction
before; it is taken once a person has let the pipeline go on since it stopped. The counter of that is the document's, and
what it was when the pipeline stopped is kept with the shape, so a restart alone accepts nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from msgspec import Struct

from dataplane.batch import ChangeBatch, ChangeSet, Position, TableSchema, Truncate
from dataplane.sinks.replay import pick

Shape = tuple[tuple[str, str, bool], ...]
"""Of each column its name, its type and whether it is of the key."""


class Known(Struct, frozen=True, kw_only=True):
    """What is known of a table: the accepted shape, and the one that stopped the pipeline with the counter at that time."""

    shape: Shape
    stopped: Shape | None = None
    stopped_resumes: int = 0


@dataclass(frozen=True)
class Stop:
    """Where a pipeline stops: at a table's new shape. `column` is the first one that differs."""

    table: TableSchema
    column: str | None
    lsn: int
    known: Known


@dataclass(frozen=True)
class Verdict:
    """What may be done with a set: `learned` are shapes to be written down; with `stop` only `front` may be applied."""

    learned: Mapping[str, tuple[TableSchema, Known]]
    stop: Stop | None = None
    front: ChangeSet | None = None


class ShapeGuard:
    """Watches the shapes of one pipeline's tables. `resumes` is the document's counter."""

    def __init__(self, known: Mapping[str, Known], resumes: int) -> None:
        self._known = dict(known)
        self._resumes = resumes
        self._passed: dict[str, TableSchema] = {}

    def judge(self, change: ChangeSet) -> Verdict | None:
        """Return what may be done with a set; None when nothing is new about it."""
        learned: dict[str, tuple[TableSchema, Known]] = {}
        stop: Stop | None = None
        for item in change.items:
            table = item.table
            passed = self._passed.get(table.table)
            if passed is table or passed == table:
                continue
            before, now = self._known.get(table.table), shape_of(table)
            if before is None or before.shape == now or self._is_accepted(before, now):
                self._passed[table.table] = table
                if before is None or before.shape != now:
                    known = self._known[table.table] = Known(shape=now)
                    learned[table.table] = (table, known)
                continue
            if stop is None or first(item).lsn < stop.lsn:
                stop = Stop(table, difference(before.shape, now), first(item).lsn, self._stopped(before, now))
        if stop is None and not learned:
            return None
        return Verdict(learned, stop, None if stop is None else before_lsn(change, stop.lsn))

    def _is_accepted(self, before: Known, now: Shape) -> bool:
        return before.stopped == now and self._resumes > before.stopped_resumes

    def _stopped(self, before: Known, now: Shape) -> Known:
        if before.stopped == now:
            return before
        return Known(shape=before.shape, stopped=now, stopped_resumes=self._resumes)


def shape_of(table: TableSchema) -> Shape:
    """Return what counts as the shape of a table."""
    return tuple((column.name, column.type, column.key) for column in table.columns)


def difference(before: Shape, now: Shape) -> str | None:
    """Return the first column that is new or other than before, or else the first that is gone."""
    known = {column[0]: column for column in before}
    changed = next((column[0] for column in now if known.get(column[0]) != column), None)
    names = {column[0] for column in now}
    return changed or next((column[0] for column in before if column[0] not in names), None)


def before_lsn(change: ChangeSet, lsn: int) -> ChangeSet | None:
    """Return the whole transactions of a set that were committed before `lsn`, as a set; None when it has none.

    Where the last of them ends, only its successor would tell: `commit_end_lsn` is 0, and confirms nothing.
    """
    if not (change.begins and change.ends) or change.snapshot_of is not None:
        return None
    items: list[ChangeBatch | Truncate] = []
    for item in change.items:
        if isinstance(item, Truncate):
            if item.position.lsn < lsn:
                items.append(item)
        elif (earlier := item.commit_lsns < lsn).any():
            items.append(item if earlier.all() else pick(item, earlier))
    if not items:
        return None
    lsns = {int(each) for item in items if isinstance(item, ChangeBatch) for each in item.commit_lsns}
    times = [int(item.commit_times[-1]) for item in items if isinstance(item, ChangeBatch)]
    return replace(
        change,
        items=tuple(items),
        last=max(last(item) for item in items),
        commit_end_lsn=0,
        commit_time=max(times, default=change.commit_time),
        transactions=len(lsns | {item.position.lsn for item in items if isinstance(item, Truncate)}),
    )


def narrowed(batch: ChangeBatch, table: TableSchema) -> ChangeBatch:
    """Return the batch with the columns of `table` only, which are some of its own, in the same order."""
    if batch.table is table or len(batch.table.columns) == len(table.columns):
        return batch
    names = {column.name for column in table.columns}
    kept = [at for at, column in enumerate(batch.table.columns) if column.name in names]
    unchanged = {place: batch.unchanged[at] for place, at in enumerate(kept) if at in batch.unchanged}
    return replace(batch, table=table, rows=batch.rows.select(kept), unchanged=unchanged)


def first(item: ChangeBatch | Truncate) -> Position:
    """Return the position of an item's first row."""
    if isinstance(item, Truncate):
        return item.position
    return Position(int(item.commit_lsns[0]), int(item.ordinals[0]))


def last(item: ChangeBatch | Truncate) -> Position:
    """Return the position of an item's last row."""
    if isinstance(item, Truncate):
        return item.position
    return Position(int(item.commit_lsns[-1]), int(item.ordinals[-1]))
