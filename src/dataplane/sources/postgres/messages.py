"""The messages of logical replication as bytes: what the server sends in CopyData, and what we answer.

In flow the payloads of CopyData messages; out flow runs of them joined into one buffer with vectorised offsets, parsed
Relation and Truncate messages, and the bytes of a status update. Called by the decoder and by the replication thread.
No I/O. Numbers of the protocol are big-endian; its times are microseconds since 2000-01-01 UTC.
"""

import struct
from collections.abc import Sequence
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


def join(payloads: Sequence[bytes]) -> Run:
    """Join the payloads of XLogData messages into a run.

    Raises:
        Permanent: one is shorter than its header (Code.SOURCE_PROTOCOL).
    """
    lengths = np.fromiter(map(len, payloads), np.int64, len(payloads))
    if len(lengths) and int(lengths.min()) <= XLOG_HEADER_BYTES:
        raise Permanent(Code.SOURCE_PROTOCOL, "a message is shorter than its header")
    buffer = np.frombuffer(b"".join((*payloads, bytes(PADDING_BYTES))), np.uint8)
    ends = np.cumsum(lengths)
    starts = ends - lengths + XLOG_HEADER_BYTES
    return Run(buffer, starts, ends, buffer[starts])


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


def truncated(message: bytes) -> tuple[int, ...]:
    """Return the ids of the relations that a Truncate message (from its type byte on) empties."""
    count = int.from_bytes(message[1:5], "big")
    if len(message) != 6 + 4 * count:
        raise Permanent(Code.SOURCE_PROTOCOL, "a Truncate message has another length than its relations")
    return struct.unpack_from(f">{count}I", message, 6)


def _string(message: bytes, at: int) -> tuple[str, int]:
    end = message.index(b"\0", at)
    return message[at:end].decode("utf-8", "replace"), end + 1
