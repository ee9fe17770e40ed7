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

import msgspec
from msgspec import Struct

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

    `copy` is the copy's number, `resync` the counter that it reaches. `entered` says that the stream may lack what open
    transactions wrote to it. `replaces` says that readers at the destination see its rows.
    """

    table: str
    copy: int
    resync: int = 0
    cursor: Cursor | None = None
    entered: bool = False
    replaces: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be done: the copies, and with `alter` publish exactly the wanted tables first, with the note `least`."""

    copies: Sequence[CopyPlan]
    alter: bool
    least: Mapping[str, int]


def plan(wanted: Sequence[str], resyncs: Mapping[str, int], seen: PublicationSeen, checkpoint: Checkpoint) -> Plan:
    """Compare what is wanted with what is published and copied."""
    note = read(seen.comment)
    least = dict(note.copies) if note else {}
    lost = _unfinished(note.copying if note else {}, resyncs, checkpoint) | (set(wanted) - seen.tables)
    copies = []
    for table in wanted:
        cursor = checkpoint.cursors.get(table)
        if table in lost:
            least[table] = max(cursor.copy if cursor is not None else 0, least.get(table, 0)) + 1
        copy = _copy_of(table, resyncs.get(table, 0), least.get(table, 0), checkpoint)
        if copy is not None:
            copies.append(copy)
    kept = {table: number for table, number in least.items() if table in wanted}
    return Plan(copies, alter=set(wanted) != seen.tables or bool(lost), least=kept)


def _copy_of(table: str, asked: int, least: int, checkpoint: Checkpoint) -> CopyPlan | None:
    """Return how a table's copy goes on, or begins; None when it is whole. Copies below `least` do not count."""
    cursor = checkpoint.cursors.get(table)
    newest = cursor.copy if cursor is not None else 0
    if cursor is not None and not cursor.settled and newest >= least and asked <= cursor.resync:
        return CopyPlan(table, newest, cursor.resync, cursor)
    if newest < least:
        return CopyPlan(table, least, asked, entered=True, replaces=table in checkpoint.tables_copied)
    if asked > checkpoint.resynced.get(table, 0):
        return CopyPlan(table, newest + 1, asked, replaces=table in checkpoint.tables_copied)
    if table in checkpoint.tables_copied:
        return None
    return CopyPlan(table, newest + 1, asked, replaces=asked > 0)


def afresh(wanted: Sequence[str], resyncs: Mapping[str, int]) -> Plan:
    """Copy everything from the start, after the publication was made."""
    copies = [CopyPlan(table, 1, resyncs.get(table, 0), replaces=resyncs.get(table, 0) > 0) for table in wanted]
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
