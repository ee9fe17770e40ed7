"""What two readings of a row mean, as a table: only what cannot be on its way is called a difference."""

import pytest

from dataplane.reconcile.proof import AGAIN, EQUAL, Claim, DestinationRow, Kind, Readings, SourceRow, Verdict, judge

V1, V2, MARKED = SourceRow("v1", marked=False), SourceRow("v2", marked=False), SourceRow("v1", marked=True)
SAME, OTHER = DestinationRow("d1", same=True), DestinationRow("d1", same=False)
MISSING, DIFFERENT = Claim(Kind.MISSING, "v1", None), Claim(Kind.DIFFERENT, "v1", "d1")
EXTRA = Claim(Kind.EXTRA, None, "d1")


@pytest.mark.parametrize(
    ("readings", "verdict"),
    [
        (Readings("d1", V1, SAME, V1), EQUAL),
        (Readings("d0", V1, SAME, V2), EQUAL),
        (Readings("d1", V1, OTHER, V1), Verdict(settled=True, claim=DIFFERENT)),
        (Readings("d1", V1, OTHER, V2), AGAIN),
        (Readings("d1", V1, OTHER, None), AGAIN),
        (Readings(None, V1, None, V1), Verdict(settled=True, claim=MISSING)),
        (Readings(None, V1, None, V2), AGAIN),
        (Readings(None, None, None, None), EQUAL),
        (Readings(None, None, None, V1), AGAIN),
        (Readings("d0", None, OTHER, None), AGAIN),
        (Readings(None, None, OTHER, None), AGAIN),
        (Readings("d1", None, OTHER, V1), AGAIN),
    ],
)
def test_one_round_settles_what_kept_still(readings: Readings, verdict: Verdict) -> None:
    """A row whose version changed, at the end that matters, is looked at again."""
    assert judge(readings, earlier=None, quiet=True) == verdict


@pytest.mark.parametrize(
    ("readings", "claim"),
    [
        (Readings("d1", MARKED, OTHER, MARKED), DIFFERENT),
        (Readings("d1", V1, OTHER, MARKED), DIFFERENT),
        (Readings(None, MARKED, None, V1), MISSING),
        (Readings("d1", None, OTHER, None), EXTRA),
    ],
)
def test_what_may_be_committed_and_not_visible_yet_takes_two_rounds(readings: Readings, claim: Claim) -> None:
    """The second must agree with the first, and come after every transaction that ran in it where commits may linger."""
    assert judge(readings, earlier=None, quiet=True) == Verdict(settled=False, claim=claim)
    assert judge(readings, earlier=claim, quiet=False) == Verdict(settled=False, claim=claim)
    assert judge(readings, earlier=claim._replace(destination_version="d9"), quiet=True).settled is False
    assert judge(readings, earlier=claim, quiet=True) == Verdict(settled=True, claim=claim)
