"""Cut the stream into pieces: runs of whole transactions, or the parts of a large one.

In flow the payloads of XLogData messages as they were received; out flow pieces for the decoder. Called by the source
with all that has arrived whenever the consumer is free: what is there goes out at once when little is there, and grows
into large pieces under load. A transaction whose end has not arrived waits here until it does, or until it has
`piece_bytes_max` or `piece_messages_max`; from then on it goes out in parts. So memory is bounded. No I/O.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dataplane.sources.postgres.messages import COMMIT, XLOG_HEADER_BYTES

_LETTER = slice(XLOG_HEADER_BYTES, XLOG_HEADER_BYTES + 1)
_COMMIT = bytes([COMMIT])


@dataclass(frozen=True, slots=True)
class Piece:
    """Payloads of XLogData messages. `begins` and `ends` as in `ChangeSet`."""

    payloads: Sequence[bytes]
    begins: bool
    ends: bool
    byte_size: int


class Assembler:
    """Keeps what has not ended yet. `waiting_bytes` is how much that is."""

    def __init__(self, *, piece_bytes_max: int, piece_messages_max: int) -> None:
        self._bytes_max = piece_bytes_max
        self._messages_max = piece_messages_max
        self._waiting: list[bytes] = []
        self._open = False
        self.waiting_bytes = 0

    @property
    def idle(self) -> bool:
        """Whether no transaction is on its way."""
        return not self._waiting and not self._open

    def cut(self, payloads: Sequence[bytes], byte_size: int) -> Iterator[Piece]:
        """Take what has arrived, `byte_size` bytes in all, and give the pieces that can go out now."""
        checked = len(self._waiting)
        self._waiting.extend(payloads)
        self.waiting_bytes += byte_size
        if self._open:
            end = self._first_commit(checked)
            if end is not None:
                yield self._take(end + 1, begins=False, ends=True)
                checked = 0
        if not self._open:
            end = self._last_commit(checked)
            if end is not None:
                yield self._take(end + 1, begins=True, ends=True)
        if self._waiting and (self.waiting_bytes >= self._bytes_max or len(self._waiting) >= self._messages_max):
            yield self._take(len(self._waiting), begins=not self._open, ends=False)

    def _first_commit(self, start: int) -> int | None:
        waiting = self._waiting
        return next((at for at in range(start, len(waiting)) if waiting[at][_LETTER] == _COMMIT), None)

    def _last_commit(self, start: int) -> int | None:
        waiting = self._waiting
        return next((at for at in range(len(waiting) - 1, start - 1, -1) if waiting[at][_LETTER] == _COMMIT), None)

    def _take(self, count: int, *, begins: bool, ends: bool) -> Piece:
        payloads, self._waiting = self._waiting[:count], self._waiting[count:]
        left = sum(map(len, self._waiting))
        size, self.waiting_bytes = self.waiting_bytes - left, left
        self._open = not ends
        return Piece(payloads, begins, ends, size)
