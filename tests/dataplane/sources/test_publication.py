"""A table is streamed without a copy only while it never left the publication since it was copied."""

import pytest
from msgspec.structs import replace

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
    assert plan(wanted, {}, published, known) == expected


@pytest.mark.parametrize(
    ("resyncs", "copying", "reached", "expected"),
    [
        ({"b": 1}, {}, {}, ["b"]),
        ({"b": 3}, {}, {"b": 2}, ["b"]),
        ({"b": 2}, {}, {"b": 2}, []),
        # A control plane that was restored counts from where it was.
        ({"b": 1}, {}, {"b": 2}, []),
        # Killed before the copy was durable, and after: the stream did not pass it yet, but its counter is there.
        ({"b": 2}, {"b": 101}, {"b": 1}, ["b"]),
        ({"b": 2}, {"b": 101}, {"b": 2}, []),
        # It was taken out and put back: no counter is left that the old one could be taken for.
        ({}, {"b": 101}, {"b": 2}, ["b"]),
    ],
)
def test_what_is_copied_again(
    resyncs: dict[str, int], copying: dict[str, int], reached: dict[str, int], expected: list[str]
) -> None:
    """While the counter of the document is ahead of the checkpoint's, and never again once it is reached."""
    known = replace(checkpoint("a", "b"), resynced=reached)
    assert plan(["a", "b"], resyncs, seen("a", "b", copying=copying), known).added == expected


@pytest.mark.parametrize("text", [None, "", "made by hand", "{}", '{"copying": 1}'])
def test_a_comment_of_somebody_else_is_no_note(text: str | None) -> None:
    """It is neither obeyed nor an error."""
    assert read(text) is None
