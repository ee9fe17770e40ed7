"""A decoder of pgoutput that reads one row after the other, and the messages to feed it: what ours is compared with.

It is written for plainness alone. Rows come out as tuples of Python values in the order of the stream.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass

OMITTED = object()
"""A value that the source did not send because it did not change."""

Value = bytes | None | object
HEADER = b"w" + bytes(24)
EPOCH_2000 = 946_684_800_000_000


def begin(lsn: int, commit_time: int = 0) -> bytes:
    return HEADER + b"B" + struct.pack(">QqI", lsn, commit_time, 7)


def commit(lsn: int, commit_time: int = 0) -> bytes:
    return HEADER + b"C\0" + struct.pack(">QQq", lsn, lsn + 8, commit_time)


def relation(relation_id: int, name: str, columns: Sequence[tuple[str, bool]], identity: str = "d") -> bytes:
    parts = [b"R", struct.pack(">I", relation_id), b"public\0", name.encode(), b"\0", identity.encode()]
    parts.append(struct.pack(">H", len(columns)))
    for column, key in columns:
        parts.append(bytes([key]) + column.encode() + b"\0" + struct.pack(">Ii", 25, -1))
    return HEADER + b"".join(parts)


def _tuple(values: Sequence[Value]) -> bytes:
    parts = [struct.pack(">H", len(values))]
    for value in values:
        if value is None:
            parts.append(b"n")
        elif value is OMITTED:
            parts.append(b"u")
        else:
            assert isinstance(value, bytes)
            parts.append(b"t" + struct.pack(">I", len(value)) + value)
    return b"".join(parts)


def insert(relation_id: int, values: Sequence[Value]) -> bytes:
    return HEADER + b"I" + struct.pack(">I", relation_id) + b"N" + _tuple(values)


def update(relation_id: int, values: Sequence[Value], old: tuple[str, Sequence[Value]] | None = None) -> bytes:
    before = old[0].encode() + _tuple(old[1]) if old else b""
    return HEADER + b"U" + struct.pack(">I", relation_id) + before + b"N" + _tuple(values)


def delete(relation_id: int, letter: str, values: Sequence[Value]) -> bytes:
    return HEADER + b"D" + struct.pack(">I", relation_id) + letter.encode() + _tuple(values)


def truncate(*relation_ids: int) -> bytes:
    return (
        HEADER + b"T" + struct.pack(">IB", len(relation_ids), 0) + struct.pack(f">{len(relation_ids)}I", *relation_ids)
    )


def message(prefix: str, content: bytes, *, lsn: int = 0, transactional: bool = True) -> bytes:
    return (
        HEADER
        + b"M"
        + struct.pack(">BQ", transactional, lsn)
        + prefix.encode()
        + b"\0"
        + struct.pack(">I", len(content))
        + content
    )


def inside(xid: int, payload: bytes) -> bytes:
    """The same message as it looks inside a stream of its transaction in progress."""
    return payload[:26] + struct.pack(">I", xid) + payload[26:]


def stream_start(xid: int, *, first: bool = True) -> bytes:
    return HEADER + b"S" + struct.pack(">IB", xid, first)


def stream_stop() -> bytes:
    return HEADER + b"E"


def stream_commit(xid: int, lsn: int, commit_time: int = 0) -> bytes:
    return HEADER + b"c" + struct.pack(">IBQQq", xid, 0, lsn, lsn + 8, commit_time)


def stream_abort(xid: int, part: int, *, parallel: bool = False) -> bytes:
    """With `parallel` as protocol 4 sends it: position and time follow."""
    return HEADER + b"A" + struct.pack(">II", xid, part) + (struct.pack(">Qq", 1, 2) if parallel else b"")


@dataclass(frozen=True)
class Decoded:
    """One row or one truncated table, in the order of the stream."""

    op: str
    table: str
    position: tuple[int, int]
    commit_time: int
    row: tuple[object, ...] = ()
    old_key: tuple[object, ...] | None = None


class Reference:
    """Reads payloads of XLogData one at a time."""

    def __init__(self) -> None:
        self._relations: dict[int, tuple[str, list[tuple[str, bool]]]] = {}

    def decode(self, payloads: Sequence[bytes]) -> list[Decoded]:
        out: list[Decoded] = []
        lsn = commit_time = ordinal = 0
        for payload in payloads:
            message = payload[25:]
            letter = chr(message[0])
            if letter == "B":
                lsn, commit_time = struct.unpack_from(">Qq", message, 1)
                ordinal = 0
            elif letter == "R":
                self._describe(message)
            elif letter in "IUD":
                out.append(self._row(letter, message, (lsn, ordinal), commit_time + EPOCH_2000))
                ordinal += 1
            elif letter == "T":
                (count,) = struct.unpack_from(">I", message, 1)
                for number in struct.unpack_from(f">{count}I", message, 6):
                    name = self._relations[number][0]
                    out.append(Decoded("T", name, (lsn, ordinal), commit_time + EPOCH_2000))
                    ordinal += 1
        return out

    def _describe(self, message: bytes) -> None:
        (number,) = struct.unpack_from(">I", message, 1)
        _, name, rest = message[5:].split(b"\0", 2)
        (count,) = struct.unpack_from(">H", rest, 1)
        columns, at = [], 3
        for _ in range(count):
            end = rest.index(b"\0", at + 1)
            columns.append((rest[at + 1 : end].decode(), rest[at] == 1))
            at = end + 9
        self._relations[number] = (name.decode(), columns)

    def _row(self, letter: str, message: bytes, position: tuple[int, int], commit_time: int) -> Decoded:
        (number,) = struct.unpack_from(">I", message, 1)
        name, columns = self._relations[number]
        at, old, old_letter = 5, None, ""
        if letter == "U" and message[at : at + 1] != b"N":
            old_letter = chr(message[at])
            old, at = self._values(message, at + 1)
        new, end = self._values(message, at + 1)
        assert end == len(message)
        old_key = None
        for index, (_, key) in enumerate(columns):
            if old is not None and new[index] is OMITTED and (key or old_letter == "O"):
                new[index] = old[index]
            if letter == "D" and not key:
                new[index] = None
        if old is not None:
            before = tuple(old[index] for index, (_, key) in enumerate(columns) if key)
            after = tuple(new[index] for index, (_, key) in enumerate(columns) if key)
            old_key = before if before != after else None
        return Decoded(letter, name, position, commit_time, tuple(new), old_key)

    def _values(self, message: bytes, at: int) -> tuple[list[object], int]:
        (count,) = struct.unpack_from(">H", message, at)
        at += 2
        values: list[object] = []
        for _ in range(count):
            kind = message[at : at + 1]
            at += 1
            if kind == b"t":
                (length,) = struct.unpack_from(">I", message, at)
                values.append(message[at + 4 : at + 4 + length].decode("utf-8", "backslashreplace"))
                at += 4 + length
            else:
                values.append(None if kind == b"n" else OMITTED)
        return values, at
