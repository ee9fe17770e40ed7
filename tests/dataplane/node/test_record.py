"""What a node remembers of itself survives, whole or not at all."""

from pathlib import Path

import pytest

from dataplane.node import record
from dataplane.node.record import Ended, Record

FULL = Record(
    held=frozenset({"a", "b"}),
    members=frozenset({"node-1"}),
    ended={"c": Ended(epoch=1, generation=2, removed=True, position_lsn=3)},
)


def test_what_is_saved_is_loaded(folder: Path) -> None:
    """A record comes back equal, and a second one replaces it."""
    record.save(folder / "state", FULL)
    assert record.load(folder / "state") == FULL
    record.save(folder / "state", Record())
    assert record.load(folder / "state") == Record()


@pytest.mark.parametrize(
    "damage", [lambda text: text[:-20], lambda text: b"", lambda text: text.replace(b'"a"', b'"x"')]
)
def test_a_damaged_record_counts_as_none(folder: Path, damage: object) -> None:
    """A torn or altered file is never half believed."""
    record.save(folder, FULL)
    path = folder / record.FILE_NAME
    path.write_bytes(damage(path.read_bytes()))  # type: ignore[operator]
    assert record.load(folder) == Record()


def test_no_record_is_an_empty_one(folder: Path) -> None:
    """The first start has nothing to remember."""
    assert record.load(folder) == Record()
