"""Between the hub and the database: messages from nodes wait in a bounded queue and are handled in batches on a thread.

What does not fit is dropped and counted: a node asks or sends again. Nothing here blocks the event loop.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor

import nats.errors
import psycopg
from eventsourcing.persistence import PersistenceError
from msgspec import Struct
from nats.aio.msg import Msg
from psycopg_pool import PoolTimeout

from contracts.subjects import UpAddress, parse_up
from controlplane.channel.metrics import ChannelMetrics

WAITING_MAX = 4_096
BATCH_MAX = 128
DATABASE_ERRORS = (psycopg.OperationalError, psycopg.InterfaceError, PersistenceError, PoolTimeout)

_log = logging.getLogger(__name__)


class Arrived(Struct, frozen=True):
    """A message with who sent it, as the hub's subject says."""

    address: UpAddress
    data: bytes
    reply: str
    at: float
    """When it arrived, by the monotonic clock."""


class Answer(Struct, frozen=True):
    """What is sent back, on the subject that the message named."""

    reply: str
    data: bytes


Handle = Callable[[Sequence[Arrived]], list[Answer]]
"""Handles a batch on a thread and returns the answers, after everything that they promise is committed."""


class Intake:
    """One kind of message. `handle` runs on `executor`, one batch at a time, in the order of arrival."""

    def __init__(self, kind: str, handle: Handle, executor: Executor, metrics: ChannelMetrics) -> None:
        self._kind = kind
        self._handle = handle
        self._executor = executor
        self._metrics = metrics
        self._waiting: asyncio.Queue[tuple[Arrived, Msg]] = asyncio.Queue(WAITING_MAX)
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to handle, in the background."""
        self._task = asyncio.create_task(self._run(), name=f"intake-{self._kind}")

    async def stop(self) -> None:
        """End after the batch in hand."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None

    async def take(self, message: Msg) -> None:
        """Take a message from the hub into the queue. Called by the subscription."""
        try:
            address = parse_up(message.subject)
        except ValueError:
            self._metrics.reports.labels(kind=self._kind, result="malformed").inc()
            return
        try:
            arrived = Arrived(address, message.data, message.reply, time.monotonic())
            self._waiting.put_nowait((arrived, message))
        except asyncio.QueueFull:
            self._metrics.reports.labels(kind=self._kind, result="dropped").inc()
        self._metrics.queued.labels(kind=self._kind).set(self._waiting.qsize())

    async def _run(self) -> None:
        while True:
            batch = [await self._waiting.get()]
            while len(batch) < BATCH_MAX and not self._waiting.empty():
                batch.append(self._waiting.get_nowait())
            self._metrics.queued.labels(kind=self._kind).set(self._waiting.qsize())
            messages = {arrived.reply: message for arrived, message in batch}
            answers = await self._answers([arrived for arrived, _ in batch])
            for answer in answers:
                with contextlib.suppress(nats.errors.Error, OSError):
                    await messages[answer.reply].respond(answer.data)

    async def _answers(self, batch: Sequence[Arrived]) -> list[Answer]:
        """Handle a batch on a thread. One that fails is handled again message by message, so that one cannot stop others."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._executor, self._handle, batch)
        except DATABASE_ERRORS as error:
            # No answer: whoever waits for one asks again.
            self._metrics.reports.labels(kind=self._kind, result="unavailable").inc(len(batch))
            _log.warning(
                "%d messages of kind %s wait for the database: %s", len(batch), self._kind, type(error).__name__
            )
            return []
        except Exception:  # noqa: BLE001 - logged below, where it is known whose it is
            if len(batch) == 1:
                self._metrics.reports.labels(kind=self._kind, result="failed").inc()
                _log.exception("a message of kind %s failed", self._kind)
                return []
        return [answer for each in batch for answer in await self._answers([each])]
