"""Messages on their way into the stream: in order, many at once, bounded by bytes, none counted before its ack.

Each is published with the sequence that the stream must have reached before it, so the stream takes ours in our order
or not at all: after one that was refused because the stream is full, those behind it are refused too, and all are sent
again in order once there may be room. A refusal for any other reason means that someone else writes: the session ends.
"""

import asyncio
from collections import deque

import msgspec
import nats.errors
from msgspec import Struct
from nats.aio.msg import Msg
from nats.js.api import Header

from contracts.codes import Code
from dataplane.buffers.jetstream.connection import NO_RESPONDERS, LeafConnection, status_of, unreachable
from dataplane.failures import RetryLater

IN_FLIGHT_BYTES_MAX = 8 << 20
IN_FLIGHT_MESSAGES_MAX = 1024
ACK_SECONDS_MAX = 10.0
FULL_RETRY_SECONDS = 0.05
FULL_ERROR = 10077
BEHIND_A_REFUSED = frozenset({FULL_ERROR, 10071, 10164})


class _AckError(Struct):
    err_code: int = 0
    description: str = ""


class _Ack(Struct):
    stream: str = ""
    seq: int = 0
    error: _AckError | None = None


_decode = msgspec.json.Decoder(_Ack).decode


class Outbox:
    """What one session publishes on `subject` behind message `last_sequence` of the stream."""

    def __init__(self, connection: LeafConnection, subject: str, last_sequence: int) -> None:
        self._connection = connection
        self._subject = subject
        self._next = last_sequence + 1
        self._waiting: deque[tuple[int, str, bytes]] = deque()
        """Sequence, subject and message of everything without an ack yet, in order."""
        self._bytes = 0
        self._unanswered = 0
        self._refused = False
        self._sending_again: asyncio.Task[None] | None = None
        self._moved = asyncio.Event()
        self._inbox = ""
        self._alarm: asyncio.TimerHandle | None = None

    async def open(self) -> None:
        """Listen for acks."""
        self._inbox = self._connection.client.new_inbox()
        await self._connection.client.subscribe(f"{self._inbox}.*", cb=self._on_ack)

    async def publish(self, message: bytes, subject: str | None = None) -> int:
        """Send one message once there is room on the way; return the sequence that it will have. One caller at a time.

        It goes to the outbox's own subject, or to another one of the same stream.

        Raises:
            RetryLater: the session is over.
        """
        while self._sending_again is not None or (
            self._waiting
            and (self._bytes + len(message) > IN_FLIGHT_BYTES_MAX or len(self._waiting) >= IN_FLIGHT_MESSAGES_MAX)
        ):
            await self._movement()
        sequence = self._next
        self._next += 1
        subject = self._subject if subject is None else subject
        self._waiting.append((sequence, subject, message))
        self._bytes += len(message)
        await self._send(sequence, subject, message)
        return sequence

    async def durable(self, sequence: int) -> None:
        """Wait until the message with `sequence` is durable.

        Raises:
            RetryLater: the session is over.
        """
        while self._waiting and self._waiting[0][0] <= sequence:
            await self._movement()

    @property
    def last_sequence(self) -> int:
        """The sequence of the newest message that was sent."""
        return self._next - 1

    def close(self) -> None:
        """Stop every timer."""
        if self._alarm is not None:
            self._alarm.cancel()
        if self._sending_again is not None:
            self._sending_again.cancel()

    async def _movement(self) -> None:
        self._moved.clear()
        await self._connection.race(self._moved.wait())

    async def _send(self, sequence: int, subject: str, message: bytes) -> None:
        self._connection.check()
        self._unanswered += 1
        if self._alarm is None:
            self._alarm = asyncio.get_running_loop().call_later(ACK_SECONDS_MAX, self._late, sequence)
        try:
            await self._connection.client.publish(
                subject,
                message,
                reply=f"{self._inbox}.{sequence}",
                headers={Header.EXPECTED_LAST_SEQUENCE.value: str(sequence - 1)},
            )
        except (OSError, nats.errors.Error) as error:
            raise unreachable(error) from error

    async def _on_ack(self, reply: Msg) -> None:
        sequence = int(reply.subject.rsplit(".", 1)[1])
        self._unanswered -= 1
        self._moved.set()
        if status_of(reply) == NO_RESPONDERS:
            self._fail("the buffer's stream is gone")
            return
        ack = _decode(reply.data)
        oldest = bool(self._waiting) and sequence == self._waiting[0][0]
        if ack.error is None:
            if not oldest or ack.seq != sequence:
                self._fail(f"the stream gave {ack.seq} to message {sequence}")
                return
            self._bytes -= len(self._waiting.popleft()[2])
        elif ack.error.err_code == FULL_ERROR and oldest:
            self._refused = True
            if self._sending_again is None:
                self._sending_again = asyncio.create_task(self._send_again())
        elif not (self._refused and ack.error.err_code in BEHIND_A_REFUSED):
            self._fail(f"the stream refused a message: {ack.error.description} ({ack.error.err_code})")

    async def _send_again(self) -> None:
        """Send everything that waits again, until the stream has taken it."""
        try:
            while self._refused or self._unanswered:
                while self._unanswered:
                    await self._movement()
                await asyncio.sleep(FULL_RETRY_SECONDS)
                self._refused = False
                for sequence, subject, message in list(self._waiting):
                    if self._refused:
                        break  # full again: the rest would be refused as well
                    await self._send(sequence, subject, message)
        except RetryLater as failure:
            self._connection.fail(failure)
        self._sending_again = None
        self._moved.set()

    def _late(self, sequence: int) -> None:
        self._alarm = None
        if not self._waiting:
            return
        oldest = self._waiting[0][0]
        if oldest == sequence and self._sending_again is None:
            self._fail("the leaf does not acknowledge")
            return
        self._alarm = asyncio.get_running_loop().call_later(ACK_SECONDS_MAX, self._late, oldest)

    def _fail(self, reason: str) -> None:
        self._connection.fail(RetryLater(Code.BUFFER_UNREACHABLE, reason))
