"""Hold the transactions that the server sends while they are in progress, and give each out when it commits.

In flow the messages of protocol 2 and 4 that tell of such transactions; out flow pieces for the decoder, with the same
messages in the same order as protocol 1 would have sent them at the commit. So positions, (commit LSN, number of the row),
are the same by either protocol, and a restart may change between them. Called by the assembler, in a thread of the source.

Messages of all transactions in progress wait in memory up to a bound; beyond it those of the largest go to the `Room`, in
chunks of a piece's size. When a part of a transaction is undone (a savepoint, or a block of PL/pgSQL that failed), its
number is kept and its messages are left out when the rest is given out. A transaction in progress holds nothing back: the
server sends it again, whole, to a session that begins later.

The server describes a table once for each transaction that it sends in progress, and takes it for known when that
transaction has committed, whatever was described in between. So the newest description, in the order in which they came,
is repeated at the transaction's end when it is another one.
"""

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from contracts.codes import Code
from dataplane.failures import Permanent
from dataplane.sources.postgres.messages import (
    BEGIN,
    COMMIT,
    KEPT_BYTES,
    MESSAGE,
    ORIGIN,
    RELATION,
    XID_BYTES,
    XLOG_HEADER_BYTES,
    Messages,
    StreamCommit,
    begin,
    big_endian_32,
    commit,
)

TRANSACTIONS_MAX = 100_000
"""More than any server lets be open. (It is the limit of what a hostile one can make us remember.)"""
ABORTED_MAX = 16_000_000
"""Parts of one transaction that were undone: four bytes each."""
DESCRIPTIONS_MAX = 100_000
"""Of tables, in one transaction."""

_FIELDS = XLOG_HEADER_BYTES + 1
_BODY = _FIELDS + XID_BYTES

ChunkT = TypeVar("ChunkT")
Numbers = npt.NDArray[np.uint32]


class Room(Protocol[ChunkT]):
    """Where messages go when memory does not take them; `spill.SpillFile` is one."""

    def write(self, messages: Messages) -> ChunkT:
        """Keep messages, and return what gets them back."""
        ...

    def read(self, chunk: ChunkT) -> Messages:
        """Return the messages of a chunk."""
        ...

    def free(self, chunks: Sequence[ChunkT]) -> None:
        """Forget chunks."""
        ...


class Part(NamedTuple):
    """Messages of one transaction, its Begin before the first and its Commit behind the last."""

    messages: Messages
    begins: bool
    ends: bool
    byte_size: int


class _Description(NamedTuple):
    """A Relation message: in which part of the transaction it came, when, and its bytes behind the number."""

    relation: bytes
    xid: int
    arrival: int
    body: bytes


@dataclass(slots=True)
class _Open(Generic[ChunkT]):
    """A transaction in progress: chunks in the room, then what waits in memory."""

    chunks: list[ChunkT] = field(default_factory=list)
    waiting: list[Messages] = field(default_factory=list)
    waiting_bytes: int = 0
    """Of the messages, and `KEPT_BYTES` for each part in which they came."""
    aborted: "array[int]" = field(default_factory=lambda: array("I"))
    descriptions: list[_Description] = field(default_factory=list)


class StreamedTransactions(Generic[ChunkT]):
    """Transactions in progress, by their numbers. `memory_bytes` is how much waits in memory, of all of them."""

    def __init__(
        self, room: Room[ChunkT], *, memory_bytes_max: int, piece_bytes_max: int, piece_messages_max: int
    ) -> None:
        """Keep at most about `memory_bytes_max` in memory; parts that are given out have the other two sizes."""
        self.memory_bytes = 0
        self._room = room
        self._memory_bytes_max = memory_bytes_max
        self._piece_bytes_max = piece_bytes_max
        self._piece_messages_max = piece_messages_max
        self._open: dict[int, _Open[ChunkT]] = {}
        self._current: _Open[ChunkT] | None = None
        self._arrivals = 0
        self._known: dict[bytes, _Description] = {}

    @property
    def inside(self) -> bool:
        """Whether what comes next belongs to a transaction in progress."""
        return self._current is not None

    def __len__(self) -> int:
        """How many transactions are in progress."""
        return len(self._open)

    def start(self, payload: bytes) -> None:
        """Take a Stream Start: what follows belongs to its transaction.

        Raises:
            Permanent: it stands where it cannot (Code.SOURCE_PROTOCOL).
        """
        if self._current is not None:
            raise Permanent(Code.SOURCE_PROTOCOL, "a stream starts inside another")
        if len(payload) != _FIELDS + 5:
            raise Permanent(Code.SOURCE_PROTOCOL, "a Stream Start has another length than its form")
        xid = _number(payload, _FIELDS)
        self._current = self._open.setdefault(xid, _Open())
        if len(self._open) > TRANSACTIONS_MAX:
            raise Permanent(Code.SOURCE_PROTOCOL, f"more than {TRANSACTIONS_MAX} transactions are in progress")

    def stop(self) -> None:
        """Take a Stream Stop.

        Raises:
            Permanent: nothing was started (Code.SOURCE_PROTOCOL).
        """
        if self._current is None:
            raise Permanent(Code.SOURCE_PROTOCOL, "a stream stops that did not start")
        self._current = None

    def take(self, messages: Messages, letters: bytes) -> None:
        """Take messages of the transaction that was started; `letters` are their types.

        Raises:
            Permanent: one cannot stand there, or is too short to have a number (Code.SOURCE_PROTOCOL).
            RetryLater: the room is full.
        """
        current = self._current
        assert current is not None
        if BEGIN in letters or COMMIT in letters:
            raise Permanent(Code.SOURCE_PROTOCOL, "a transaction begins or ends inside a stream")
        if ORIGIN in letters or MESSAGE in letters:
            # An Origin has no number, and neither it nor a logical message changes a row.
            types = np.frombuffer(letters, np.uint8)
            messages = messages.kept((types != ORIGIN) & (types != MESSAGE))
            letters = letters.translate(None, bytes((ORIGIN, MESSAGE)))
        at = letters.find(RELATION)
        while at >= 0:
            self._describe(current, messages.payload(at))
            at = letters.find(RELATION, at + 1)
        if not letters:
            return
        current.waiting.append(messages.packed())
        size = messages.byte_size + KEPT_BYTES
        current.waiting_bytes += size
        self.memory_bytes += size
        while self.memory_bytes > self._memory_bytes_max:
            self._spill(max(self._open.values(), key=lambda each: each.waiting_bytes))

    def described(self, payload: bytes) -> None:
        """Take note of a Relation message of a transaction that is not in progress."""
        self._arrivals += 1
        body = payload[_FIELDS:]
        self._known[body[:4]] = _Description(body[:4], 0, self._arrivals, body)

    def abort(self, xid: int, part: int) -> None:
        """A part of a transaction is undone, or all of it when both are one number. One that never came is not missed.

        Raises:
            Permanent: it stands inside a stream, or is one too many (Code.SOURCE_PROTOCOL).
        """
        if self._current is not None:
            raise Permanent(Code.SOURCE_PROTOCOL, "a transaction is undone inside a stream")
        if xid == part:
            gone = self._open.pop(xid, None)
            if gone is not None:
                self._forget(gone)
            return
        found = self._open.get(xid)
        if found is not None:
            if len(found.aborted) >= ABORTED_MAX:
                raise Permanent(Code.SOURCE_PROTOCOL, f"more than {ABORTED_MAX} parts of a transaction are undone")
            found.aborted.append(part)
            found.descriptions = [each for each in found.descriptions if each.xid != part]

    def commit(self, ended: StreamCommit) -> Iterator[Part]:
        """Give a transaction out. It is forgotten when the last part is taken.

        Raises:
            Permanent: nothing came of this transaction, or it stands inside a stream (Code.SOURCE_PROTOCOL).
            RetryLater: the room does not give back what it holds.
        """
        if self._current is not None or ended.xid not in self._open:
            raise Permanent(Code.SOURCE_PROTOCOL, "a transaction ends that is not in progress")
        found = self._open.pop(ended.xid)
        aborted = np.frombuffer(found.aborted, np.uint32) if found.aborted else None
        ahead, begins = [Messages.of([begin(ended)])], True
        for chunk in found.chunks:
            if ahead:
                yield _part(ahead, begins=begins)
                ahead, begins = [], False
            yield _part([_without(self._room.read(chunk), aborted)], begins=False)
        for waiting in self._cut(found.waiting):
            if len(ahead) > int(begins):
                yield _part(ahead, begins=begins)
                ahead, begins = [], False
            ahead.append(_without(waiting, aborted))
        ahead.append(Messages.of([*self._settled(found.descriptions), commit(ended)]))
        self._forget(found)
        yield _part(ahead, begins=begins, ends=True)

    # ---- keeping ------------------------------------------------------------------------------------------------

    def _describe(self, current: _Open[ChunkT], payload: bytes) -> None:
        if len(current.descriptions) >= DESCRIPTIONS_MAX:
            raise Permanent(Code.SOURCE_PROTOCOL, f"more than {DESCRIPTIONS_MAX} tables are described at once")
        self._arrivals += 1
        body = payload[_BODY:]
        current.descriptions.append(_Description(body[:4], _number(payload, _FIELDS), self._arrivals, body))

    def _spill(self, largest: _Open[ChunkT]) -> None:
        for messages in self._cut(largest.waiting):
            largest.chunks.append(self._room.write(messages))
        self.memory_bytes -= largest.waiting_bytes
        largest.waiting, largest.waiting_bytes = [], 0

    def _cut(self, parts: Sequence[Messages]) -> Iterator[Messages]:
        """Put parts together into pieces of the right size, of one message at least."""
        gathered: list[Messages] = []
        size = count = 0
        for part in (piece for each in parts for piece in self._pieces(each)):
            more = part.byte_size
            if gathered and (size + more > self._piece_bytes_max or count + len(part) > self._piece_messages_max):
                yield Messages.joined(gathered)
                gathered, size, count = [], 0, 0
            gathered.append(part)
            size, count = size + more, count + len(part)
        if gathered:
            yield Messages.joined(gathered)

    def _pieces(self, part: Messages) -> Iterator[Messages]:
        ends = np.cumsum(part.ends - part.starts)
        start = taken = 0
        while start < len(part):
            stop = int(np.searchsorted(ends, taken + self._piece_bytes_max, side="right"))
            stop = max(start + 1, min(stop, start + self._piece_messages_max))
            yield part.part(start, stop)
            start, taken = stop, int(ends[stop - 1])

    def _forget(self, gone: _Open[ChunkT]) -> None:
        self.memory_bytes -= gone.waiting_bytes
        self._room.free(gone.chunks)
        gone.chunks, gone.waiting, gone.waiting_bytes = [], [], 0

    def _settled(self, descriptions: Sequence[_Description]) -> list[bytes]:
        """Return the descriptions that hold behind a transaction's end and are not its own last ones."""
        newest = {each.relation: each for each in descriptions}
        settled = []
        for relation, mine in newest.items():
            known = self._known.get(relation)
            if known is None or known.arrival < mine.arrival:
                self._known[relation] = mine
            elif known.body != mine.body:
                settled.append(bytes(XLOG_HEADER_BYTES) + bytes((RELATION,)) + bytes(XID_BYTES) + known.body)
        return settled


def _number(payload: bytes, at: int) -> int:
    return int.from_bytes(payload[at : at + XID_BYTES], "big")


def _part(parts: Sequence[Messages], *, begins: bool, ends: bool = False) -> Part:
    messages = Messages.joined(parts)
    return Part(messages, begins, ends, messages.byte_size)


def _without(messages: Messages, aborted: Numbers | None) -> Messages:
    """Leave out the messages that belong to an undone part."""
    if aborted is None:
        return messages
    messages = messages.padded()
    if len(messages) and int((messages.ends - messages.starts).min()) < _BODY:
        raise Permanent(Code.SOURCE_PROTOCOL, "a message in progress has no number")
    numbers = big_endian_32(np.frombuffer(messages.data, np.uint8), messages.starts + _FIELDS)
    return messages.kept(~np.isin(numbers, aborted))
