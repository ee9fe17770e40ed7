"""Cut the stream into pieces: runs of whole transactions, or the parts of a large one.

In flow XLogData messages as they were received; out flow pieces for the decoder. Called by the source
with all that has arrived whenever the consumer is free: what is there goes out at once when little is there, and grows
into large pieces under load. A transaction whose end has not arrived waits here until it does, or until it has
`piece_bytes_max` or `piece_messages_max`; from then on it goes out in parts. So memory is bounded.

A transaction that the server sends while it is in progress waits in `streamed` until its commit comes; it goes out then
and there, between the transactions that the server sent before and after. Logical messages end here: they say how far the
stream has come, and change nothing, not even the number of a row. No I/O but that of the room that `streamed` was given.
"""

import re
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Generic

import numpy as np

from contracts.codes import Code
from dataplane.failures import Permanent
from dataplane.sources.postgres.messages import (
    COMMIT,
    MESSAGE,
    RELATION,
    STREAM_ABORT,
    STREAM_COMMIT,
    STREAM_START,
    STREAM_STOP,
    XLOG_HEADER_BYTES,
    LogicalMessage,
    Messages,
    logical_message,
    stream_abort,
    stream_commit,
)
from dataplane.sources.postgres.streamed import ChunkT, StreamedTransactions

PREFIX = "pointsman"
"""Of the logical messages that are ours."""

_CONTROL = re.compile(b"[%c%c%c%c]" % (STREAM_START, STREAM_STOP, STREAM_COMMIT, STREAM_ABORT))
_COMMIT_END = slice(XLOG_HEADER_BYTES + 10, XLOG_HEADER_BYTES + 18)


@dataclass(frozen=True, slots=True)
class Piece:
    """XLogData messages. `begins` and `ends` as in `ChangeSet`.

    With `in_progress` the transaction was sent before it committed: each message carries its number (`messages.join`).
    """

    messages: Messages
    begins: bool
    ends: bool
    byte_size: int
    in_progress: bool = False


class Assembler(Generic[ChunkT]):
    """Keeps what has not ended yet. `waiting_bytes` is how much that is, in memory.

    `reached` is how far the stream has come for certain: every transaction that committed before this LSN was given out
    or waits here for its end. `heard` is the newest logical message with our prefix.
    """

    def __init__(
        self, *, piece_bytes_max: int, piece_messages_max: int, streamed: StreamedTransactions[ChunkT] | None = None
    ) -> None:
        """`streamed` takes the transactions in progress; without it the server must not send any."""
        self._bytes_max = piece_bytes_max
        self._messages_max = piece_messages_max
        self._streamed = streamed
        self._waiting: deque[Messages] = deque()
        self._waiting_count = 0
        self._waiting_bytes = 0
        self._open = False
        self.reached = 0
        self.heard: LogicalMessage | None = None

    @property
    def idle(self) -> bool:
        """Whether no transaction is on its way that has committed."""
        return not self._waiting and not self._open

    @property
    def waiting_bytes(self) -> int:
        """How many bytes wait in memory."""
        return self._waiting_bytes + (self._streamed.memory_bytes if self._streamed is not None else 0)

    @property
    def has_transactions_in_progress(self) -> bool:
        """Whether taking more may wait for a disk."""
        return self._streamed is not None and (len(self._streamed) > 0 or self._streamed.inside)

    def cut(self, parts: Sequence[Messages], byte_size: int) -> Iterator[Piece]:
        """Take what has arrived, `byte_size` bytes in all, and give the pieces that can go out now.

        Raises:
            Permanent: a message is not of the protocol, or stands where it cannot (Code.SOURCE_PROTOCOL).
            RetryLater: the disk does not take what is in progress (Code.SOURCE_SPILL_FAILED).
        """
        letters = b"".join([part.letters() for part in parts])
        streamed = self._streamed
        if streamed is None or not (streamed.inside or _CONTROL.search(letters)):
            yield from self._plain(parts, letters, byte_size)
            return
        messages = Messages.joined(parts)
        at = 0
        for control in _CONTROL.finditer(letters):
            yield from self._between(messages.part(at, control.start()), letters[at : control.start()])
            at = control.end()
            yield from self._control(streamed, messages.payload(at - 1), letters[at - 1])
        yield from self._between(messages.part(at, len(messages)), letters[at:])

    def _control(self, streamed: StreamedTransactions[ChunkT], payload: bytes, letter: int) -> Iterator[Piece]:
        if not self.idle:
            raise Permanent(Code.SOURCE_PROTOCOL, "a transaction in progress was sent inside another")
        if letter == STREAM_START:
            streamed.start(payload)
        elif letter == STREAM_STOP:
            streamed.stop()
        elif letter == STREAM_ABORT:
            streamed.abort(*stream_abort(payload))
        else:
            ended = stream_commit(payload)
            for part in streamed.commit(ended):
                yield Piece(part.messages, part.begins, part.ends, part.byte_size, in_progress=True)
            self.reached = max(self.reached, ended.end_lsn)

    def _between(self, messages: Messages, letters: bytes) -> Iterator[Piece]:
        """Take what stands between two messages that tell of transactions in progress."""
        if not letters:
            return
        assert self._streamed is not None
        if self._streamed.inside:
            self._hear(messages, letters, in_progress=True)
            self._streamed.take(messages, letters)
        else:
            yield from self._plain([messages], letters, messages.byte_size)

    def _plain(self, parts: Sequence[Messages], letters: bytes, byte_size: int) -> Iterator[Piece]:
        """Take messages of transactions that have committed."""
        if MESSAGE in letters or RELATION in letters:
            messages = Messages.joined(parts)
            if MESSAGE in letters:
                self._hear(messages, letters, in_progress=False)
                messages = messages.kept(np.frombuffer(letters, np.uint8) != MESSAGE).packed()
                letters = letters.translate(None, bytes((MESSAGE,)))
                byte_size = messages.byte_size
            if self._streamed is not None:
                at = letters.find(RELATION)
                while at >= 0:
                    self._streamed.described(messages.payload(at))
                    at = letters.find(RELATION, at + 1)
            parts = [messages]
        yield from self._cut(parts, letters, byte_size)
        last = letters.rfind(COMMIT)
        if last >= 0:
            self.reached = max(self.reached, int.from_bytes(_payload(parts, last)[_COMMIT_END], "big"))

    def _hear(self, messages: Messages, letters: bytes, *, in_progress: bool) -> None:
        at = letters.find(MESSAGE)
        while at >= 0:
            message = logical_message(messages.payload(at), PREFIX, in_progress=in_progress)
            if message.prefix == PREFIX:
                self.heard = message
            if not message.transactional:
                self.reached = max(self.reached, message.lsn)
            at = letters.find(MESSAGE, at + 1)

    def _cut(self, parts: Sequence[Messages], letters: bytes, byte_size: int) -> Iterator[Piece]:
        checked = self._waiting_count
        self._waiting.extend(part for part in parts if len(part))
        self._waiting_count += len(letters)
        self._waiting_bytes += byte_size
        taken = 0
        if self._open:
            end = letters.find(COMMIT)
            if end >= 0:
                taken = checked + end + 1
                yield self._take(taken, begins=False, ends=True)
        if not self._open:
            end = letters.rfind(COMMIT)
            if end >= 0 and checked + end + 1 > taken:
                yield self._take(checked + end + 1 - taken, begins=True, ends=True)
        if self._waiting and (self._waiting_bytes >= self._bytes_max or self._waiting_count >= self._messages_max):
            yield self._take(self._waiting_count, begins=not self._open, ends=False)

    def _take(self, count: int, *, begins: bool, ends: bool) -> Piece:
        parts, left = [], count
        while left:
            first = self._waiting.popleft()
            if len(first) > left:
                self._waiting.appendleft(first.part(left, len(first)).packed())
                first = first.part(0, left)
            parts.append(first)
            left -= len(first)
        messages = Messages.joined(parts)
        size = messages.byte_size
        self._waiting_count -= count
        self._waiting_bytes -= size
        self._open = not ends
        return Piece(messages, begins, ends, size)


def _payload(parts: Sequence[Messages], index: int) -> bytes:
    """Return one payload, counted from the first of all parts."""
    for part in parts:
        if index < len(part):
            return part.payload(index)
        index -= len(part)
    raise IndexError
