"""A table is streamed without a copy only while it never left the publication since it was copied."""

import pytest

from dataplane.batch import Position
from dataplane.checkpoint import Checkpoint
from dataplane.sources.postgres.publication import Note, Plan, PublicationSeen, plan, read, written


def checkpoint(*copied: str, lsn: int = 100) -> Checkpoint:
    return Checkpoint(
        epoch=1,
        source=None,
        position=Position(lsn, 0),
        confirmed_through=lsn,
        snapshot_done=True,
        tables_owned=[],
        tables_copied=list(copied),
    )


def seen(*tables: str, copying: dict[str, int] | None = None) -> PublicationSeen:
    return PublicationSeen(frozenset(tables), written(Note(pointsman="p", copying=copying or {})), True)


@pytest.mark.parametrize(
    ("wanted", "published", "known", "expected"),
    [
        (["a", "b"], seen("a", "b"), checkpoint("a", "b"), Plan([], alter=False)),
        (["a", "b"], seen("a"), checkpoint("a"), Plan(["b"], alter=True)),
        (["a"], seen("a", "b"), checkpoint("a", "b"), Plan([], alter=True)),
        # b was taken out, so it is copied again although the checkpoint remembers it.
        (["a", "b"], seen("a"), checkpoint("a", "b"), Plan(["b"], alter=True)),
        # Killed between the change of the publication and the copy, before and after its position was known.
        (["a", "b"], seen("a", "b", copying={"b": 0}), checkpoint("a", "b"), Plan(["b"], alter=True)),
        (["a", "b"], seen("a", "b", copying={"b": 101}), checkpoint("a", "b"), Plan(["b"], alter=True)),
        # The stream went past the copy, so the copy had ended.
        (["a", "b"], seen("a", "b", copying={"b": 100}), checkpoint("a", "b"), Plan([], alter=False)),
    ],
)
def test_what_is_copied(wanted: list[str], published: PublicationSeen, known: Checkpoint, expected: Plan) -> None:
    """The publication, its note and the checkpoint decide together."""
    assert plan(wanted, published, known) == expected


@pytest.mark.parametrize("text", [None, "", "made by hand", "{}", '{"copying": 1}'])
def test_a_comment_of_somebody_else_is_no_note(text: str | None) -> None:
    """It is neither obeyed nor an error."""
    assert read(text) is None
