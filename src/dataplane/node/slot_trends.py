"""How fast slots grow, and how long until their limit: measures of one slot after another, turned into numbers to tell.

In flow measures, from workers and from `slot_look`; out flow the contracts' `Slot`. Pure: time comes with the measures.

What a slot keeps goes up steadily and down in jumps, whenever the server lets a piece of the log go. So growth is smoothed
over minutes, or a healthy slot would look as if it grew most of the time.
"""

import math

from contracts.slots import Slot
from dataplane.slot_measure import SlotMeasure

SMOOTH_SECONDS = 120.0
GROWTH_MIN = 1.0
"""Bytes a second; a slot that grows less is said to have no end."""


class Trend:
    """The growth of one pipeline's slot."""

    def __init__(self) -> None:
        self.newest: SlotMeasure | None = None
        self._growth = 0.0
        self._written = 0.0
        self._weight = 0.0

    def note(self, measure: SlotMeasure) -> None:
        """Take one measure in. One that is not newer than the last changes nothing; one of another slot begins anew."""
        before = self.newest
        if before is None or before.name != measure.name or measure.is_gone:
            self.newest, self._growth, self._written, self._weight = measure, 0.0, 0.0, 0.0
            return
        seconds = measure.at - before.at
        if seconds <= 0:
            return
        # Weighted by time, and the first minutes by what there is: a mean that begins at nothing would be too low.
        kept = math.exp(-seconds / SMOOTH_SECONDS)
        grown, written = measure.retained_bytes - before.retained_bytes, measure.log_end - before.log_end
        self._growth = self._growth * kept + grown / seconds * (1 - kept)
        self._written = self._written * kept + written / seconds * (1 - kept)
        self._weight = self._weight * kept + (1 - kept)
        self.newest = measure

    @property
    def growth_bytes_per_second(self) -> float:
        """The smoothed growth; 0 for a slot that shrinks, and before there are two measures."""
        return max(0.0, self._growth / self._weight) if self._weight else 0.0

    @property
    def written_bytes_per_second(self) -> float:
        """How fast the server's log grows, smoothed."""
        return max(0.0, self._written / self._weight) if self._weight else 0.0

    def told(self, retain_bytes_max: int | None) -> Slot | None:
        """Return the numbers as they may cross; None before there is a measure. `retain_bytes_max` is the pipeline's own limit."""
        measure = self.newest
        if measure is None:
            return None
        growth = self.growth_bytes_per_second
        limit = limit_of(measure, retain_bytes_max)
        left = None
        if limit is not None and growth >= GROWTH_MIN:
            left = min(1e10, max(0, limit - measure.retained_bytes) / growth)
        return Slot(
            status=measure.status,
            active=measure.active,
            retained_bytes=measure.retained_bytes,
            unconfirmed_bytes=measure.unconfirmed_bytes,
            safe_bytes=measure.safe_bytes,
            limit_bytes=limit,
            growth_bytes_per_second=min(1e10, growth),
            written_bytes_per_second=min(1e10, self.written_bytes_per_second),
            seconds_left=left,
            catalog_age=measure.catalog_age,
            spill_bytes=measure.spill_bytes,
            inactive_seconds=measure.inactive_seconds,
            invalidation=measure.invalidation,
        )


def limit_of(measure: SlotMeasure, retain_bytes_max: int | None) -> int | None:
    """Return how much the slot may keep: by the pipeline's own limit or by the server's, whichever is lower; None for neither."""
    limits = [] if retain_bytes_max is None else [retain_bytes_max]
    if measure.safe_bytes is not None:
        limits.append(measure.retained_bytes + measure.safe_bytes)
    return min(limits, default=None)
