"""Decide how a source begins: start over, resume, or stop because rows may be missing.

In flow the checkpoint and what the server shows of itself and of the slots of this pipeline; out flows a decision.
Called by the source's `open`, before a single row is read. No I/O.

The slot's name carries the pipeline and a random incarnation, which the checkpoint holds before the slot is made. So a
slot that the checkpoint does not name was never read from by whoever wrote the checkpoint, and a slot that is beyond
`confirmed_through` was moved by someone else. The server itself would not say either: it starts a stream at the slot's
own position when asked for an older one.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from contracts.codes import Code
from dataplane.batch import Position
from dataplane.checkpoint import Checkpoint
from dataplane.failures import Gap
from dataplane.object_names import object_name as object_name
from dataplane.sources.postgres.messages import lsn_text

PLUGIN = "pgoutput"
INCARNATION_DIGITS = 8


@dataclass(frozen=True, slots=True)
class SlotSeen:
    """A replication slot as the server shows it."""

    name: str
    plugin: str | None
    database: str | None
    logical: bool
    active_pid: int | None
    confirmed_flush: int
    lost: bool
    reason: str | None = None
    """Why the server invalidated it, where it says so (PostgreSQL 17 and newer)."""


@dataclass(frozen=True, slots=True)
class ServerSeen:
    """What the server says of itself, and the slots whose names are this pipeline's."""

    system_identifier: str
    timeline: int
    wal_end: int
    database: str
    slots: Sequence[SlotSeen]


@dataclass(frozen=True, slots=True)
class StartOver:
    """Drop `orphans`, make a slot of a new incarnation, and copy every table."""

    orphans: Sequence[SlotSeen]


@dataclass(frozen=True, slots=True)
class Resume:
    """Go on with `slot` from `lsn`. `orphans` were made by sessions that lost a race, and nobody reads them."""

    slot: SlotSeen
    lsn: int
    position: Position
    orphans: Sequence[SlotSeen]


def decide(checkpoint: Checkpoint | None, server: ServerSeen, *, afresh: bool = False) -> StartOver | Resume:
    """Decide between the two. `afresh` says that a person asked for a new copy of every table.

    That needs nothing of what was there before, so no gap is left that could be one.

    Raises:
        Gap: rows between the checkpoint and what the server can still give may be missing; its code says why.
    """
    if afresh:
        return StartOver(tuple(slot for slot in server.slots if _may_be_ours(slot, server)))
    if checkpoint is None or checkpoint.source is None:
        if server.slots:
            raise Gap(Code.GAP_CHECKPOINT_LOST, f"slot {server.slots[0].name} exists, but no checkpoint")
        return StartOver(())
    identity = checkpoint.source
    if not checkpoint.snapshot_done:
        # Nothing was streamed yet: whatever slot there is, the whole copy begins again with a new one.
        _refuse_foreign(server, identity.slot)
        return StartOver(server.slots)
    if identity.system_identifier != server.system_identifier or identity.database != server.database:
        raise Gap(
            Code.GAP_OTHER_SYSTEM,
            f"system {server.system_identifier}/{server.database}, "
            f"not {identity.system_identifier}/{identity.database}",
        )
    if identity.timeline != server.timeline:
        raise Gap(Code.GAP_OTHER_TIMELINE, f"timeline {server.timeline}, not {identity.timeline}")
    if server.wal_end < checkpoint.confirmed_through:
        raise Gap(
            Code.GAP_OTHER_TIMELINE,
            f"the log ends at {lsn_text(server.wal_end)}, before {lsn_text(checkpoint.confirmed_through)}, "
            "which was confirmed: the server was restored",
        )
    slot = _refuse_foreign(server, identity.slot)
    if slot is None:
        raise Gap(Code.GAP_SLOT_MISSING, f"slot {identity.slot} does not exist")
    if slot.lost:
        raise Gap(Code.GAP_SLOT_INVALIDATED, f"slot {slot.name} was invalidated ({slot.reason or 'wal_removed'})")
    if slot.confirmed_flush > checkpoint.confirmed_through:
        raise Gap(
            Code.GAP_SLOT_AHEAD,
            f"slot {slot.name} is at {lsn_text(slot.confirmed_flush)}, "
            f"but only {lsn_text(checkpoint.confirmed_through)} was confirmed",
        )
    orphans = tuple(other for other in server.slots if other.name != slot.name and other.active_pid is None)
    start = max(checkpoint.confirmed_through, checkpoint.position.lsn)
    return Resume(slot, start, checkpoint.position, orphans)


def _may_be_ours(slot: SlotSeen, server: ServerSeen) -> bool:
    return slot.logical and slot.plugin == PLUGIN and slot.database == server.database


def _refuse_foreign(server: ServerSeen, name: str) -> SlotSeen | None:
    """Return the slot of this name, if there is one, and refuse it when it cannot be the one that we made."""
    for slot in server.slots:
        if slot.name == name:
            if not _may_be_ours(slot, server):
                raise Gap(Code.GAP_SLOT_FOREIGN, f"slot {name} is not the one that this pipeline made")
            return slot
    return None
