"""What arrives again is cut off at the checkpoint's position, whatever is left of a set."""

from tests.dataplane.buffers.changes import inserts

from dataplane.batch import ChangeSet, Position
from dataplane.sinks.replay import unseen


def test_a_set_of_which_only_left_out_rows_come_after_the_position_still_moves_it() -> None:
    """A copy has the rows of its second transaction, so none is left of them; its end is told to the source."""
    change = ChangeSet(
        items=(inserts(10, [1, 2]),),
        first=Position(10, 0),
        last=Position(20, 3),
        begins=True,
        ends=True,
        commit_end_lsn=21,
        commit_time=0,
        transactions=2,
    )
    rest = unseen(change, Position(10, 1), ())
    assert rest is not None
    assert (rest.items, rest.first, rest.last, rest.commit_end_lsn) == ((), Position(20, 3), Position(20, 3), 21)
