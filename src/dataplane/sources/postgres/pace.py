"""When to read, when to wait, and when to tell the consumer: the pace of the receiving thread. No I/O.

In flow what each read gave and when; out flow steps. Kept and asked by `stream`.

One message alone is told of at once. Under load the thread lets more gather before it reads again, so that one read takes
many messages. Where the window closes meanwhile (`wire`), the server's rows gather too: the nap then grows until a read
ends within a message, which shows that the server had to wait, and shrinks while it does. So the server always has
something in its queue, and is never held up.
"""

from enum import Enum

GATHER_SECONDS = 0.0003
"""Under load the next read waits this long, to find more. Longer, and the socket fills, which costs the server more."""
NAP_SECONDS_MIN = 0.0001
NAP_SECONDS = 0.001
NAP_SECONDS_MAX = 0.008
NAP_SHRINKS = 0.9
NAP_GROWS = 2.0
FLOW_BYTES_PER_SECOND = 4 << 20
FLOW_BYTES = 64 << 10
FLOW_BYTES_MAX = 256 << 10
"""From so many bytes a second on, `FLOW_BYTES` more in all, a window that closes is worth the wait.

It is so until some hundredths of a second have brought nothing: a server that waits for a processor has not ended.
"""
FULL_BYTES = 8 << 10
"""A read of so many bytes has filled libpq's buffer: more is waiting."""
STEADY_READS = 8
STEADY_READS_MAX = 16
STEADY_READS_PER_SECOND = 400
"""It is load when reads found something more often than so many times a second, `STEADY_READS` times more often in all.

A gap of some milliseconds, as when the server waits for a processor, does not end it at once.
"""
TELL_BYTES_MAX = 1 << 20
TELL_SECONDS_MAX = 0.02
"""Under load the consumer is told of what came after so many bytes or seconds, so that it gets many rows at once."""


class Step(Enum):
    """What the thread does next."""

    READ = "read"
    """More is there already."""
    GATHER = "gather"
    """Data flows steadily: sleep for `gather_seconds`, and find more of it at once."""
    LINGER = "linger"
    """Nothing is there, though much was a moment ago: tell of it, and sleep for `gather_seconds`.

    A reader that waited would be woken by a single row, and the server would pay for waking it.
    """
    WAIT = "wait"
    """Nothing is there: wait until something comes."""


class Pace:
    """The pace of one stream. `gather_seconds` is how long the next `GATHER` or `LINGER` lasts."""

    def __init__(self) -> None:
        self.gather_seconds = GATHER_SECONDS
        self._steady = 0.0
        self._flow = 0.0
        self._last = 0.0
        self._untold = 0
        self._told_at = 0.0

    def after(self, size: int, now: float, *, closes_window: bool = False, cut: bool = False) -> Step:
        """Return the next step after a read of `size` bytes that ended within a message (`cut`) or at one's end."""
        self._untold += size
        elapsed = now - self._last
        self._last = now
        self._flow = min(max(0.0, self._flow - elapsed * FLOW_BYTES_PER_SECOND) + size, FLOW_BYTES_MAX)
        self._steady = max(0.0, self._steady - elapsed * STEADY_READS_PER_SECOND)
        if closes_window and self._flow >= FLOW_BYTES:
            return self._nap(cut=cut) if size else Step.LINGER
        if size == 0:
            return Step.WAIT
        self.gather_seconds = GATHER_SECONDS
        self._steady = min(self._steady + 1, STEADY_READS_MAX)
        if cut and not closes_window:
            return Step.READ
        if self._steady < STEADY_READS:
            return Step.WAIT
        return Step.READ if size >= FULL_BYTES or cut else Step.GATHER

    def _nap(self, *, cut: bool) -> Step:
        self._steady = STEADY_READS_MAX
        nap = NAP_SECONDS if self.gather_seconds == GATHER_SECONDS else self.gather_seconds
        if not cut:
            self.gather_seconds = min(nap * NAP_GROWS, NAP_SECONDS_MAX)
            return Step.GATHER
        self.gather_seconds = max(nap * NAP_SHRINKS, NAP_SECONDS_MIN)
        return Step.GATHER if self.gather_seconds > NAP_SECONDS_MIN else Step.READ

    def is_due(self, now: float) -> bool:
        """Say whether the consumer must be told although more is coming."""
        return self._untold >= TELL_BYTES_MAX or now >= self._told_at + TELL_SECONDS_MAX

    def told(self, now: float) -> bool:
        """Note that the consumer is told now. Return whether there is anything to tell."""
        anything = self._untold > 0
        self._untold, self._told_at = 0, now
        return anything
