"""Which tables a pipeline's publication covers, and which of them must be copied before they can be streamed.

In flow the wanted tables, the publication as it is, and the checkpoint; out flows a plan. Called by the source when it
resumes. No I/O.

A table counts as captured only while it never left the publication since it was copied. The checkpoint alone cannot say
that: it remembers a table that was taken out of the pipeline and put back, and what happened in between was never
published. So the publication's comment names the tables that are being copied, with the position of their copy; it is
changed in the same transaction as the list of tables.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec
from msgspec import Struct

from dataplane.checkpoint import Checkpoint


class Note(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """What the comment of a publication says. `copying` maps a table to its copy's position, 0 while there is none."""

    pointsman: str
    """The pipeline's id: for people who find the publication."""
    copying: dict[str, int] = {}
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
class Plan:
    """What is to be done: copy `added` (new in the pipeline, or asked to be copied again), and with `alter` publish exactly the wanted tables first."""

    added: Sequence[str]
    alter: bool


def plan(wanted: Sequence[str], resyncs: Mapping[str, int], seen: PublicationSeen, checkpoint: Checkpoint) -> Plan:
    """Compare what is wanted with what is published and copied."""
    note = read(seen.comment)
    copying = _unfinished(note.copying if note else {}, resyncs, checkpoint)
    captured = (seen.tables & set(checkpoint.tables_copied)) - copying - behind(wanted, resyncs, checkpoint)
    added = [table for table in wanted if table not in captured]
    return Plan(added, alter=set(wanted) != seen.tables or bool(added))


def behind(wanted: Sequence[str], resyncs: Mapping[str, int], checkpoint: Checkpoint | None) -> set[str]:
    """Return the tables that were asked to be copied again, and were not since."""
    reached = checkpoint.resynced if checkpoint is not None else {}
    return {table for table in wanted if resyncs.get(table, 0) > reached.get(table, 0)}


def _unfinished(copying: Mapping[str, int], resyncs: Mapping[str, int], checkpoint: Checkpoint) -> set[str]:
    """Return the tables whose copy is not known to be whole: the stream went past a copy only when it had ended.

    A copy that somebody asked for is known by its counter too, as soon as it is durable. A table that left the pipeline
    meanwhile has lost that counter, so nothing is taken for copied that was copied before it left.
    """
    return {
        table
        for table, lsn in copying.items()
        if (lsn == 0 or checkpoint.position.lsn < lsn)
        and not (table in resyncs and resyncs[table] == checkpoint.resynced.get(table))
    }
