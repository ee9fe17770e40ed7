"""Which tables a pipeline's publication covers, and which of them must be copied before they can be streamed.

In flow the wanted tables, the publication as it is, and the checkpoint; out flows a plan. Called by the source when it
resumes. No I/O.

A table counts as captured only while it never left the publication since it was copied. The checkpoint alone cannot say
that: it remembers a table that was taken out of the pipeline and put back, and what happened in between was never
published. So the publication's comment says from which copy on those of a table count that came in later; it is changed in
the same transaction as the list of tables.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import msgspec
from msgspec import Struct, structs

from contracts.backfilling import Backfill, Condition
from dataplane.checkpoint import Checkpoint, Cursor


class Note(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """What the comment of a publication says. `copies` has the number of the copy from which on a table's copies count."""

    pointsman: str
    """The pipeline's id: for people who find the publication."""
    copies: dict[str, int] = {}
    copying: dict[str, int] = {}
    """Written by older releases: the position of a copy, 0 while there was none."""
    given_up: list[str] = []
    """Slots that a node drops, or dropped, because they kept more of the log than the pipeline may."""


def written(note: Note) -> str:
    """Return the comment's text."""
    return msgspec.json.encode(note).decode()


def read(text: str | None) -> Note | None:
    """Return what a comment says, or None when it is not one of ours."""
    if text is None:
        return None
    try:
        return msgspec.json.decode(text, type=Note)
    except msgspec.DecodeError:
        return None


@dataclass(frozen=True, slots=True)
class PublicationSeen:
    """A publication as the server shows it.

    `intact` says that it publishes all kinds of changes, of whole rows, with partitions as their root.
    """

    tables: frozenset[str]
    comment: str | None
    intact: bool


@dataclass(frozen=True, slots=True)
class CopyPlan:
    """A table that is to be copied: from `cursor` on, or from the start.

    `copy` is the copy's number, `resync` and `backfill` the counters that it reaches. `entered` says that the stream may
    lack what open transactions wrote to it. `replaces` says that readers at the destination see its rows.
    With `where` only the rows that match are copied, of a table that is whole. `following` is such a copy that was asked
    for while this one was on its way, and comes behind it.
    """

    table: str
    copy: int
    resync: int = 0
    cursor: Cursor | None = None
    entered: bool = False
    replaces: bool = False
    backfill: int = 0
    where: tuple[Condition, ...] = ()
    following: Backfill | None = None


NOTHING: Mapping[str, Backfill] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be done: the copies, and with `alter` publish exactly the wanted tables first, with the note `least`."""

    copies: Sequence[CopyPlan]
    alter: bool
    least: Mapping[str, int]


def plan(
    wanted: Sequence[str],
    resyncs: Mapping[str, int],
    seen: PublicationSeen,
    checkpoint: Checkpoint,
    backfills: Mapping[str, Backfill] = NOTHING,
) -> Plan:
    """Compare what is wanted with what is published and copied."""
    note = read(seen.comment)
    least = dict(note.copies) if note else {}
    lost = _unfinished(note.copying if note else {}, resyncs, checkpoint) | (set(wanted) - seen.tables)
    copies = []
    for table in wanted:
        cursor = checkpoint.cursors.get(table)
        if table in lost:
            least[table] = max(cursor.copy if cursor is not None else 0, least.get(table, 0)) + 1
        copy = _copy_of(table, resyncs.get(table, 0), least.get(table, 0), checkpoint, backfills.get(table))
        if copy is not None:
            copies.append(copy)
    kept = {table: number for table, number in least.items() if table in wanted}
    return Plan(copies, alter=set(wanted) != seen.tables or bool(lost), least=kept)


def _copy_of(table: str, asked: int, least: int, checkpoint: Checkpoint, backfill: Backfill | None) -> CopyPlan | None:
    """Return how a table's copy goes on, or begins; None when it is whole. Copies below `least` do not count.

    A copy of the whole table reaches what was asked of a part of it before, too.
    """
    cursor = checkpoint.cursors.get(table)
    newest = cursor.copy if cursor is not None else 0
    number = backfill.number if backfill is not None else 0
    if cursor is not None and not cursor.settled and newest >= least and asked <= cursor.resync:
        return _going_on(table, cursor, backfill)
    if newest < least:
        replaces = table in checkpoint.tables_copied
        return CopyPlan(table, least, asked, entered=True, replaces=replaces, backfill=number)
    if asked > checkpoint.resynced.get(table, 0):
        return CopyPlan(table, newest + 1, asked, replaces=table in checkpoint.tables_copied, backfill=number)
    if table not in checkpoint.tables_copied:
        return CopyPlan(table, newest + 1, asked, replaces=asked > 0, backfill=number)
    if backfill is not None and number > checkpoint.backfilled(table):
        resync = checkpoint.resynced.get(table, 0)
        return CopyPlan(table, newest + 1, resync, backfill=number, where=backfill.where)
    return None


def _going_on(table: str, cursor: Cursor, backfill: Backfill | None) -> CopyPlan:
    """Return how a copy goes on that has begun and is not settled."""
    number = backfill.number if backfill is not None else 0
    if not cursor.part:
        following = backfill if number > max(cursor.backfill, cursor.backfilled) else None
        return CopyPlan(table, cursor.copy, cursor.resync, cursor, backfill=cursor.backfill, following=following)
    if backfill is not None and number == cursor.backfill:
        return CopyPlan(table, cursor.copy, cursor.resync, cursor, backfill=number, where=backfill.where)
    if backfill is not None and number > cursor.backfill:
        return CopyPlan(table, cursor.copy + 1, cursor.resync, backfill=number, where=backfill.where)
    return given_up(table, cursor)


def given_up(table: str, cursor: Cursor) -> CopyPlan:
    """Return the end of a copy of a part of which nothing more is read: the stream still has to pass what was copied."""
    read = structs.replace(cursor, read=True, last=None)
    return CopyPlan(table, cursor.copy, cursor.resync, read, backfill=cursor.backfilled)


def afresh(wanted: Sequence[str], resyncs: Mapping[str, int], backfills: Mapping[str, Backfill] = NOTHING) -> Plan:
    """Copy everything from the start, after the publication was made."""
    copies = [
        CopyPlan(
            table,
            1,
            resyncs.get(table, 0),
            replaces=resyncs.get(table, 0) > 0,
            backfill=backfills[table].number if table in backfills else 0,
        )
        for table in wanted
    ]
    return Plan(copies, alter=True, least={})


def behind(wanted: Sequence[str], resyncs: Mapping[str, int], checkpoint: Checkpoint | None) -> set[str]:
    """Return the tables that were asked to be copied again, and whose copy has not begun since."""
    if checkpoint is None:
        return {table for table in wanted if resyncs.get(table, 0)}
    return {table for table in wanted if resyncs.get(table, 0) > checkpoint.begun(table)}


def _unfinished(copying: Mapping[str, int], resyncs: Mapping[str, int], checkpoint: Checkpoint) -> set[str]:
    """Return the tables that an older release was copying and whose copy is not known to be whole."""
    return {
        table
        for table, lsn in copying.items()
        if (lsn == 0 or checkpoint.position.lsn < lsn)
        and not (table in resyncs and resyncs[table] == checkpoint.resynced.get(table))
    }
