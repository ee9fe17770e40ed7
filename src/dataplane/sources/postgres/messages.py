"""The messages of logical replication as bytes: what the server sends in CopyData, and what we answer.

In flow the payloads of CopyData messages; out flow many of them in one buffer with vectorised offsets, parsed
Relation and Truncate messages, and the bytes of a status update. Called by the decoder and by the replication thread.
No I/O. Nothing here makes an object of each message: that would cost more than decoding it. Numbers of the protocol are big-endian; its times are microseconds since 2000-01-01 UTC.
"""

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from contracts.codes import Code
from dataplane.failures import Permanent

XLOG_DATA = ord("w")
KEEPALIVE = ord("k")
XLOG_HEADER_BYTES = 25
"""Of an XLogData message: its type, the position of the data, the log's end, and the server's clock."""

BEGIN, COMMIT, INSERT, UPDATE, DELETE = (ord(letter) for letter in "BCIUD")
RELATION, TRUNCATE, TYPE, ORIGIN, MESSAGE = (ord(letter) for letter in "RTYOM")
STREAM_START, STREAM_STOP, STREAM_COMMIT, STREAM_ABORT = (ord(letter) for letter in "SEcA")

XID_BYTES = 4
"""Between a message's type and its fields stands its transaction's number while a transaction is sent in progress."""
PREFIX_BYTES_MAX = 256
KEPT_BYTES = 512
"""What keeping a part of the stream costs besides its messages: much, for a read that brought a single row."""

POSTGRES_EPOCH_MICROSECONDS = 946_684_800_000_000
"""2000-01-01, the protocol's zero, in microseconds since 1970."""

PADDING_BYTES = 8
"""Behind the last message of a run, so that eight bytes may be read at any of its bytes."""

Bytes = npt.NDArray[np.uint8]
Offsets = npt.NDArray[np.int64]


class Keepalive(NamedTuple):
    """The server's sign of life: where its log ends for us, and whether it waits for an answer."""

    wal_end: int
    reply_requested: bool


def keepalive(payload: bytes) -> Keepalive:
    """Parse a keepalive."""
    return Keepalive(int.from_bytes(payload[1:9], "big"), payload[17] != 0)


def status_update(written: int, flushed: int, now_microseconds: int, *, ask: bool = False) -> bytes:
    """Return the bytes of a standby status update; `now_microseconds` counts from 1970. `ask` wants a keepalive back.

    Only `flushed` lets the server forget. It is also sent as applied.
    """
    return struct.pack(">cQQQqB", b"r", written, flushed, flushed, now_microseconds - POSTGRES_EPOCH_MICROSECONDS, ask)


def lsn_text(lsn: int) -> str:
    """Return an LSN as the server writes it."""
    return f"{lsn >> 32:X}/{lsn & 0xFFFFFFFF:X}"


def lsn_number(text: str) -> int:
    """Return the number of an LSN that the server wrote."""
    high, low = text.split("/")
    return (int(high, 16) << 32) | int(low, 16)


class Run(NamedTuple):
    """Messages joined: `starts` are the offsets of their type bytes in `buffer`, `ends` those behind their last ones."""

    buffer: Bytes
    starts: Offsets
    ends: Offsets
    types: Bytes


@dataclass(frozen=True, slots=True, eq=False)
class Messages:
    """Payloads of XLogData messages in one buffer, in their order: from `starts` to `ends`, and anything in between."""

    data: bytes | memoryview
    starts: Offsets
    ends: Offsets

    @classmethod
    def of(cls, payloads: Sequence[bytes]) -> "Messages":
        """Put payloads one behind the other."""
        lengths = np.fromiter(map(len, payloads), np.int64, len(payloads))
        ends = np.cumsum(lengths)
        return cls(b"".join((*payloads, bytes(PADDING_BYTES))), ends - lengths, ends)

    @classmethod
    def joined(cls, parts: Sequence["Messages"]) -> "Messages":
        """Put parts one behind the other."""
        parts = [part for part in parts if len(part)]
        if len(parts) == 1:
            return parts[0]
        if not parts:
            return NO_MESSAGES
        return cls.copied(parts)

    @classmethod
    def copied(cls, parts: Sequence["Messages"]) -> "Messages":
        """Copy parts, of which none is empty, into one buffer, with `PADDING_BYTES` behind the last."""
        views: list[bytes | memoryview] = []
        starts, ends, size = [], [], 0
        for part in parts:
            first, last = int(part.starts[0]), int(part.ends[-1])
            views.append(memoryview(part.data)[first:last])
            starts.append(part.starts + (size - first))
            ends.append(part.ends + (size - first))
            size += last - first
        views.append(bytes(PADDING_BYTES))
        return cls(b"".join(views), np.concatenate(starts), np.concatenate(ends))

    def __len__(self) -> int:
        """How many they are."""
        return len(self.starts)

    def __iter__(self) -> Iterator[bytes]:
        """Give each payload."""
        return map(self.payload, range(len(self)))

    @property
    def byte_size(self) -> int:
        """The bytes of all payloads."""
        return int((self.ends - self.starts).sum())

    def payload(self, index: int) -> bytes:
        """Return one payload."""
        return bytes(self.data[int(self.starts[index]) : int(self.ends[index])])

    @property
    def last_lsn(self) -> int:
        """Where the record of the last one begins in the server's log."""
        at = int(self.starts[-1]) + 1
        return int.from_bytes(self.data[at : at + 8], "big")

    def letters(self) -> bytes:
        """Return the type of each message.

        Raises:
            Permanent: one is shorter than its header (Code.SOURCE_PROTOCOL).
        """
        if len(self) and int((self.ends - self.starts).min()) <= XLOG_HEADER_BYTES:
            raise Permanent(Code.SOURCE_PROTOCOL, "a message is shorter than its header")
        return np.frombuffer(self.data, np.uint8)[self.starts + XLOG_HEADER_BYTES].tobytes()

    def part(self, start: int, stop: int) -> "Messages":
        """Return those from `start` to `stop`, in the same buffer."""
        return Messages(self.data, self.starts[start:stop], self.ends[start:stop])

    def kept(self, flags: npt.NDArray[np.bool_]) -> "Messages":
        """Return those whose flag is set, in the same buffer."""
        return Messages(self.data, self.starts[flags], self.ends[flags])

    def packed(self) -> "Messages":
        """Return them in a buffer of their own where the shared one is much larger: it would be kept as long as they."""
        size_max = 2 * self.byte_size + PADDING_BYTES
        if len(self.data) <= size_max:
            return self
        if not len(self):
            return NO_MESSAGES
        if self.ends[-1] - self.starts[0] <= size_max:
            return self.copied((self,))
        return Messages.of(list(self))

    def padded(self) -> "Messages":
        """Return them with `PADDING_BYTES` behind the last."""
        if not len(self) or len(self.data) >= int(self.ends[-1]) + PADDING_BYTES:
            return self
        return self.copied((self,))


NO_MESSAGES = Messages.of(())


def join(messages: Messages, *, in_progress: bool = False) -> Run:
    """Find the fields of messages.

    With `in_progress` each message carries its transaction's number behind its type. `starts` then point at that number's
    last byte: the fields of a message have the same distance from there as they have from the type otherwise.

    Raises:
        Permanent: one is shorter than its header (Code.SOURCE_PROTOCOL).
    """
    shift = XID_BYTES if in_progress else 0
    messages = messages.padded()
    if len(messages) and int((messages.ends - messages.starts).min()) <= XLOG_HEADER_BYTES + shift:
        raise Permanent(Code.SOURCE_PROTOCOL, "a message is shorter than its header")
    buffer = np.frombuffer(messages.data, np.uint8)
    starts = messages.starts + XLOG_HEADER_BYTES
    return Run(buffer, starts + shift if shift else starts, messages.ends, buffer[starts])


def words(buffer: Bytes) -> npt.NDArray[np.uint64]:
    """Return a view that reads eight bytes (little-endian) from any offset of a padded buffer."""
    return np.ndarray((len(buffer) - PADDING_BYTES + 1,), np.dtype("<u8"), buffer.data, 0, (1,))


def big_endian_32(buffer: Bytes, offsets: Offsets) -> npt.NDArray[np.uint32]:
    """Return the 32-bit numbers at `offsets`."""
    return words(buffer)[offsets].astype(np.uint32).byteswap()


def big_endian_64(buffer: Bytes, offsets: Offsets) -> npt.NDArray[np.uint64]:
    """Return the 64-bit numbers at `offsets`."""
    return words(buffer)[offsets].byteswap()


class RelationColumn(NamedTuple):
    """A column in a Relation message. `key` says that it is part of the replica identity."""

    name: str
    type_oid: int
    type_modifier: int
    key: bool


class Relation(NamedTuple):
    """A table as it was when the rows that follow were written. `identity` is d, n, f or i, as in the catalog."""

    id: int
    schema: str
    name: str
    identity: str
    columns: tuple[RelationColumn, ...]


def relation(message: bytes) -> Relation:
    """Parse a Relation message (from its type byte on).

    Raises:
        Permanent: it does not have the form of the protocol (Code.SOURCE_PROTOCOL).
    """
    try:
        return _relation(message)
    except (struct.error, ValueError, IndexError):
        raise Permanent(Code.SOURCE_PROTOCOL, "a Relation message is cut") from None


def _relation(message: bytes) -> Relation:
    number = int.from_bytes(message[1:5], "big")
    schema, at = _string(message, 5)
    name, at = _string(message, at)
    identity = chr(message[at])
    count = int.from_bytes(message[at + 1 : at + 3], "big")
    at += 3
    columns = []
    for _ in range(count):
        key = message[at] & 1 == 1
        column, at = _string(message, at + 1)
        oid, modifier = struct.unpack_from(">Ii", message, at)
        at += 8
        columns.append(RelationColumn(column, oid, modifier, key))
    if at != len(message):
        raise Permanent(Code.SOURCE_PROTOCOL, "a Relation message has another length than its columns")
    # An empty schema stands for pg_catalog.
    return Relation(number, schema or "pg_catalog", name, identity, tuple(columns))


class LogicalMessage(NamedTuple):
    """What `pg_logical_emit_message` wrote. `lsn` is where its record begins in the log."""

    transactional: bool
    lsn: int
    prefix: str
    content: bytes


def logical_message(payload: bytes, prefix: str, *, in_progress: bool = False) -> LogicalMessage:
    """Parse a logical message. The content is copied only when the message has this `prefix`: others may be huge.

    Raises:
        Permanent: it does not have the form of the protocol (Code.SOURCE_PROTOCOL).
    """
    at = XLOG_HEADER_BYTES + 1 + (XID_BYTES if in_progress else 0)
    # A prefix that is longer than ours is somebody else's, however long.
    end = payload.find(b"\0", at + 9, at + 9 + PREFIX_BYTES_MAX)
    try:
        flags, lsn = struct.unpack_from(">BQ", payload, at)
        if end < 0 and len(payload) >= at + 9 + PREFIX_BYTES_MAX:
            return LogicalMessage(flags & 1 == 1, lsn, "", b"")
        (length,) = struct.unpack_from(">I", payload, end + 1)
    except struct.error:
        raise Permanent(Code.SOURCE_PROTOCOL, "a logical message is cut") from None
    if end < 0 or end + 5 + length != len(payload):
        raise Permanent(Code.SOURCE_PROTOCOL, "a logical message has another length than its content")
    name = payload[at + 9 : end].decode("utf-8", "replace")
    return LogicalMessage(flags & 1 == 1, lsn, name, payload[end + 5 :] if name == prefix else b"")


class StreamCommit(NamedTuple):
    """The end of a transaction that was sent in progress: as a Begin and a Commit say it of any other."""

    xid: int
    lsn: int
    end_lsn: int
    commit_time: int
    """Microseconds since 2000, as the server sends it."""


def stream_commit(payload: bytes) -> StreamCommit:
    """Parse a Stream Commit.

    Raises:
        Permanent: it does not have the form of the protocol (Code.SOURCE_PROTOCOL).
    """
    if len(payload) != XLOG_HEADER_BYTES + 30:
        raise Permanent(Code.SOURCE_PROTOCOL, "a Stream Commit has another length than its form")
    xid, _, lsn, end_lsn, commit_time = struct.unpack_from(">IBQQq", payload, XLOG_HEADER_BYTES + 1)
    return StreamCommit(xid, lsn, end_lsn, commit_time)


def stream_abort(payload: bytes) -> tuple[int, int]:
    """Return the numbers of the transaction and of its part that is undone: the same number when all of it is.

    From protocol 4 on the position and time of the abort follow; nothing here needs them.

    Raises:
        Permanent: it does not have the form of the protocol (Code.SOURCE_PROTOCOL).
    """
    if len(payload) not in (XLOG_HEADER_BYTES + 9, XLOG_HEADER_BYTES + 25):
        raise Permanent(Code.SOURCE_PROTOCOL, "a Stream Abort has another length than its form")
    xid, part = struct.unpack_from(">II", payload, XLOG_HEADER_BYTES + 1)
    return xid, part


def begin(commit: StreamCommit) -> bytes:
    """Return the payload of a Begin, as one in a transaction that is sent in progress would look."""
    fields = struct.pack(">QqI", commit.lsn, commit.commit_time, commit.xid)
    return bytes(XLOG_HEADER_BYTES) + b"B" + bytes(XID_BYTES) + fields


def commit(commit: StreamCommit) -> bytes:
    """Return the payload of a Commit, as one in a transaction that is sent in progress would look."""
    fields = struct.pack(">BQQq", 0, commit.lsn, commit.end_lsn, commit.commit_time)
    return bytes(XLOG_HEADER_BYTES) + b"C" + bytes(XID_BYTES) + fields


def truncated(message: bytes) -> tuple[int, ...]:
    """Return the ids of the relations that a Truncate message (from its type byte on) empties."""
    # The form is checked by the length before anything is made of the count.
    count = int.from_bytes(message[1:5], "big")
    if len(message) != 6 + 4 * count:
        raise Permanent(Code.SOURCE_PROTOCOL, "a Truncate message has another length than its relations")
    return struct.unpack_from(f">{count}I", message, 6)


def _string(message: bytes, at: int) -> tuple[str, int]:
    end = message.index(b"\0", at)
    return message[at:end].decode("utf-8", "replace"), end + 1
