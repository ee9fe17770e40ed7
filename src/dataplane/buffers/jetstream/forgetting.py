"""Delete from the stream what is durable at the destination, as both sink's ends of a buffer in JetStream do.

In flow, from the reader, how far it may be forgotten; out go purges, few and bounded. Nothing is decided here.
"""

import asyncio
import contextlib
from collections.abc import Callable

from dataplane.buffers.jetstream.connection import LeafConnection

PURGE_INTERVAL_SECONDS = 0.25
STORED_OVERHEAD_BYTES = 200
"""About what the stream needs for a message beside its data."""


async def keep_forgetting(
    connection: LeafConnection, stream: str, now: asyncio.Event, forgotten_before: Callable[[], int]
) -> None:
    """Purge, for ever, what lies before the sequence that `forgotten_before` gives: now and then, and when `now` is set.

    Raises:
        RetryLater: the leaf does not answer.
    """
    purged_before = 0
    while True:
        with contextlib.suppress(TimeoutError):
            await connection.race(now.wait(), PURGE_INTERVAL_SECONDS)
        now.clear()
        before = forgotten_before()
        if before > purged_before:
            await connection.call(connection.streams.purge_stream(stream, seq=before))
            purged_before = before
