"""The thread that receives the stream and keeps its connection alive.

In flow what the server sends; out flow payloads of XLogData messages in a queue that is bounded by bytes, and status
updates. The source owns one `ReplicationStream` per session, from START_REPLICATION to its end.

The thread only receives and reports, whatever decoder and sink do: a server that hears nothing for `wal_sender_timeout`
cuts the connection, and a decoder that is busy must not cause that. Between reads it waits: under load a moment, as `pace`
says, so that one read takes many messages; otherwise until something comes, a status update is due, or the source wakes
it. So idling costs nothing and a message that comes alone is handed on at once. When the queue is full it
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

import psycopg

from contracts.codes import Code
from dataplane.failures import Failure, RetryLater
from dataplane.postgres import Side, failure
from dataplane.sources.postgres.framing import Taken
from dataplane.sources.postgres.messages import KEPT_BYTES, Messages, status_update
from dataplane.sources.postgres.pace import Pace, Step
from dataplane.sources.postgres.replication import stream_failure
from dataplane.sources.postgres.wire import Wire

STATUS_SECONDS_MAX = 10.0
CLOSE_SECONDS_MAX = 30.0


@dataclass(slots=True)
class Received:
    """What the queue gave: messages of XLogData as reads found them, and what was known when the last of them had come.

    `wal_end` is the end of the server's log as a keepalive named it: everything that was committed before it has been
    sent. `reply_requested` says that the server waits for an answer.
    """

    parts: list[Messages] = field(default_factory=list)
    byte_size: int = 0
    wal_end: int = 0
    reply_requested: bool = False


class ReplicationStream:
    """Receives in a thread of its own until `close`. `on_arrival` is called in that thread whenever something came.

    Raises nothing by itself: how it ended is raised by `take`, after all that had come before.
    """

    def __init__(
        self,
        wire: Wire,
        *,
        confirmed: int,
        status_seconds: float,
        queue_bytes_max: int,
        on_arrival: Callable[[], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._wire = wire
        self._status_seconds = status_seconds
        self._queue_bytes_max = queue_bytes_max
        self._on_arrival = on_arrival
        self._clock = clock
        self._lock = threading.Lock()
        self._queue: deque[tuple[Messages, int]] = deque()
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
            count = 0
            while self._queue and received.byte_size < bytes_max and count < messages_max:
                messages, size = self._queue.popleft()
                received.parts.append(messages)
                received.byte_size += size
                count += len(messages)
            self._queued_bytes -= received.byte_size + KEPT_BYTES * len(received.parts)
            if not self._queue:
                received.wal_end, received.reply_requested = self._wal_end, self._reply_requested
                self._reply_requested = False
            ended = self._ended if not self._queue and not received.parts else None
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
            self._thread.join(timeout=CLOSE_SECONDS_MAX)

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
        self._wire.close()
        with self._lock:
            if self._wake_read >= 0:
                os.close(self._wake_read)
                os.close(self._wake_write)
                self._wake_read = self._wake_write = -1

    def _receive(self) -> None:
        poll = select.poll()
        poll.register(self._wire.fileno(), select.POLLIN)
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
            taken = self._wire.read()
            asked = taken.asked
            self._hand_on(taken)
            step = pace.after(taken.flow_bytes, now, closes_window=self._wire.closes_window, cut=taken.cut)
            if step in (Step.WAIT, Step.LINGER) or pace.is_due(now):
                self._tell(pace, now)
            if step in (Step.GATHER, Step.LINGER):
                # Not `time.sleep`: it sleeps until an absolute moment, and where clocks are moved by a library (as in the
                # chaos suite) one that has just passed is an error.
                select.select((), (), (), pace.gather_seconds)
            elif step is Step.WAIT and not asked:
                poll.poll(max(0.0, due - now) * 1000)
                self._drain_wake()

    def _tell(self, pace: "Pace", now: float) -> None:
        if pace.told(now):
            self._on_arrival()

    def _wait_for_room(self, seconds: float) -> None:
        poll = select.poll()
        poll.register(self._wake_read, select.POLLIN)
        poll.poll(seconds * 1000)
        self._drain_wake()

    def _hand_on(self, taken: Taken) -> None:
        """Put what was read into the queue. Raises what ended the stream, once everything before it is there."""
        if len(taken.messages) or taken.wal_end:
            with self._lock:
                if len(taken.messages):
                    self._queue.append((taken.messages, taken.byte_size))
                    self._queued_bytes += taken.byte_size + KEPT_BYTES
                    self._written = max(self._written, taken.messages.last_lsn)
                if taken.wal_end:
                    self._wal_end = max(self._wal_end, taken.wal_end)
                    self._written = max(self._written, taken.wal_end)
                self._reply_requested |= taken.asked
            if taken.asked:
                self._on_arrival()
        if taken.ended:
            if taken.error is not None:
                raise stream_failure(taken.error)
            raise RetryLater(Code.SOURCE_UNREACHABLE, "the server ended the stream")

    def _send_status(self) -> None:
        confirmed = self._confirmed
        update = status_update(
            max(self._written, confirmed), confirmed, int(self._clock() * 1_000_000), ask=self._asking
        )
        self._asking = False
        self._wire.send(update)
        self._sent_confirmed = confirmed

    def _drain_wake(self) -> None:
        try:
            os.read(self._wake_read, 4096)
        except BlockingIOError:
            return
