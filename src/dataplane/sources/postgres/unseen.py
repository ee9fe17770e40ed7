"""The transactions that the stream gave out and that a snapshot may not see yet.

In flow the numbers of what is given out; out flow whether a moment sees all of them. A transaction can be in the stream
before new snapshots see it (between its commit record and its end, which is long where a commit waits for a standby).
One for each session's copies; `copying` and `filler` ask it before they trust a moment. No I/O.
"""

import logging
import time

import numpy as np

from dataplane.sources.postgres.moment import Moment, Transactions

UNSEEN_SECONDS_TOLD = 30.0
"""A transaction that stays unseen for so long waits for a standby; the log says so."""

_log = logging.getLogger("pointsman.source")


class Unseen:
    """Those transactions, as far as no moment has seen them."""

    def __init__(self) -> None:
        self._transactions: Transactions = np.empty(0, np.uint32)
        self._since = 0.0

    def __len__(self) -> int:
        return len(self._transactions)

    def begin(self, transactions: Transactions) -> None:
        """Begin with those of earlier sessions."""
        self._transactions = transactions

    def add(self, transactions: Transactions) -> None:
        """Note what was given out."""
        if len(transactions):
            self._transactions = np.concatenate([self._transactions, transactions])

    def are_seen(self, moment: Moment) -> bool:
        """Forget those that the moment sees, and say whether these were all."""
        self._transactions = self._transactions[~moment.sees(self._transactions)]
        now = time.monotonic()
        if not len(self._transactions):
            self._since = now
            return True
        if now - self._since > UNSEEN_SECONDS_TOLD:
            _log.warning("copies wait for transactions that are committed and not visible yet: is a standby away?")
            self._since = now
        return False
