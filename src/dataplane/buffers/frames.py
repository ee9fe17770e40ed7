"""Encoded sets cut into messages and joined again: a hole, a foreign session or a cut stream is never passed over.

Each message carries the session that wrote it, its number within the session, and where its set stands: behind which
position it follows and at which it ends. With these the reader can tell, without asking anyone, whether what it finds
in a buffer continues what the destination holds. Where it cannot be sure it says `Hole`, and the source's half replays:
with `confirm: sink` that is always possible, so doubt costs time and never a row.

Pure: buffers call it, nothing is sent here. A session's first message is its marker, number 0; sets follow from 1.
"""

import struct
from collections.abc import Iterator
from typing import NamedTuple

from dataplane.batch import START, ChangeSet, Position

FRAME_BYTES_MAX = 200_000
SESSION_BYTES = 16

_FORMAT = 1
# Format, flags, two bytes of padding, part, parts, session, index, after, last: the body behind it stays aligned.
_PREFIX = struct.Struct("<BB2xII4x16sQQQQQ")
PREFIX_BYTES = _PREFIX.size

_BEGINS, _SNAPSHOT, _AFTER_KNOWN = 1, 2, 4


class Hole(Exception):
    """What comes next in the buffer does not follow what came before; the source's half must replay."""


class Replaced(Exception):
    """Another session of the source's half begins here."""


class Frame(NamedTuple):
    """One message, taken apart."""

    session: bytes
    number: int
    part: int
    parts: int
    begins: bool
    snapshot: bool
    after: Position
    after_known: bool
    last: Position
    body: memoryview


def parse(message: bytes) -> Frame:
    """Take a message apart.

    Raises:
        Hole: it is no message of this format.
    """
    try:
        format_, flags, part, parts, session, number, after_lsn, after_ordinal, lsn, ordinal = _PREFIX.unpack_from(
            message
        )
    except struct.error as error:
        raise Hole("a message is shorter than its prefix") from error
    if format_ != _FORMAT:
        raise Hole(f"a message has format {format_}")
    return Frame(
        session,
        number,
        part,
        parts,
        bool(flags & _BEGINS),
        bool(flags & _SNAPSHOT),
        Position(after_lsn, after_ordinal),
        bool(flags & _AFTER_KNOWN),
        Position(lsn, ordinal),
        memoryview(message)[PREFIX_BYTES:],
    )


class Cutter:
    """The writer's side of one session."""

    def __init__(self, session: bytes, frame_bytes_max: int = FRAME_BYTES_MAX) -> None:
        self.session = session
        self._body_bytes_max = max(1, frame_bytes_max - PREFIX_BYTES)
        self._index = 1
        self._after = START
        self._after_known = True

    def marker(self) -> bytes:
        """Return the session's first message."""
        return _PREFIX.pack(_FORMAT, 0, 0, 0, self.session, 0, 0, 0, 0, 0)

    def follow(self, position: Position) -> None:
        """Say what the destination held when the session began, before the first set is cut."""
        self._after, self._after_known = position, True

    def cut(self, change: ChangeSet, encoded: bytes) -> Iterator[bytes]:
        """Give the messages of one set."""
        flags = _BEGINS * change.begins | _SNAPSHOT * (change.snapshot_of is not None)
        flags |= _AFTER_KNOWN * self._after_known
        size = self._body_bytes_max
        parts = -(-len(encoded) // size)
        after = self._after
        body = memoryview(encoded)
        # Positions within a snapshot do not tell what was copied: a later table may have smaller ones.
        self._after, self._after_known = change.last, change.snapshot_of is None
        for part in range(parts):
            prefix = _PREFIX.pack(_FORMAT, flags, part, parts, self.session, self._index, *after, *change.last)
            self._index += 1
            yield prefix + body[part * size : (part + 1) * size]


class Joiner:
    """The reader's side: follows one session from wherever the buffer still has it."""

    def __init__(self, session: bytes, position: Position) -> None:
        """Follow `session`; the destination holds everything up to `position`."""
        self._session = session
        self._position = position
        self._next: int | None = None
        self._skipping = False
        self._parts: list[memoryview] = []

    def accept(self, frame: Frame) -> bytes | memoryview | None:
        """Take the next message; return the bytes of a set once it is whole.

        Raises:
            Hole: it does not follow what came before, or what the destination holds.
            Replaced: another session begins.
        """
        if frame.session != self._session:
            if self._next is not None:
                raise Replaced
            return None  # what a dead session left behind: ours replays it
        if self._next is None:
            self._first(frame)
        elif frame.number != self._next:
            raise Hole(f"message {self._next} is missing; {frame.number} came")
        self._next = frame.number + 1
        if frame.number == 0:
            return None
        if self._skipping:
            if self._durable(frame):
                return None
            if frame.part != 0 or not frame.begins:
                raise Hole("the rest of a transaction whose beginning is gone")
            self._skipping = False
        return self._join(frame)

    def _first(self, frame: Frame) -> None:
        if frame.number <= 1:
            return  # nothing of the session is gone, and it began where the checkpoint was
        if self._durable(frame):
            self._skipping = True
            return
        follows = frame.part == 0 and frame.begins and not frame.snapshot
        if not (follows and frame.after_known and frame.after <= self._position):
            raise Hole(f"the buffer begins at message {frame.number}, behind what the destination holds")

    def _durable(self, frame: Frame) -> bool:
        return not frame.snapshot and frame.last <= self._position

    def _join(self, frame: Frame) -> bytes | memoryview | None:
        if frame.part != len(self._parts) or frame.part >= frame.parts:
            raise Hole(f"part {frame.part} of {frame.parts} came after {len(self._parts)}")
        self._parts.append(frame.body)
        if len(self._parts) < frame.parts:
            return None
        whole = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._parts = []
        return whole
