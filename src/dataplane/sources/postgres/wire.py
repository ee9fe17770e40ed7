"""A replication connection once its stream runs: bytes in, CopyData messages out, and back again.

In flow a connection of libpq in COPY_BOTH; out flow `Taken`s. `stream` calls it from its thread.

Two ways, under one protocol. `LibpqWire` lets libpq read: always possible, and needed with TLS, but it gives one message a
call. `SocketWire` reads the socket itself, which costs a third for each row; `take_over` makes one where nothing lies between
libpq and the socket, right behind the answer to START_REPLICATION, before libpq has read anything of the stream.

A server sends each row by itself. Over loopback each then is a packet, which costs the server as much as decoding the
row; unless the receiver's window is closed, for then rows gather in the socket's send queue and leave it together. So with
a peer that is near, `SocketWire` keeps its receive buffer small, and `pace` lets it fill. Over a real network a small
window would cap the throughput, and there the interface gathers rows anyway.
"""

import contextlib
import os
import select
import socket
import sys
import time
from typing import Protocol

import psycopg
from psycopg import errors, pq

from contracts.codes import Code
from dataplane.failures import RetryLater
from dataplane.sources.postgres.framing import COPY_BOTH, HEADER_BYTES, Cutter, Taken, copy_data
from dataplane.sources.postgres.messages import KEEPALIVE, XLOG_DATA, Messages

RECEIVE_BYTES = 256 << 10
RECEIVE_BYTES_MAX = 4 << 20
"""What one read takes at most; the larger when one message is that large."""
LIBPQ_ROUND_BYTES = 1 << 20
FLUSH_SECONDS_MAX = 30.0

NARROW_BYTES = 64 << 10
"""The receive buffer for rows. The kernel doubles it, so a segment of loopback (65,483 bytes) always fits the window: a
smaller one would never open far enough for the sender."""
WIDE_BYTES = 1 << 20
"""The receive buffer for large values, which the server does not send one packet each anyway."""
WIDE_FRAME_BYTES = 4 << 10
"""From so many bytes a message on, messages are large."""
NEAR_MICROSECONDS_MAX = 200
"""A peer whose packets are acknowledged sooner is near: on this machine, or next to it."""
_TCP_INFO_MIN_RTT = slice(148, 152)


class Wire(Protocol):
    """What a stream needs of its connection."""

    @property
    def closes_window(self) -> bool:
        """Whether a server that is let wait gathers its rows meanwhile."""
        ...

    def fileno(self) -> int:
        """The socket to wait at."""
        ...

    def read(self) -> Taken:
        """Take what has come; never waits.

        Raises:
            psycopg.Error, OSError: the connection was lost.
            Permanent: what came is not of the protocol.
        """
        ...

    def send(self, payload: bytes) -> None:
        """Send a CopyData message; waits `FLUSH_SECONDS_MAX` at most.

        Raises:
            psycopg.Error, OSError, RetryLater: it could not be sent.
        """
        ...

    def close(self) -> None:
        """Close the connection. May be called twice."""
        ...


class LibpqWire:
    """Through libpq, one message a call."""

    closes_window = False

    def __init__(self, pgconn: pq.abc.PGconn) -> None:
        pgconn.nonblocking = 1
        self._pgconn = pgconn

    def fileno(self) -> int:
        """As the protocol says."""
        return self._pgconn.socket

    def read(self) -> Taken:
        """As the protocol says."""
        taken = Taken()
        # A decrypted record may be larger than the room in libpq's buffer, and no socket tells of what is left of it. So
        # with TLS one reads until two calls have brought nothing: half a record always fits.
        quiet_max = 2 if self._pgconn.ssl_in_use or self._pgconn.used_gssapi else 1
        quiet = 0
        payloads: list[bytes] = []
        while quiet < quiet_max and not taken.ended and taken.byte_size < LIBPQ_ROUND_BYTES:
            count = len(payloads)
            self._pgconn.consume_input()
            self._take(taken, payloads)
            quiet = quiet + 1 if len(payloads) == count or quiet_max == 1 else 0
        if payloads:
            taken.messages = Messages.of(payloads)
        taken.cut = taken.byte_size >= LIBPQ_ROUND_BYTES
        taken.flow_bytes = taken.byte_size
        return taken

    def _take(self, taken: Taken, payloads: list[bytes]) -> None:
        get = self._pgconn.get_copy_data
        add = payloads.append
        while True:
            # Until nothing whole is left, however much that is: nobody wakes us for what libpq holds already.
            length, data = get(1)
            if length > 0:
                kind = data[0]
                if kind == XLOG_DATA:
                    add(bytes(data))
                    taken.byte_size += length
                elif kind == KEEPALIVE:
                    taken.sign(bytes(data))
            elif length == 0:
                break
            else:
                taken.ended = True
                result = self._pgconn.get_result()
                if result is not None and result.status == pq.ExecStatus.FATAL_ERROR:
                    taken.error = errors.error_from_result(result, encoding="utf-8")
                break

    def send(self, payload: bytes) -> None:
        """As the protocol says."""
        self._pgconn.put_copy_data(payload)
        end = time.monotonic() + FLUSH_SECONDS_MAX
        while self._pgconn.flush():
            _wait_until_writable(self._pgconn.socket, end, select.POLLOUT | select.POLLIN)
            self._pgconn.consume_input()

    def close(self) -> None:
        """As the protocol says."""
        self._pgconn.finish()


class SocketWire:
    """At the socket of a connection that libpq made and will close, but neither reads nor writes any more."""

    def __init__(self, pgconn: pq.abc.PGconn, link: socket.socket) -> None:
        self._pgconn = pgconn
        self._link = link
        self._cutter = Cutter()
        self._near = _is_near(link)
        self._wide = False
        if self._near:
            self._resize(wide=False)

    @property
    def closes_window(self) -> bool:
        """As the protocol says."""
        return self._near and not self._wide

    def fileno(self) -> int:
        """As the protocol says."""
        return self._link.fileno()

    def read(self) -> Taken:
        """As the protocol says."""
        try:
            chunk = self._link.recv(min(max(RECEIVE_BYTES, self._cutter.missing_bytes), RECEIVE_BYTES_MAX))
        except (BlockingIOError, InterruptedError):
            return Taken()
        if not chunk:
            raise psycopg.OperationalError("the server closed the connection")
        taken = self._cutter.cut(chunk)
        if self._near:
            self._fit(len(chunk), len(taken.messages))
        return taken

    def send(self, payload: bytes) -> None:
        """As the protocol says."""
        left = memoryview(copy_data(payload))
        end = time.monotonic() + FLUSH_SECONDS_MAX
        while left:
            try:
                left = left[self._link.send(left) :]
            except (BlockingIOError, InterruptedError):
                _wait_until_writable(self._link.fileno(), end, select.POLLOUT)

    def close(self) -> None:
        """As the protocol says."""
        self._link.close()
        self._pgconn.finish()

    def _fit(self, size: int, messages: int) -> None:
        """Have a large buffer for large messages, a small one for rows."""
        if size < RECEIVE_BYTES // 8:
            return
        wide = size > messages * WIDE_FRAME_BYTES
        if wide is not self._wide:
            self._resize(wide=wide)

    def _resize(self, *, wide: bool) -> None:
        self._wide = wide
        self._link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, WIDE_BYTES if wide else NARROW_BYTES)


def take_over(pgconn: pq.abc.PGconn) -> SocketWire | None:
    """Make a wire of the connection's own socket, if the answer to START_REPLICATION is there and says that all is well.

    None when something lies between libpq and the socket, or the answer is another one: libpq then goes on, and nothing
    was taken from it. libpq must not have read any of the answer.
    """
    if sys.platform == "win32" or pgconn.ssl_in_use or pgconn.used_gssapi:
        return None
    link = socket.socket(fileno=os.dup(pgconn.socket))
    link.setblocking(False)
    with contextlib.suppress(BlockingIOError, InterruptedError):
        head = link.recv(HEADER_BYTES, socket.MSG_PEEK)
        if len(head) == HEADER_BYTES and head[0] == COPY_BOTH:
            size = 1 + int.from_bytes(head[1:], "big")
            if size <= RECEIVE_BYTES and len(link.recv(size, socket.MSG_PEEK)) == size:
                link.recv(size)
                return SocketWire(pgconn, link)
    link.close()
    return None


def _is_near(link: socket.socket) -> bool:
    """Say whether the peer is so near that a small window caps nothing: known where the kernel tells the round trip."""
    if link.family not in (socket.AF_INET, socket.AF_INET6) or sys.platform != "linux":
        return False
    told = link.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_MIN_RTT.stop)
    least = int.from_bytes(told[_TCP_INFO_MIN_RTT], sys.byteorder)
    return len(told) == _TCP_INFO_MIN_RTT.stop and 0 < least <= NEAR_MICROSECONDS_MAX


def _wait_until_writable(fileno: int, end: float, events: int) -> None:
    if time.monotonic() > end:
        raise RetryLater(Code.SOURCE_UNREACHABLE, "the server does not take a status update")
    poll = select.poll()
    poll.register(fileno, events)
    poll.poll(100)
