"""What lies in a buffer that is data (`confirm: buffer`): parts of sets, and what is durable with them.

A record is a part of an encoded set, or a note. Parts are numbered from 1 for the buffer's whole life, whoever writes,
so a hole shows; a note has the number of the part before it, and any of them may be missing but the newest. A part that
ends a transaction, and every note, carries a `State`: the checkpoint as it is for the source's half once this record is
durable. So rows and position become durable in one message, and the newest state in the buffer says all that a source's
half needs to go on. Parts behind it belong to a transaction that never ended: they are deleted and read again.

`Recorder` is the writer's side, `Follower` the reader's. Pure: buffers call them, nothing is sent here.
"""

import struct
from collections.abc import Iterator
from enum import Enum
from typing import NamedTuple

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from dataplane.batch import BufferMark, ChangeSet
from dataplane.checkpoint import Checkpoint, SourceIdentity
from dataplane.sinks import durable

RECORD_BYTES_MAX = 200_000
INCARNATION_BYTES = 16
NOTHING_APPLIED = -1

_FORMAT = 2
# Format, whether it carries a state, padding, part, parts, length of the state, incarnation, number.
_PREFIX = struct.Struct("<B?2xIII16sQ")
PREFIX_BYTES = _PREFIX.size
_ALIGNMENT = 8
assert PREFIX_BYTES % _ALIGNMENT == 0


class Cut(Exception):
    """What comes next does not follow what the destination holds: rows are missing."""


class Replaced(Exception):
    """The source's half began anew behind what was read of a transaction: that is read again."""


class Kind(Enum):
    """What a record with a state is."""

    END = "end"
    """The last part of a set that ends a transaction."""
    BIRTH = "birth"
    """The first record of a buffer, with the checkpoint that the destination has."""
    SESSION = "session"
    """A source's half begins. What was written since the last state before it, from `void_from` on, is to be deleted."""
    BEGIN = "begin"
    """The source starts over: a copy of every table follows, and whatever came before means nothing."""
    ADVANCE = "advance"
    """Only what the source may be told has changed."""
    FOLLOW = "follow"
    """The same source goes on under another identity."""


class State(Struct, frozen=True, kw_only=True):
    """What is durable for the source's half with this record. `checkpoint` is None as long as there never was one.

    `lost` says that the buffer was born while the destination held rows of an older one: until the source starts over,
    a slot that is ahead is the older buffer's loss.
    """

    kind: Kind
    checkpoint: Checkpoint | None
    void_from: int = 0
    lost: bool = False


class Record(NamedTuple):
    """One record, taken apart."""

    incarnation: bytes
    number: int
    part: int
    parts: int
    state: State | None
    body: memoryview


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(State).decode


def parse(message: bytes) -> Record:
    """Take a message apart.

    Raises:
        Cut: it is no record of this format.
    """
    try:
        format_, has_state, part, parts, length, incarnation, number = _PREFIX.unpack_from(message)
        view = memoryview(message)
        state = _decode(view[PREFIX_BYTES : PREFIX_BYTES + length]) if has_state else None
    except (struct.error, msgspec.MsgspecError) as error:
        raise Cut("a record cannot be read") from error
    if format_ != _FORMAT:
        raise Cut(f"a record has format {format_}")
    return Record(incarnation, number, part, parts, state, view[PREFIX_BYTES + _padded(length) :])


def _padded(length: int) -> int:
    return length + -length % _ALIGNMENT


class Recorder:
    """The writer's side: numbers the records, and folds what they make durable."""

    def __init__(
        self,
        incarnation: bytes,
        number: int,
        checkpoint: Checkpoint | None,
        *,
        lost: bool = False,
        record_bytes_max: int = RECORD_BYTES_MAX,
    ) -> None:
        """Go on behind record `number`, whose state has `checkpoint` and `lost`."""
        self.incarnation = incarnation
        self.number = number
        self.checkpoint = checkpoint
        self.lost = lost
        self._body_bytes_max = max(1, record_bytes_max - PREFIX_BYTES)

    def note(self, kind: Kind, *, void_from: int = 0) -> bytes:
        """Return a note with the state as it is."""
        return self._record(0, 0, self._state(kind, void_from), b"")

    def begin(self, source: SourceIdentity) -> bytes:
        """Start over with a new source; return the note that says so."""
        self.checkpoint, self.lost = replace(durable.nothing(0), source=source), False
        return self.note(Kind.BEGIN)

    def advance(self, confirmed_through: int) -> bytes:
        """Raise what the source may be told; return the note that says so."""
        assert self.checkpoint is not None
        highest = max(self.checkpoint.confirmed_through, confirmed_through)
        self.checkpoint = replace(self.checkpoint, confirmed_through=highest)
        return self.note(Kind.ADVANCE)

    def follow(self, source: SourceIdentity, confirmed_through: int) -> bytes:
        """Go on under another identity; return the note that says so."""
        assert self.checkpoint is not None
        self.checkpoint = replace(self.checkpoint, source=source, confirmed_through=confirmed_through)
        return self.note(Kind.FOLLOW)

    def cut(self, change: ChangeSet, encoded: bytes) -> Iterator[tuple[bytes, bool]]:
        """Give the records of one set, and of each whether it carries a state."""
        assert self.checkpoint is not None
        size = self._body_bytes_max
        parts = -(-len(encoded) // size)
        body = memoryview(encoded)
        for part in range(parts):
            self.number += 1
            state = None
            if change.ends and part == parts - 1:
                self.checkpoint = durable.after(self.checkpoint, change)
                state = self._state(Kind.END, 0)
            yield self._record(part, parts, state, body[part * size : (part + 1) * size]), state is not None

    def _state(self, kind: Kind, void_from: int) -> State:
        return State(kind=kind, checkpoint=self.checkpoint, void_from=void_from, lost=self.lost)

    def _record(self, part: int, parts: int, state: State | None, body: bytes | memoryview) -> bytes:
        encoded = b"" if state is None else _encode(state)
        prefix = _PREFIX.pack(_FORMAT, state is not None, part, parts, len(encoded), self.incarnation, self.number)
        return b"".join([prefix, encoded, b"\0" * (-len(encoded) % _ALIGNMENT), body])


class Whole(NamedTuple):
    """A set is complete. `number` is that of its last part."""

    number: int
    encoded: bytes | memoryview


class Note(NamedTuple):
    """A note that the destination must hear of, in its place."""

    kind: Kind
    source: SourceIdentity
    confirmed_through: int


class Follower:
    """The reader's side: follows one buffer from what the destination holds."""

    def __init__(self, incarnation: bytes, held: Checkpoint | None) -> None:
        """Follow `incarnation`; `held` is the destination's checkpoint."""
        self._incarnation = incarnation
        self._held = held
        mark = None if held is None else held.buffer
        self._applied = mark.number if mark is not None and mark.incarnation == incarnation.hex() else NOTHING_APPLIED
        self._next: int | None = None
        self._parts: list[memoryview] = []

    def mark(self, number: int) -> BufferMark:
        """Return the place of part `number`."""
        return BufferMark(self._incarnation.hex(), number)

    def check_end(self, newest: Record) -> None:
        """Look at the newest record with a state, before anything is read.

        Raises:
            Cut: the buffer ends before what the destination holds.
        """
        if newest.number < self._applied:
            raise Cut(f"the buffer ends at {newest.number}, and the destination holds {self._applied}")

    def accept(self, record: Record) -> Whole | Note | None:
        """Take the next record.

        Raises:
            Cut: it does not follow what came before, or what the destination holds.
            Replaced: what was read behind the last state is void.
        """
        if record.incarnation != self._incarnation:
            raise Replaced
        if record.parts == 0:
            return self._note(record)
        return self._part(record)

    def _note(self, record: Record) -> Note | None:
        state, number = record.state, record.number
        assert state is not None
        if self._next is not None and self._next > number + 1:
            raise Replaced
        begins = state.kind is Kind.BEGIN and self._applied <= number
        if not begins:
            self._check_note(state, number)
        self._next, self._parts = number + 1, []
        told = state.kind in (Kind.ADVANCE, Kind.FOLLOW) and self._applied <= number
        if not begins and not told:
            return None
        assert state.checkpoint is not None
        assert state.checkpoint.source is not None
        return Note(state.kind, state.checkpoint.source, state.checkpoint.confirmed_through)

    def _check_note(self, state: State, number: int) -> None:
        if self._next is not None:
            if self._next <= number:
                raise Cut(f"part {self._next} is missing before a note behind {number}")
        elif not (number <= self._applied or (state.kind is Kind.BIRTH and _same(state.checkpoint, self._held))):
            raise Cut(f"the buffer begins behind part {number}, and the destination holds {self._applied}")

    def _part(self, record: Record) -> Whole | None:
        number = record.number
        if self._next is None:
            if self._applied == NOTHING_APPLIED or number > self._applied + 1:
                raise Cut(f"the buffer begins at part {number}, and the destination holds {self._applied}")
        elif number != self._next:
            raise Cut(f"part {self._next} is missing; {number} came")
        self._next = number + 1
        if number <= self._applied:
            return None
        if record.part != len(self._parts) or record.part >= record.parts:
            raise Cut(f"part {record.part} of {record.parts} came after {len(self._parts)}")
        self._parts.append(record.body)
        if len(self._parts) < record.parts:
            return None
        whole = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._parts = []
        return Whole(number, whole)


def _same(born: Checkpoint | None, held: Checkpoint | None) -> bool:
    """Say whether the destination is still as it was when the buffer was born."""
    if born is None or held is None:
        return born is held
    return _essence(born) == _essence(held)


def _essence(of: Checkpoint) -> Checkpoint:
    # The identity may have followed a failover since; positions of another source are refused by the source's half.
    return replace(of, epoch=0, source=None, confirmed_through=0, tables_owned=[], buffer=None)
