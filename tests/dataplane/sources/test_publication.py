"""A table is streamed without a copy only while it never left the publication since it was copied."""

import pytest
from msgspec.structs import replace

from dataplane.batch import Position
from dataplane.checkpoint import Checkpoint, Cursor
from dataplane.sources.postgres.publication import CopyPlan, Note, PublicationSeen, behind, plan, read, written

HALF = Cursor(
    copy=1, chunks=3, key=["id integer"], last=["30"], through=90, rows=30, bytes=300, read=False, settled=False
)
WHOLE = replace(HALF, last=None, read=True, settled=True)


def checkpoint(*copied: str, lsn: int = 100, **cursors: Cursor) -> Checkpoint:
    return Checkpoint(
        epoch=1,
        source=None,
        position=Position(lsn, 0),
        confirmed_through=lsn,
        snapshot_done=True,
        tables_owned=[],
        tables_copied=list(copied),
        cursors=cursors,
    )


def seen(*tables: str, copying: dict[str, int] | None = None, copies: dict[str, int] | None = None) -> PublicationSeen:
    note = Note(pointsman="p", copying=copying or {}, copies=copies or {})
    return PublicationSeen(frozenset(tables), written(note), True)


ENTERED = CopyPlan("b", 1, entered=True)


@pytest.mark.parametrize(
    ("wanted", "published", "known", "expected", "alter"),
    [
        (["a", "b"], seen("a", "b"), checkpoint("a", "b"), [], False),
        (["a", "b"], seen("a"), checkpoint("a"), [ENTERED], True),
        (["a"], seen("a", "b"), checkpoint("a", "b"), [], True),
        # b was taken out, so it is copied again although the checkpoint remembers it, under a number of its own.
        (["a", "b"], seen("a"), checkpoint("a", "b"), [CopyPlan("b", 1, entered=True, replaces=True)], True),
        (
            ["a", "b"],
            seen("a"),
            checkpoint("a", "b", b=WHOLE),
            [CopyPlan("b", 2, entered=True, replaces=True)],
            True,
        ),
        # Killed between the change of the publication and the first chunk, and after it.
        (["a", "b"], seen("a", "b", copies={"b": 1}), checkpoint("a"), [ENTERED], False),
        (["a", "b"], seen("a", "b", copies={"b": 1}), checkpoint("a", b=HALF), [CopyPlan("b", 1, cursor=HALF)], False),
        (["a", "b"], seen("a", "b", copies={"b": 1}), checkpoint("a", "b", b=WHOLE), [], False),
        # Half of a copy from before it was taken out does not count.
        (["a", "b"], seen("a", "b", copies={"b": 2}), checkpoint("a", b=HALF), [CopyPlan("b", 2, entered=True)], False),
        # What an older release had begun: the stream went past the copy, so it had ended; or it had not.
        (["a", "b"], seen("a", "b", copying={"b": 100}), checkpoint("a", "b"), [], False),
        (
            ["a", "b"],
            seen("a", "b", copying={"b": 101}),
            checkpoint("a", "b"),
            [CopyPlan("b", 1, entered=True, replaces=True)],
            True,
        ),
        # The first copy of all: the publication was made with them, and before the slot.
        (["a", "b"], seen("a", "b"), checkpoint(a=HALF), [CopyPlan("a", 1, cursor=HALF), CopyPlan("b", 1)], False),
    ],
)
def test_what_is_copied(
    wanted: list[str], published: PublicationSeen, known: Checkpoint, expected: list[CopyPlan], alter: bool
) -> None:
    """The publication, its note and the checkpoint decide together."""
    found = plan(wanted, {}, published, known)
    assert (list(found.copies), found.alter) == (expected, alter)


@pytest.mark.parametrize(
    ("resyncs", "reached", "cursor", "expected"),
    [
        ({"b": 1}, {}, None, [CopyPlan("b", 1, 1, replaces=True)]),
        ({"b": 3}, {"b": 2}, replace(WHOLE, resync=2), [CopyPlan("b", 2, 3, replaces=True)]),
        ({"b": 2}, {"b": 2}, replace(WHOLE, resync=2), []),
        # A control plane that was restored counts from where it was.
        ({"b": 1}, {"b": 2}, replace(WHOLE, resync=2), []),
        # Killed in the middle: it goes on. Asked for once more meanwhile: it begins anew.
        ({"b": 2}, {"b": 1}, replace(HALF, resync=2), [CopyPlan("b", 1, 2, replace(HALF, resync=2))]),
        ({"b": 3}, {"b": 1}, replace(HALF, resync=2), [CopyPlan("b", 2, 3, replaces=True)]),
    ],
)
def test_what_is_copied_again(
    resyncs: dict[str, int], reached: dict[str, int], cursor: Cursor | None, expected: list[CopyPlan]
) -> None:
    """While the counter of the document is ahead of the checkpoint's, and never again once it is reached."""
    cursors = {} if cursor is None else {"b": cursor}
    known = replace(checkpoint("a", "b", **cursors), resynced=reached)
    assert list(plan(["a", "b"], resyncs, seen("a", "b"), known).copies) == expected


def test_a_copy_that_has_begun_is_not_asked_for_any_more() -> None:
    """So all tables that were asked for start over once, and go on after a kill."""
    resyncs = {"a": 1, "b": 1}
    assert behind(["a", "b"], resyncs, checkpoint("a", "b")) == {"a", "b"}
    assert behind(["a", "b"], resyncs, checkpoint(a=replace(HALF, resync=1))) == {"b"}


@pytest.mark.parametrize("text", [None, "", "made by hand", "{}", '{"copying": 1}'])
def test_a_comment_of_somebody_else_is_no_note(text: str | None) -> None:
    """It is neither obeyed nor an error."""
    assert read(text) is None
