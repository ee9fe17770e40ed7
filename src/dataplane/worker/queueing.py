"""What has been read and waits for the destination: bounded by bytes and by count, and given out joined.

The producer waits in `put` while the queue is full, so memory is bounded whatever the destination does. The consumer
takes everything that waits, up to a bound, if it may be joined (`joining`), else one set. A failure of the producer
stands behind the sets that it gave before, so these are delivered first.
"""

import asyncio
from collections import deque

from msgspec import Struct

from dataplane.batch import ChangeSet
from dataplane.worker.joining import joinable


class QueueLimits(Struct, frozen=True, kw_only=True):
    """The bounds of a queue, and of what is joined into one destination transaction."""

    bytes_max: int = 16 << 20
    sets_max: int = 4096
    join_bytes_max: int = 8 << 20
    join_rows_max: int = 50_000


class ChangeQueue:
    """Between one producer and one consumer."""

    def __init__(self, limits: QueueLimits) -> None:
        self._limits = limits
        self._sets: deque[tuple[ChangeSet, int]] = deque()
        self._bytes = 0
        self._taken: list[ChangeSet] = []
        self._taken_bytes = 0
        self._failure: BaseException | None = None
        self._released = False
        self._filled = asyncio.Event()
        self._emptied = asyncio.Event()

    @property
    def byte_size(self) -> int:
        """How many bytes wait or are being delivered."""
        return self._bytes + self._taken_bytes

    @property
    def oldest_commit_time(self) -> int:
        """When the oldest set that is not delivered was committed, microseconds since 1970; 0 when there is none."""
        if self._taken:
            return self._taken[0].commit_time
        return self._sets[0][0].commit_time if self._sets else 0

    async def put(self, change: ChangeSet) -> None:
        """Add a set; wait while the queue is full. One set always fits an empty queue."""
        size = change.byte_size
        limits = self._limits
        while self._sets and (self._bytes + size > limits.bytes_max or len(self._sets) >= limits.sets_max):
            self._emptied.clear()
            await self._emptied.wait()
        self._sets.append((change, size))
        self._bytes += size
        self._filled.set()

    def fail(self, failure: BaseException) -> None:
        """Let the consumer meet `failure` after what waits."""
        self._failure = failure
        self._filled.set()

    def release(self) -> None:
        """Let a consumer that waits at an empty queue go: it gets no sets."""
        self._released = True
        self._filled.set()

    async def take(self) -> list[ChangeSet]:
        """Wait for sets and give those that may be applied as one, in order; none once `release` was called.

        They count as waiting until `delivered`.

        Raises:
            BaseException: what `fail` was given, once nothing waits any more.
        """
        while not self._sets:
            if self._released:
                return []
            if self._failure is not None:
                raise self._failure
            self._filled.clear()
            await self._filled.wait()
        taken = self._taken
        size = self._sets[0][1]
        taken.append(self._pop())
        if joinable(taken[0]):
            rows = taken[0].row_count
            while self._sets and joinable(self._sets[0][0]):
                change, change_size = self._sets[0]
                size, rows = size + change_size, rows + change.row_count
                if size > self._limits.join_bytes_max or rows > self._limits.join_rows_max:
                    break
                taken.append(self._pop())
        self._emptied.set()
        return taken

    def delivered(self) -> None:
        """What was taken is where it should be."""
        self._taken, self._taken_bytes = [], 0

    def _pop(self) -> ChangeSet:
        change, size = self._sets.popleft()
        self._bytes -= size
        self._taken_bytes += size
        return change
