"""The thread that receives the stream and keeps its connection alive.

In flow what the server sends; out flow payloads of XLogData messages in a queue that is bounded by bytes, and status
updates. The source owns one `ReplicationStream` per session, from START_REPLICATION to its end.

The thread only receives and reports, whatever decoder and sink do: a server that hears nothing for `wal_sender_timeout`
cuts the connection, and a decoder that is busy must not cause that. It reads until nothing is left and then waits: a third
of a millisecond under load, so that one read takes many messages; otherwise until something comes, a status update is due,
or the source wakes it. So idling costs nothing and a message that comes alone is handed on at once. When the queue is full it
stops reading, and TCP stops the server; status updates go on.

What the server may forget is said by `confirm` alone. Keepalives never move it.
"""

import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum

import psycopg
from psycopg import errors, pq

from contracts.codes import Code
from dataplane.failures import Failure, RetryLater
from dataplane.postgres import Side, failure
from dataplane.sources.postgres.messages import KEEPALIVE, XLOG_DATA, keepalive, status_update
from dataplane.sources.postgres.replication import stream_failure

STATUS_SECONDS_MAX = 10.0
GATHER_SECONDS = 0.0003
"""Under load the next read waits this long, to find more. Longer, and the socket fills, which costs the server more."""
FULL_BYTES = 8 << 10
"""A read of so many bytes has filled libpq's buffer: more is waiting."""
STEADY_READS = 8
STEADY_READS_MAX = 16
STEADY_READS_PER_SECOND = 400
"""It is load when reads found something more often than so many times a second, `STEADY_READS` times more often in all.

A gap of some milliseconds, as when the server waits for a processor, does not end it at once.
"""
TELL_BYTES_MAX = 1 << 20
TELL_SECONDS_MAX = 0.02
"""Under load the consumer is told of what came after so many bytes or seconds, so that it gets many rows at once."""
FLUSH_SECONDS_MAX = 30.0
ROUND_MESSAGES_MAX = 4096


class Step(Enum):
    """What the thread does next."""

    READ = "read"
    """More is there already."""
    GATHER = "gather"
    """Data flows steadily: wait a moment, and find more of it at once."""
    WAIT = "wait"
    """Nothing is there: wait until something comes."""


class Pace:
    """Decides when to read, when to wait, and when to tell the consumer. One message alone is told of at once."""

    def __init__(self) -> None:
        self._steady = 0.0
        self._last = 0.0
        self._untold = 0
        self._told_at = 0.0

    def after(self, size: int, now: float) -> Step:
        """Return the next step after a read of `size` bytes."""
        self._untold += size
        if size == 0:
            return Step.WAIT
        left = max(0.0, self._steady - (now - self._last) * STEADY_READS_PER_SECOND)
        self._steady = min(left + 1, STEADY_READS_MAX)
        self._last = now
        if self._steady < STEADY_READS:
            return Step.WAIT
        return Step.READ if size >= FULL_BYTES else Step.GATHER

    def is_due(self, now: float) -> bool:
        """Say whether the consumer must be told although more is coming."""
        return self._untold >= TELL_BYTES_MAX or now >= self._told_at + TELL_SECONDS_MAX

    def told(self, now: float) -> bool:
        """Note that the consumer is told now. Return whether there is anything to tell."""
        anything = self._untold > 0
        self._untold, self._told_at = 0, now
        return anything


@dataclass(slots=True)
class Received:
    """What the queue gave: payloads of XLogData, and what was known when the last of them had come.

    `wal_end` is the end of the server's log as a keepalive named it: everything that was committed before it has been
    sent. `reply_requested` says that the server waits for an answer.
    """

    payloads: list[bytes] = field(default_factory=list)
    byte_size: int = 0
    wal_end: int = 0
    reply_requested: bool = False


class ReplicationStream:
    """Receives in a thread of its own until `close`. `on_arrival` is called in that thread whenever something came.

    Raises nothing by itself: how it ended is raised by `take`, after all that had come before.
    """

    def __init__(
        self,
        pgconn: pq.abc.PGconn,
        *,
        confirmed: int,
        status_seconds: float,
        queue_bytes_max: int,
        on_arrival: Callable[[], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._pgconn = pgconn
        self._status_seconds = status_seconds
        self._queue_bytes_max = queue_bytes_max
        self._on_arrival = on_arrival
        self._clock = clock
        self._lock = threading.Lock()
        self._queue: deque[tuple[list[bytes], int]] = deque()
        self._queued_bytes = 0
        self._wal_end = 0
        self._reply_requested = False
        self._ended: Failure | None = None
        self._confirmed = confirmed
        self._sent_confirmed = confirmed
        self._written = confirmed
        self._closing = False
        self._asking = False
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)
        self._thread = threading.Thread(target=self._run, name="replication", daemon=True)

    def begin(self) -> None:
        """Start the thread."""
        self._pgconn.nonblocking = 1
        self._thread.start()

    @property
    def queued_bytes(self) -> int:
        """How many bytes have come and were not taken yet."""
        return self._queued_bytes

    @property
    def wal_end(self) -> int:
        """The newest end of the server's log that a keepalive named."""
        return self._wal_end

    def confirm(self, lsn: int) -> None:
        """Let the server forget everything up to `lsn`. Never goes back. Sent at once."""
        if lsn > self._confirmed:
            self._confirmed = lsn
            self._wake()

    def ask(self) -> None:
        """Ask the server for a keepalive, which says where its log ends."""
        self._asking = True
        self._wake()

    def take(self, bytes_max: int, messages_max: int) -> Received:
        """Take what has come, about `bytes_max` bytes and `messages_max` messages at most; nothing is left on a tie.

        Raises:
            Failure: the stream has ended and everything that came was taken.
        """
        received = Received()
        with self._lock:
            full = self._queued_bytes >= self._queue_bytes_max
            while self._queue and received.byte_size < bytes_max and len(received.payloads) < messages_max:
                payloads, size = self._queue.popleft()
                received.payloads.extend(payloads)
                received.byte_size += size
            self._queued_bytes -= received.byte_size
            if not self._queue:
                received.wal_end, received.reply_requested = self._wal_end, self._reply_requested
                self._reply_requested = False
            ended = self._ended if not self._queue and not received.payloads else None
            room = full and self._queued_bytes < self._queue_bytes_max
        if room:
            self._wake()
        if ended is not None:
            raise ended
        return received

    def close(self) -> None:
        """End the thread and the connection. The last confirmed position is sent first. May be called twice."""
        self._closing = True
        if self._thread.ident is None:
            self._finish()
            return
        self._wake()
        if self._thread is not threading.current_thread():
            self._thread.join(timeout=FLUSH_SECONDS_MAX)

    def _wake(self) -> None:
        try:
            os.write(self._wake_write, b"\0")
        except (BlockingIOError, OSError):
            return  # a wake-up is already on its way, or the thread has ended

    # ---- in the thread ------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._receive()
        except Failure as ended:
            self._end(ended)
        except (psycopg.Error, OSError) as error:
            cause = error if isinstance(error, psycopg.Error) else psycopg.OperationalError(str(error))
            self._end(failure(cause, Side.SOURCE))
        finally:
            self._finish()
            self._on_arrival()

    def _end(self, ended: Failure) -> None:
        with self._lock:
            self._ended = ended

    def _finish(self) -> None:
        self._pgconn.finish()
        with self._lock:
            if self._wake_read >= 0:
                os.close(self._wake_read)
                os.close(self._wake_write)
                self._wake_read = self._wake_write = -1

    def _receive(self) -> None:
        poll = select.poll()
        poll.register(self._pgconn.socket, select.POLLIN)
        poll.register(self._wake_read, select.POLLIN)
        pace = Pace()
        due = 0.0
        asked = False
        while True:
            now = time.monotonic()
            if asked or now >= due or self._confirmed != self._sent_confirmed or self._asking or self._closing:
                self._send_status()
                due = now + self._status_seconds
                if self._closing:
                    return
            if self._queued_bytes >= self._queue_bytes_max:
                self._tell(pace, now)
                self._wait_for_room(max(0.0, due - now))
                asked = False
                continue
            size, asked = self._read()
            next_step = pace.after(size, now)
            if next_step is Step.WAIT or pace.is_due(now):
                self._tell(pace, now)
            if next_step is Step.GATHER:
                time.sleep(GATHER_SECONDS)
            elif next_step is Step.WAIT and not asked:
                poll.poll(max(0.0, due - now) * 1000)
                self._drain_wake()
            self._pgconn.consume_input()

    def _tell(self, pace: "Pace", now: float) -> None:
        if pace.told(now):
            self._on_arrival()

    def _wait_for_room(self, seconds: float) -> None:
        poll = select.poll()
        poll.register(self._wake_read, select.POLLIN)
        poll.poll(seconds * 1000)
        self._drain_wake()

    def _read(self) -> tuple[int, bool]:
        """Hand on what libpq holds. Return how many bytes that was, and whether the server asked for a status."""
        get = self._pgconn.get_copy_data
        payloads: list[bytes] = []
        size = 0
        asked = False
        wal_end = 0
        while len(payloads) < ROUND_MESSAGES_MAX:
            length, data = get(1)
            if length > 0:
                kind = data[0]
                if kind == XLOG_DATA:
                    payloads.append(bytes(data))
                    size += length
                elif kind == KEEPALIVE:
                    sign = keepalive(bytes(data))
                    wal_end = sign.wal_end
                    asked |= sign.reply_requested
            elif length == 0:
                break
            else:
                self._raise_end()
        if payloads or wal_end:
            with self._lock:
                if payloads:
                    self._queue.append((payloads, size))
                    self._queued_bytes += size
                    self._written = max(self._written, int.from_bytes(payloads[-1][1:9], "big"))
                if wal_end:
                    self._wal_end = max(self._wal_end, wal_end)
                    self._written = max(self._written, wal_end)
                self._reply_requested |= asked
            if asked:
                self._on_arrival()
        return size, asked

    def _raise_end(self) -> None:
        result = self._pgconn.get_result()
        if result is not None and result.status == pq.ExecStatus.FATAL_ERROR:
            raise stream_failure(errors.error_from_result(result, encoding="utf-8"))
        raise RetryLater(Code.SOURCE_UNREACHABLE, "the server ended the stream")

    def _send_status(self) -> None:
        confirmed = self._confirmed
        update = status_update(
            max(self._written, confirmed), confirmed, int(self._clock() * 1_000_000), ask=self._asking
        )
        self._asking = False
        self._pgconn.put_copy_data(update)
        end = time.monotonic() + FLUSH_SECONDS_MAX
        while self._pgconn.flush():
            writable = select.poll()
            writable.register(self._pgconn.socket, select.POLLOUT | select.POLLIN)
            writable.poll(100)
            self._pgconn.consume_input()
            if time.monotonic() > end:
                raise RetryLater(Code.SOURCE_UNREACHABLE, "the server does not take a status update")
        self._sent_confirmed = confirmed

    def _drain_wake(self) -> None:
        try:
            os.read(self._wake_read, 4096)
        except BlockingIOError:
            return
