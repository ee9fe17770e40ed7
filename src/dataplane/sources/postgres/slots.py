"""Take hold of replication slots at the server: look at them, free our own from a session that is gone, make and drop.

In flow decisions of `opening`; out flow slots that are free to use. Called by the source's `open` and `remove`.
"""

import asyncio
import contextlib
import time

from psycopg import errors

from contracts.codes import Code
from dataplane.failures import RetryLater
from dataplane.sources.postgres.catalog import Catalog
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
    slots = await catalog.slots(prefix)
    return ServerSeen(str(system), int(timeline or 0), lsn_number(wal_end or "0/0"), str(database), slots)


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
