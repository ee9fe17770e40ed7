"""Take hold of replication slots at the server: look at them, free our own from a session that is gone, make and drop.

In flow decisions of `opening`; out flow slots that are free to use. Called by the source's `open` and `remove`.
"""

import asyncio
import contextlib
import time
from collections.abc import Mapping

import psycopg
from psycopg import errors

from contracts.codes import Code
from dataplane.failures import Permanent, RetryLater
from dataplane.sources.postgres import publication
from dataplane.sources.postgres.catalog import FAILOVER_VERSION, Catalog
from dataplane.sources.postgres.messages import lsn_number
from dataplane.sources.postgres.opening import ServerSeen, SlotSeen
from dataplane.sources.postgres.replication import ReplicationConnection

GRACE_SECONDS = 0.5
"""How long a session that was cut is given to leave the slot by itself."""
RELEASE_SECONDS_MAX = 3.0
POLL_SECONDS = 0.05


async def look(catalog: Catalog, replication: ReplicationConnection, prefix: str) -> ServerSeen:
    """Return the server and the slots of this pipeline. Connects `replication`."""
    await asyncio.to_thread(replication.connect)
    ((system, timeline, wal_end, database),) = await asyncio.to_thread(replication.command, "IDENTIFY_SYSTEM")
    history = await asyncio.to_thread(_history, replication, int(timeline or 0))
    note = publication.read(await catalog.comment_of(prefix))
    return ServerSeen(
        system_identifier=str(system),
        timeline=int(timeline or 0),
        wal_end=lsn_number(wal_end or "0/0"),
        database=str(database),
        slots=await catalog.slots(prefix),
        history=history,
        given_up=frozenset(note.given_up if note else ()),
    )


def _history(replication: ReplicationConnection, timeline: int) -> Mapping[int, int]:
    """Return where each timeline ended that this one goes back to. A server that lost the file says nothing."""
    if timeline <= 1:
        return {}
    try:
        ((_, content),) = replication.command(f"TIMELINE_HISTORY {timeline}")
    except psycopg.Error:
        return {}
    return history_of(content or "")


def history_of(content: str) -> dict[int, int]:
    """Return the ends of the timelines that a history file names, one in a line: its number, where it ended, and why."""
    ends: dict[int, int] = {}
    for line in content.splitlines():
        fields = line.split("#", 1)[0].split()
        if len(fields) >= 2 and fields[0].isdigit():
            ends[int(fields[0])] = lsn_number(fields[1])
    return ends


async def set_failover(catalog: Catalog, replication: ReplicationConnection, slot: SlotSeen, *, wanted: bool) -> None:
    """Let standbys keep a copy of the slot, or no longer. Nobody may hold it. Nothing is done where it is so already.

    Raises:
        Permanent: the server is too old for it (Code.SOURCE_FAILOVER_UNSUPPORTED).
        psycopg.Error: the server refused it.
    """
    await check_failover(catalog, wanted=wanted)
    if slot.failover is wanted:
        return
    if not replication.is_connected:
        await asyncio.to_thread(replication.connect)
    option = "true" if wanted else "false"
    await asyncio.to_thread(replication.command, f'ALTER_REPLICATION_SLOT "{slot.name}" (FAILOVER {option})')


async def check_failover(catalog: Catalog, *, wanted: bool) -> None:
    """Check that the server can do what is wanted.

    Raises:
        Permanent: it is too old for slots that follow to a standby (Code.SOURCE_FAILOVER_UNSUPPORTED).
    """
    if wanted and (version := await catalog.version()) < FAILOVER_VERSION:
        raise Permanent(Code.SOURCE_FAILOVER_UNSUPPORTED, f"the server's version is {version}")


async def release(catalog: Catalog, slot: SlotSeen) -> None:
    """Wait until nobody holds the slot; end the session that does when it does not leave by itself.

    Whoever calls this owns the pipeline: its epoch was raised in the checkpoint before. So a session that still holds
    the slot belongs to a worker that was killed or fenced, and could keep it until the server's own timeout.

    Raises:
        RetryLater: the session stays (Code.SOURCE_SLOT_BUSY).
    """
    grace_ends = time.monotonic() + GRACE_SECONDS
    gives_up = time.monotonic() + RELEASE_SECONDS_MAX
    pid = slot.active_pid
    while pid is not None:
        now = time.monotonic()
        if now > gives_up:
            raise RetryLater(Code.SOURCE_SLOT_BUSY, f"slot {slot.name} is held by process {pid} of the server")
        if now > grace_ends:
            # Somebody else's session is not ours to end: then only waiting is left.
            with contextlib.suppress(errors.InsufficientPrivilege):
                await catalog.end_session(pid, slot.name)
        await asyncio.sleep(POLL_SECONDS)
        pid = await catalog.slot_holder(slot.name)


async def drop(catalog: Catalog, slot: SlotSeen) -> None:
    """Free the slot and drop it."""
    await release(catalog, slot)
    await catalog.drop_slot(slot.name)


def make(connection: ReplicationConnection, slot: str, *, version: int, failover: bool = False) -> int:
    """Make a slot and return its consistent point: everything that commits after it is in the stream. Blocks.

    With `failover`, standbys keep a copy of the slot.

    Raises:
        psycopg.Error: the server refused.
        RetryLater: transactions that were open when it began did not end in time.
    """
    more = ", FAILOVER true" if failover else ""
    options = f"(SNAPSHOT 'nothing'{more})" if version >= 150000 else "NOEXPORT_SNAPSHOT"
    ((_, point, _, _),) = connection.command(f'CREATE_REPLICATION_SLOT "{slot}" LOGICAL pgoutput {options}')
    assert point is not None
    return lsn_number(point)
