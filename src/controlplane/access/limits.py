"""Limits on requests, which each process keeps for itself: on failures by address, and on how much a tenant asks.

Guessing keys and tokens is slow, and one tenant's flood is not another's wait.

A bucket for each address holds ATTEMPTS_MAX failures and empties at one in REFILL_SECONDS. A key that was good before passes
even from an address that is over the limit, because behind a proxy everybody may come from one address.
A bucket for each tenant holds REQUESTS_BURST_MAX requests and empties at REQUESTS_PER_SECOND_MAX.
"""

import time
from collections.abc import Callable

from controlplane.refusals import Refused

ATTEMPTS_MAX = 100
REFILL_SECONDS = 0.1
REQUESTS_BURST_MAX = 500
REQUESTS_PER_SECOND_MAX = 100.0
REMEMBERED_MAX = 20_000
"""How many addresses, good keys and tenants are remembered; past it the oldest is forgotten."""


class _Buckets:
    """What weighs on each of many names; all of it goes with time."""

    def __init__(self, empties_in_seconds: float, clock: Callable[[], float]) -> None:
        self._empties_in_seconds = empties_in_seconds
        self._clock = clock
        self._weights: dict[str, tuple[float, float]] = {}
        """By name: how much, and as of when."""

    def weight(self, name: str) -> float:
        weight, at = self._weights.get(name, (0.0, 0.0))
        return max(0.0, weight - (self._clock() - at) / self._empties_in_seconds)

    def add(self, name: str, most: int) -> None:
        weight = min(self.weight(name) + 1, most)
        self._weights.pop(name, None)  # the newest stands last
        self._weights[name] = (weight, self._clock())
        _forget(self._weights)


class RequestLimit:
    """Counts a tenant's requests. Used on the event loop only."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._buckets = _Buckets(1 / REQUESTS_PER_SECOND_MAX, clock)

    def take(self, tenant: str) -> None:
        """Take note of a request.

        Raises:
            Refused: too_many_requests.
        """
        if self._buckets.weight(tenant) > REQUESTS_BURST_MAX - 1:
            raise Refused("too_many_requests", f"A tenant has {REQUESTS_PER_SECOND_MAX:.0f} requests a second.")
        self._buckets.add(tenant, REQUESTS_BURST_MAX)


class FailureLimit:
    """Counts failures. Used on the event loop only."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._buckets = _Buckets(REFILL_SECONDS, clock)
        self._good: dict[str, None] = {}

    def check(self, address: str, key_hash: str | None = None) -> None:
        """Refuse an address that has failed too often lately, unless the key whose hash is given was good before.

        Raises:
            Refused: too_many_requests.
        """
        if key_hash not in self._good and self._buckets.weight(address) > ATTEMPTS_MAX - 1:
            raise Refused("too_many_requests", "Too many requests with an invalid key or token came from this address.")

    def failed(self, address: str) -> None:
        """Take note of a failure."""
        self._buckets.add(address, ATTEMPTS_MAX)

    def succeeded(self, key_hash: str) -> None:
        """Remember a key that is good, by its hash."""
        if key_hash not in self._good:
            self._good[key_hash] = None
            _forget(self._good)


def _forget(remembered: dict[str, tuple[float, float]] | dict[str, None]) -> None:
    if len(remembered) > REMEMBERED_MAX:
        del remembered[next(iter(remembered))]
