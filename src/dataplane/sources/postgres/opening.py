"""Decide how a source begins: start over, resume, or stop because rows may be missing.

In flow the checkpoint and what the server shows of itself and of the slots of this pipeline; out flows a decision.
Called by the source's `open`, before a single row is read. No I/O.

The slot's name carries the pipeline and a random incarnation, which the checkpoint holds before the slot is made. So a
slot that the checkpoint does not name was never read from by whoever wrote the checkpoint, and a slot that is beyond
`confirmed_through` was moved by someone else. The server itself would not say either: it starts a stream at the slot's
own position when asked for an older one.

A standby that was promoted is the same system on a new timeline. It may go on when its history says that our timeline
ended at or after the last row that the destination holds: then that row is part of the new timeline's past, and nothing
of it was ever undone. Between that row and `confirmed_through` lies nothing of ours (it is only raised beyond the last
row while nothing is in flight), so where the timeline ended before `confirmed_through`, that is set back to its end.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from msgspec.structs import replace

from contracts.codes import Code
from dataplane.batch import Position
from dataplane.checkpoint import Checkpoint, SourceIdentity
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
    failover: bool = False
    """Standbys keep a copy of it (PostgreSQL 17 and newer)."""


@dataclass(frozen=True, slots=True)
class ServerSeen:
    """What the server says of itself, and the slots whose names are this pipeline's."""

    system_identifier: str
    timeline: int
    wal_end: int
    database: str
    slots: Sequence[SlotSeen]
    history: Mapping[int, int] = field(default_factory=dict)
    """Where each timeline ended that the server's own goes back to; empty where it goes back to none."""
    given_up: frozenset[str] = frozenset()
    """Slots that a node dropped because they kept more of the log than the pipeline may."""


@dataclass(frozen=True, slots=True)
class StartOver:
    """Drop `orphans`, make a slot of a new incarnation, and copy every table."""

    orphans: Sequence[SlotSeen]


@dataclass(frozen=True, slots=True)
class Resume:
    """Go on with `slot` from `lsn`. `orphans` were made by sessions that lost a race, and nobody reads them.

    `follow` is the source's identity on its new timeline, after a failover: the checkpoint has to have it first, with
    `confirmed`.
    """

    slot: SlotSeen
    lsn: int
    position: Position
    confirmed: int
    orphans: Sequence[SlotSeen]
    follow: SourceIdentity | None = None


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
    if not checkpoint.snapshot_done and not checkpoint.cursors:
        # Nothing arrived yet: whatever slot there is, all begins again with a new one.
        if _refuse_foreign(server, identity.slot) is None:
            _refuse_given_up(server, identity.slot)
        return StartOver(server.slots)
    _check_system(identity, server)
    confirmed = _confirmed_on(checkpoint, identity.timeline, server)
    slot = _usable_slot(identity, confirmed, server)
    orphans = tuple(other for other in server.slots if other.name != slot.name and other.active_pid is None)
    return Resume(
        slot=slot,
        lsn=max(confirmed, checkpoint.position.lsn),
        position=checkpoint.position,
        confirmed=confirmed,
        orphans=orphans,
        follow=replace(identity, timeline=server.timeline) if server.timeline != identity.timeline else None,
    )


def _check_system(identity: SourceIdentity, server: ServerSeen) -> None:
    if identity.system_identifier != server.system_identifier or identity.database != server.database:
        raise Gap(
            Code.GAP_OTHER_SYSTEM,
            f"system {server.system_identifier}/{server.database}, "
            f"not {identity.system_identifier}/{identity.database}",
        )


def _confirmed_on(checkpoint: Checkpoint, timeline: int, server: ServerSeen) -> int:
    """Return what counts as confirmed on the server's timeline. Refuses one that does not hold all that we hold."""
    confirmed = checkpoint.confirmed_through
    if server.timeline < timeline:
        raise Gap(Code.GAP_OLD_PRIMARY, f"timeline {server.timeline}, which {timeline} has replaced")
    if server.timeline > timeline:
        ended = server.history.get(timeline)
        if ended is None:
            raise Gap(Code.GAP_OTHER_TIMELINE, f"timeline {server.timeline} does not go back to {timeline}")
        delivered = max(checkpoint.position, checkpoint.ahead).lsn
        if ended < delivered:
            raise Gap(
                Code.GAP_FAILOVER_BEHIND,
                f"timeline {timeline} ended at {lsn_text(ended)} for this server, but rows up to "
                f"{lsn_text(delivered)} were delivered",
            )
        return min(confirmed, ended)
    reached = max(confirmed, checkpoint.ahead.lsn)
    if server.wal_end < reached:
        raise Gap(
            Code.GAP_RESTORED,
            f"the log ends at {lsn_text(server.wal_end)}, before {lsn_text(reached)}, which was confirmed",
        )
    return confirmed


def _usable_slot(identity: SourceIdentity, confirmed: int, server: ServerSeen) -> SlotSeen:
    slot = _refuse_foreign(server, identity.slot)
    if slot is None:
        _refuse_given_up(server, identity.slot)
        if server.timeline != identity.timeline:
            raise Gap(Code.GAP_SLOT_NOT_SYNCED, f"slot {identity.slot} did not follow to timeline {server.timeline}")
        raise Gap(Code.GAP_SLOT_MISSING, f"slot {identity.slot} does not exist")
    if slot.lost:
        raise Gap(Code.GAP_SLOT_INVALIDATED, f"slot {slot.name} was invalidated ({slot.reason or 'wal_removed'})")
    if slot.confirmed_flush > confirmed:
        raise Gap(
            Code.GAP_SLOT_AHEAD,
            f"slot {slot.name} is at {lsn_text(slot.confirmed_flush)}, but only {lsn_text(confirmed)} was confirmed",
        )
    return slot


def _refuse_given_up(server: ServerSeen, name: str) -> None:
    """Refuse a slot that is gone because a node of ours dropped it at the pipeline's limit."""
    if name in server.given_up:
        raise Gap(Code.GAP_LOG_LIMIT, f"slot {name} kept more of the log than the pipeline may, and was dropped")


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
