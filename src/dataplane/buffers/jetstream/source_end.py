"""What both source's ends of a buffer in JetStream do alike: the stream's bounds, asking the sink's half, and letting go.

Called by nobody but its two kinds: `writer` (a cache) and `keeper` (data), which say how a session begins and when a set
counts as safe.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import msgspec
import nats.errors
import nats.js.errors
from nats.js.api import DiscardPolicy, RetentionPolicy, StorageType, StreamConfig

from contracts.codes import Code
from dataplane.buffers.jetstream.connection import LeafConnection, unreachable
from dataplane.buffers.jetstream.messages import Answer, Question, Subjects, encode
from dataplane.buffers.jetstream.outbox import Outbox
from dataplane.checkpoint import Progress
from dataplane.failures import RetryLater
from dataplane.worker.protocol import BufferAccess

SINK_ANSWER_SECONDS_MAX = 30.0
ASK_SECONDS_MAX = 0.25
ASK_AGAIN_SECONDS = 0.05
FILL_INTERVAL_SECONDS = 1.0


class SourceEnd:
    """One session's writing end, but for how it begins and what it writes."""

    def __init__(self, access: BufferAccess, *, pipeline_id: str, size_bytes_max: int) -> None:
        self._subjects = Subjects(pipeline_id)
        self._size_bytes_max = size_bytes_max
        self._connection = LeafConnection(access, f"pointsman source {pipeline_id}")
        self._outbox: Outbox | None = None
        self._turn = asyncio.Lock()
        self._newest: Progress | None = None
        self._told = asyncio.Event()
        self._fill_bytes = 0
        self._watching: asyncio.Task[None] | None = None

    async def progress(self) -> AsyncIterator[Progress]:
        """As the port says."""
        while True:
            await self._connection.race(self._told.wait())
            self._told.clear()
            if self._newest is not None:
                yield self._newest

    def fill_bytes(self) -> int:
        """As the port says: the stream's size at most a second ago."""
        return self._fill_bytes

    async def remove(self) -> None:
        """As the port says."""
        try:
            await self._connection.race(self._connection.streams.delete_stream(self._subjects.stream))
        except nats.js.errors.NotFoundError:
            return
        except (OSError, nats.errors.Error) as error:
            raise unreachable(error) from error

    async def close(self) -> None:
        """As the port says."""
        if self._watching is not None:
            self._watching.cancel()
        if self._outbox is not None:
            self._outbox.close()
        await self._connection.close()

    def _give_up(self) -> None:
        """End the session: nothing may follow a set that was given up, for it would be a hole that no number shows."""
        self._connection.fail(RetryLater(Code.BUFFER_UNREACHABLE, "a set was given up on its way into the buffer"))

    async def _ask_until_bound(self, question: Question) -> Answer:
        """Ask the sink's half until it answers.

        Raises:
            RetryLater: it does not.
        """
        end = asyncio.get_running_loop().time() + SINK_ANSWER_SECONDS_MAX
        while asyncio.get_running_loop().time() < end:
            # A question may meet a sink's half that is just ending, and is then never answered.
            with contextlib.suppress(nats.errors.NoRespondersError, TimeoutError):
                answer = await self._ask_once(question, ASK_SECONDS_MAX)
                if answer.bound:
                    return answer
            await self._connection.race(asyncio.sleep(ASK_AGAIN_SECONDS))
        raise RetryLater(Code.BUFFER_UNREACHABLE, "the sink's half of the pipeline does not answer")

    async def _ask_once(self, question: Question, seconds_max: float) -> Answer:
        request = self._connection.client.request(self._subjects.questions, encode(question), timeout=seconds_max)
        try:
            reply = await self._connection.race(request)
            return msgspec.msgpack.decode(reply.data, type=Answer)
        except (nats.errors.NoRespondersError, TimeoutError):
            raise
        except (OSError, nats.errors.Error, msgspec.MsgspecError) as error:
            raise unreachable(error) from error

    def _config(self, subjects: list[str], size: int) -> StreamConfig:
        return StreamConfig(
            name=self._subjects.stream,
            subjects=subjects,
            retention=RetentionPolicy.LIMITS,
            discard=DiscardPolicy.NEW,
            storage=StorageType.FILE,
            max_bytes=size,
            num_replicas=1,
            allow_direct=True,
        )

    async def _purge(self, before: int) -> None:
        await self._connection.call(self._connection.streams.purge_stream(self._subjects.stream, seq=before))

    async def _watch_fill(self) -> None:
        try:
            while True:
                info = await self._connection.call(self._connection.streams.stream_info(self._subjects.stream))
                self._fill_bytes = info.state.bytes
                await asyncio.sleep(FILL_INTERVAL_SECONDS)
        except RetryLater as failure:
            self._connection.fail(failure)
