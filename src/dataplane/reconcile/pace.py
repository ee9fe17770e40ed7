"""How fast a comparison may go, and how much it takes at once: nice to both databases, bounded in memory.

Waiting ends at once when the process is asked to stop.
"""

import threading
import time

ROWS_PER_SECOND_MAX = 50_000
"""Rows compared in a second at most, on the whole; both databases have better things to do."""
CHUNK_ROWS_MAX = 10_000
CHUNK_ROWS_FIRST = 100
CHUNK_BYTES = 4 << 20
"""About how much one chunk holds in memory, unless a single row is larger."""


class Stopped(Exception):
    """The process was asked to stop; what is done is written down."""


class Pace:
    """Slows a run down to `rows_per_second_max`. `stop` ends it."""

    def __init__(self, stop: threading.Event, rows_per_second_max: int = ROWS_PER_SECOND_MAX) -> None:
        self._stop = stop
        self._rate = rows_per_second_max
        self._due = time.monotonic()

    def spend(self, rows: int) -> None:
        """Wait as long as `rows` more rows take.

        Raises:
            Stopped: the process was asked to stop.
        """
        now = time.monotonic()
        self._due = max(self._due, now - 1.0) + rows / self._rate
        self.pause(max(0.0, self._due - now))

    def pause(self, seconds: float) -> None:
        """Wait for so long.

        Raises:
            Stopped: the process was asked to stop.
        """
        if self._stop.wait(seconds) if seconds > 0 else self._stop.is_set():
            raise Stopped


class ChunkSize:
    """How many rows the next chunk has: as many as fit into CHUNK_BYTES, judged by those before."""

    def __init__(self) -> None:
        self.rows = CHUNK_ROWS_FIRST

    def saw(self, rows: int, size_bytes: int) -> None:
        """Learn from a chunk."""
        if rows:
            fitting = CHUNK_BYTES * rows // max(size_bytes, 1)
            self.rows = max(1, min(CHUNK_ROWS_MAX, 2 * self.rows, fitting))
