"""Positions of one session in the source's log, and when the idle advance is due. No I/O.

Kept and read by the source alone.
"""

import time
from dataclasses import dataclass

IDLE_ADVANCE_SECONDS = 10.0
ASKED_ADVANCE_SECONDS = 0.5
"""A server that asks for an answer, as it does when it shuts down, is not kept waiting for the idle advance."""


@dataclass(slots=True)
class Marks:
    """Positions are LSNs as numbers."""

    confirmed: int = 0
    """What is durable at the destination."""
    emitted: int = 0
    """The end of the last whole transaction that went out."""
    passed: int = 0
    """Everything that was committed before it has gone out."""
    asked: bool = False
    advanced_at: float = -IDLE_ADVANCE_SECONDS

    def until_advance(self) -> float:
        """Return how long to wait for something to come before the idle advance is thought of again.

        An advance that is overdue has nothing to advance to, or waits for the destination; a whole interval passes then.
        """
        interval = ASKED_ADVANCE_SECONDS if self.asked else IDLE_ADVANCE_SECONDS
        left = self.advanced_at + interval - time.monotonic()
        return left if left > 0 else interval

    def advance_is_due(self) -> bool:
        """Say whether it is time for the idle advance."""
        return time.monotonic() >= self.advanced_at + (ASKED_ADVANCE_SECONDS if self.asked else IDLE_ADVANCE_SECONDS)

    def advanced(self) -> None:
        """Note that the idle advance was made."""
        self.advanced_at = time.monotonic()
        self.asked = False
