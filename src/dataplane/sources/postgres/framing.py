"""The frames of PostgreSQL's wire protocol while a COPY runs in both directions, as bytes. No I/O.

In flow chunks as a socket gave them, cut anywhere; out flow the payloads of whole CopyData messages. `wire` calls it when
it reads the socket itself. A frame is a type byte, a length that counts itself but not the type (32 bits, big-endian),
and the rest. Everything that is not CopyData ends the stream or says nothing about rows.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import psycopg
from psycopg import errors

from contracts.codes import Code
from dataplane.failures import Permanent
from dataplane.sources.postgres.messages import KEEPALIVE, NO_MESSAGES, XLOG_DATA, Messages, Offsets, keepalive

HEADER_BYTES = 5
LENGTH_MIN = 4
LENGTH_MAX = 0x3FFFFFFF + LENGTH_MIN
"""The server itself makes no longer message."""
ERROR_BYTES_MAX = 30_000
"""The server cuts what an error quotes; libpq takes no longer one either."""

COPY_DATA, COPY_DONE, COPY_BOTH = (ord(letter) for letter in "dcW")
ERROR, COMMAND_COMPLETE, READY = (ord(letter) for letter in "ECZ")
NOTICE, PARAMETER, NOTIFICATION = (ord(letter) for letter in "NSA")

_PASSED_OVER = frozenset({NOTICE, PARAMETER, NOTIFICATION})
_ENDS = frozenset({COPY_DONE, COMMAND_COMPLETE, READY})
_KEEPALIVE = bytes((KEEPALIVE,))


@dataclass(slots=True)
class Taken:
    """What one read gave. `wal_end` and `asked` are what its keepalives said: 0 and false when there was none.

    `flow_bytes` is how much came, but for mere keepalives. `cut` says that it ended within a frame: the server had more
    to send and was not let. `ended` that the server will
    send no more rows; `error` why, if it said.
    """

    messages: Messages = NO_MESSAGES
    byte_size: int = 0
    flow_bytes: int = 0
    wal_end: int = 0
    asked: bool = False
    cut: bool = False
    ended: bool = False
    error: psycopg.Error | None = None

    def sign(self, payload: bytes) -> None:
        """Note a keepalive."""
        sign = keepalive(payload)
        self.wal_end = max(self.wal_end, sign.wal_end)
        self.asked |= sign.reply_requested


def copy_data(payload: bytes) -> bytes:
    """Return the frame of a CopyData message."""
    return struct.pack(">ci", b"d", len(payload) + LENGTH_MIN) + payload


class Cutter:
    """Cuts chunks into frames. What is left of the last one waits here, at most one frame."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._held = 0
        self._needed = HEADER_BYTES

    @property
    def missing_bytes(self) -> int:
        """How much of the frame that waits has not come; of the next one's header when none waits."""
        return self._needed - self._held

    def cut(self, chunk: bytes) -> Taken:
        """Take what has come, and give what is whole.

        Raises:
            Permanent: a length is impossible (Code.SOURCE_PROTOCOL).
        """
        taken = Taken()
        size = len(chunk)
        if self._held:
            if self._held + len(chunk) < self._needed:
                # A large frame is not joined before it is whole: that would copy its beginning again and again.
                self._parts.append(chunk)
                self._held += len(chunk)
                taken.cut = True
                taken.flow_bytes = size
                return taken
            chunk = b"".join((*self._parts, chunk))
        self._keep(chunk, _frames(chunk, taken))
        taken.cut = self._held > 0
        taken.flow_bytes = size if taken.cut or len(taken.messages) else 0
        return taken

    def _keep(self, chunk: bytes, at: int) -> None:
        rest = chunk[at:]
        self._parts = [rest]
        self._held = len(rest)
        self._needed = HEADER_BYTES
        if self._held >= HEADER_BYTES:
            self._needed = 1 + _checked(int.from_bytes(rest[1:HEADER_BYTES], "big"), rest[0])


_length_at = struct.Struct(">xI").unpack_from


def _frames(chunk: bytes, taken: Taken) -> int:
    """Put what the whole frames of `chunk` say into `taken`. Return where the first one begins that is not whole."""
    found: list[int] = []
    add = found.append
    at = 0
    last = len(chunk) - HEADER_BYTES
    # Each frame says where the next one begins, so this goes one by one, and does nothing else. What it was told is
    # checked below: until then a wrong length only leads astray.
    while at <= last:
        add(at)
        (length,) = _length_at(chunk, at)
        at += length + 1
    if not found:
        return 0
    found.append(at)
    bounds = np.array(found, np.int64)
    if at > len(chunk):
        bounds = bounds[:-1]
    if len(bounds) > 1:
        _sort(chunk, bounds, taken)
    return int(bounds[-1])


def _sort(chunk: bytes, bounds: Offsets, taken: Taken) -> None:
    """Put frames into `taken`: rows as they are, what is between them by its meaning."""
    buffer = np.frombuffer(chunk, np.uint8)
    starts, ends = bounds[:-1], bounds[1:]
    # A frame without a body has no letter; what it is taken for instead cannot be a row, as it is shorter than any.
    letters = buffer[np.minimum(starts + HEADER_BYTES, len(chunk) - 1)]
    rows = (buffer[starts] == COPY_DATA) & (letters == XLOG_DATA) & (ends - starts > HEADER_BYTES)
    lengths = ends - starts - 1
    if not (rows.all() and int(lengths.max()) <= LENGTH_MAX):
        for number in np.flatnonzero(~rows | (lengths > LENGTH_MAX)).tolist():
            start, end = int(starts[number]), int(ends[number])
            _checked(end - start - 1, chunk[start])
            _other(chunk[start], chunk[start + HEADER_BYTES : end], taken)
        starts, ends = starts[rows], ends[rows]
    taken.messages = Messages(chunk, starts + HEADER_BYTES, ends)
    taken.byte_size = taken.messages.byte_size


def _checked(length: int, kind: int) -> int:
    if not LENGTH_MIN <= length <= LENGTH_MAX or (kind == ERROR and length > ERROR_BYTES_MAX):
        raise Permanent(Code.SOURCE_PROTOCOL, f"a message of type {kind} has the impossible length {length}")
    return length


def _other(kind: int, body: bytes, taken: Taken) -> None:
    if kind == ERROR:
        taken.ended = True
        taken.error = taken.error or error_of(body)
    elif kind in _ENDS:
        taken.ended = True
    elif kind == COPY_DATA:
        if body[:1] == _KEEPALIVE:
            taken.sign(body)
    elif kind not in _PASSED_OVER:
        raise Permanent(Code.SOURCE_PROTOCOL, f"a message of type {kind} has no place in a stream")


def error_of(body: bytes) -> psycopg.Error:
    """Return the error that an ErrorResponse says."""
    fields = _fields(body)
    text = f"{fields.get('S', 'ERROR')}:  {fields.get('M', '')}"
    if detail := fields.get("D"):
        text += f"\nDETAIL:  {detail}"
    try:
        return errors.lookup(fields.get("C", ""))(text)
    except KeyError:
        return psycopg.OperationalError(text)


def _fields(body: bytes) -> Mapping[str, str]:
    return {chr(part[0]): part[1:].decode("utf-8", "replace") for part in body.split(b"\0") if part}
