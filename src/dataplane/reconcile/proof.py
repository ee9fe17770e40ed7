"""What the readings of one row at both ends mean, decided without I/O: a finding, equality, or 'look again'.

The pipeline is always behind its source, so a row that looks different is only a candidate. One round reads it so:
the destination's row (for its version), the source's row, then the end of the source's log; it waits until the
destination's checkpoint is past that, and reads the destination's row, then the source's again. What follows:

- The source's row kept its version all the time, so all that the destination could still be sent of that key is
  behind the checkpoint. If the destination's row differs or is not there, nothing will mend it: a finding.
- The source had no row before and after, and the destination's row kept its version since before the first look: the
  delete that removed it at the source, if there was one, has passed the checkpoint without effect. A finding.
- All else changes at the moment.

One window is left: a transaction can reach the destination an instant before the source shows it, because it is
written to the log before it is made visible. A row that somebody else has marked (its `xmax` is set) or that is not
there may be in that window, so it takes a second round with the same outcome. Where commits wait for a standby the window
is as long as that wait: then the second round counts only once every transaction that ran in the first has ended.
"""

from enum import Enum
from typing import NamedTuple


class Kind(Enum):
    """How a row differs."""

    MISSING = "missing"
    """The destination lacks it."""
    DIFFERENT = "different"
    EXTRA = "extra"
    """Only the destination has it."""


class SourceRow(NamedTuple):
    """A row of the source: which version of it, and whether somebody has marked that version (locked or replaced it)."""

    version: str
    marked: bool


class DestinationRow(NamedTuple):
    """A row of the destination, and whether it holds what the source's first reading would be stored as."""

    version: str
    same: bool


class Readings(NamedTuple):
    """What one round read of one key, in this order; None where there was no row (or nobody looked)."""

    destination_before: str | None
    source_before: SourceRow | None
    destination: DestinationRow | None
    source_after: SourceRow | None


class Claim(NamedTuple):
    """What a round would say of a row if another one agrees."""

    kind: Kind
    source_version: str | None
    destination_version: str | None


class Verdict(NamedTuple):
    """What a round came to: `settled` without a claim means that both ends are equal."""

    settled: bool
    claim: Claim | None = None


EQUAL = Verdict(settled=True)
AGAIN = Verdict(settled=False)


def judge(readings: Readings, *, earlier: Claim | None, quiet: bool) -> Verdict:
    """Return what the readings say. `earlier` is the claim of the round before.

    `quiet`: every transaction that ran in the round before has ended, or none can be in the window for longer than a
    round takes.
    """
    before, after, destination = readings.source_before, readings.source_after, readings.destination
    if before is None:
        if after is not None:
            return AGAIN
        if destination is None:
            return EQUAL
        if destination.version != readings.destination_before:
            return AGAIN
        claim = Claim(Kind.EXTRA, None, destination.version)
        return Verdict(settled=quiet and claim == earlier, claim=claim)
    if destination is not None and destination.same:
        # Equal at a moment when all that led to the source's row was there: whatever came since is the stream's.
        return EQUAL
    if after is None or after.version != before.version:
        return AGAIN
    claim = (
        Claim(Kind.MISSING, before.version, None)
        if destination is None
        else Claim(Kind.DIFFERENT, before.version, destination.version)
    )
    if not before.marked and not after.marked:
        return Verdict(settled=True, claim=claim)
    return Verdict(settled=quiet and claim == earlier, claim=claim)
