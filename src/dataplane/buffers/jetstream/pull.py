"""Messages out of a stream, in order, by pull requests that bound what waits in this process by bytes.

The consumer is ephemeral and acknowledges nothing: where to read on is known by the reader, from the checkpoint. When
consumer, stream or connection go away, idle heartbeats stay away too, and the session ends.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from typing import NamedTuple

import msgspec
import nats.errors
from nats.aio.msg import Msg
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

from contracts.codes import Code
from dataplane.buffers.jetstream.connection import LeafConnection, status_of, unreachable
from dataplane.failures import RetryLater

PULL_BYTES_MAX = 4 << 20
PULL_MESSAGES_MAX = 1024
PULL_SECONDS_MAX = 30
HEARTBEAT_SECONDS = 2
SILENCE_SECONDS_MAX = 5.0
INACTIVE_SECONDS_MAX = 60.0
IDLE_HEARTBEAT = "100"
NANOSECONDS = 1_000_000_000


class Pulled(NamedTuple):
    """One message and its place in the stream."""

    sequence: int
    data: bytes


class Pull:
    """Everything in `stream` from `sequence` on."""

    def __init__(self, connection: LeafConnection, stream: str, sequence: int) -> None:
        self._connection = connection
        self._stream = stream
        self._sequence = sequence
        self._request_subject = ""
        self._inbox = ""
        self._arrived: deque[Pulled] = deque()
        self._outstanding = 0
        self._woken = asyncio.Event()
        self._heard = 0.0

    async def messages(self) -> AsyncIterator[Pulled]:
        """Give the messages, for ever.

        Raises:
            RetryLater: the leaf does not answer, or consumer or stream are gone.
        """
        await self._connection.call(self._start())
        while True:
            if self._arrived:
                yield self._arrived.popleft()
                continue
            if not self._outstanding:
                await self._request()
            await self._wait()

    async def _start(self) -> None:
        client = self._connection.client
        self._inbox = client.new_inbox()
        await client.subscribe(self._inbox, cb=self._on_message)
        info = await self._connection.streams.add_consumer(
            self._stream,
            ConsumerConfig(
                ack_policy=AckPolicy.NONE,
                deliver_policy=DeliverPolicy.BY_START_SEQUENCE,
                opt_start_seq=self._sequence,
                mem_storage=True,
                inactive_threshold=INACTIVE_SECONDS_MAX,
                num_replicas=1,
            ),
        )
        self._request_subject = f"$JS.API.CONSUMER.MSG.NEXT.{self._stream}.{info.name}"

    async def _request(self) -> None:
        self._outstanding = PULL_MESSAGES_MAX
        self._heard = asyncio.get_running_loop().time()
        request = {
            "batch": PULL_MESSAGES_MAX,
            "max_bytes": PULL_BYTES_MAX,
            "expires": PULL_SECONDS_MAX * NANOSECONDS,
            "idle_heartbeat": HEARTBEAT_SECONDS * NANOSECONDS,
        }
        try:
            await self._connection.client.publish(
                self._request_subject, msgspec.json.encode(request), reply=self._inbox
            )
        except (OSError, nats.errors.Error) as error:
            raise unreachable(error) from error

    async def _wait(self) -> None:
        """Wait for a message or the end of the request; silence beyond the heartbeat is a loss."""
        while not self._arrived and self._outstanding:
            self._woken.clear()
            try:
                await self._connection.race(self._woken.wait(), SILENCE_SECONDS_MAX)
            except TimeoutError:
                if asyncio.get_running_loop().time() - self._heard >= SILENCE_SECONDS_MAX:
                    raise RetryLater(Code.BUFFER_UNREACHABLE, "the buffer's stream is silent or gone") from None

    async def _on_message(self, message: Msg) -> None:
        self._heard = asyncio.get_running_loop().time()
        status = status_of(message)
        if status is None:
            self._outstanding = max(0, self._outstanding - 1)
            self._arrived.append(Pulled(message.metadata.sequence.stream, message.data))
        elif status != IDLE_HEARTBEAT:
            # Expired, full by bytes, or the consumer is gone: the next request is answered or shows the last.
            self._outstanding = 0
            if status not in ("408", "409"):
                self._connection.fail(RetryLater(Code.BUFFER_UNREACHABLE, f"the pull was refused with {status}"))
            elif "Consumer" in (message.header or {}).get("Description", ""):
                self._connection.fail(RetryLater(Code.BUFFER_UNREACHABLE, "the buffer's consumer is gone"))
        self._woken.set()
