"""A limit on failed attempts by address: whoever guesses keys or tokens is refused before anything is looked up.

A bucket for each address holds ATTEMPTS_MAX failures and empties at one in REFILL_SECONDS. A key that was good before passes
even from an address that is over the limit, because behind a proxy everybody may come from one address.
"""

import time
from collections.abc import Callable

from controlplane.refusals import Refused

ATTEMPTS_MAX = 100
REFILL_SECONDS = 0.1
REMEMBERED_MAX = 20_000
"""How many addresses, and how many good keys, are remembered; past it the oldest is forgotten."""


class FailureLimit:
    """Counts failures. Used on the event loop only."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failed: dict[str, tuple[float, float]] = {}
        """By address: how many failures weigh on it, and as of when."""
        self._good: dict[str, None] = {}

    def check(self, address: str, key_hash: str | None = None) -> None:
        """Refuse an address that has failed too often lately, unless the key whose hash is given was good before.

        Raises:
            Refused: too_many_requests.
        """
        if key_hash not in self._good and self._weight(address) > ATTEMPTS_MAX - 1:
            raise Refused("too_many_requests", "Too many requests with an invalid key or token came from this address.")

    def failed(self, address: str) -> None:
        """Take note of a failure."""
        weight = min(self._weight(address) + 1, ATTEMPTS_MAX)
        self._failed.pop(address, None)  # the newest stands last
        self._failed[address] = (weight, self._clock())
        _forget(self._failed)

    def succeeded(self, key_hash: str) -> None:
        """Remember a key that is good, by its hash."""
        if key_hash not in self._good:
            self._good[key_hash] = None
            _forget(self._good)

    def _weight(self, address: str) -> float:
        weight, at = self._failed.get(address, (0.0, 0.0))
        return max(0.0, weight - (self._clock() - at) / REFILL_SECONDS)


def _forget(remembered: dict[str, tuple[float, float]] | dict[str, None]) -> None:
    if len(remembered) > REMEMBERED_MAX:
        del remembered[next(iter(remembered))]
