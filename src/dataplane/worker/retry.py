"""How long to wait before the next session, decided without waiting: pure but for the randomness it is given.

Delays double from a fifth of a second to half a minute, with jitter so that a node's pipelines do not all return at
once. Whatever made progress starts again at the shortest delay. There is no last attempt: a destination that was away
for a week is tried for a week, and the phase says so all the time.
"""

from random import Random

from contracts.codes import Code
from dataplane.failures import RetryLater

FIRST_DELAY_SECONDS = 0.2
DELAY_SECONDS_MAX = 30.0
REPLACED_DELAY_SECONDS = 0.02
FENCED_DELAY_SECONDS = 15.0
"""Someone else has just taken over: claiming back at once would make two workers fight for ever."""


class Backoff:
    """The delays of one pipeline's sessions."""

    def __init__(self, randomness: Random) -> None:
        self._randomness = randomness
        self._failures = 0
        self._replacements = 0

    def progressed(self) -> None:
        """Forget the failures so far: a session did what it is for."""
        self._failures = self._replacements = 0

    def replacement_delay(self) -> float:
        """Count one session that the other half replaced, and return the seconds to wait: none after the first.

        Two halves that keep replacing each other (one of them is a leftover) must not do so as fast as they can.
        """
        self._replacements += 1
        if self._replacements == 1:
            return 0.0
        ceiling = min(DELAY_SECONDS_MAX, REPLACED_DELAY_SECONDS * 2.0 ** min(self._replacements, 16))
        return ceiling * (0.5 + 0.5 * self._randomness.random())

    def delay(self, failure: RetryLater) -> float:
        """Count one failure, and return the seconds to wait after it."""
        ceiling = min(DELAY_SECONDS_MAX, FIRST_DELAY_SECONDS * 2.0 ** min(self._failures, 16))
        self._failures += 1
        least = failure.delay_seconds_min
        if failure.code is Code.SINK_FENCED:
            least = max(least, FENCED_DELAY_SECONDS)
        jitter = ceiling * (0.5 + 0.5 * self._randomness.random())
        return least + jitter if least else jitter
