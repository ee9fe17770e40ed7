"""Whatever a control plane has ever stored, today's code reads it and comes to the same state."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from controlplane import domain
from controlplane.domain import Aggregate, DomainEvent, Undecodable
from controlplane.domain.aggregate import HistoryUnreadableError, fold
from controlplane.domain.event import decode, encode, topic_of

HISTORIES = sorted(Path(__file__).parent.glob("*.json"))
KINDS: dict[str, type[Aggregate]] = {each.KIND: each for each in Aggregate.__subclasses__()}


def _read(path: Path) -> tuple[dict[str, Any], Aggregate, list[DomainEvent]]:
    history = msgspec.json.decode(path.read_bytes())
    first = KINDS[history["kind"]].new(history["tenant"], history["name"])
    events = [
        decode(each["topic"], each["state"].encode(), first.id, number)
        for number, each in enumerate(history["events"], start=1)
    ]
    return history, first, events


@pytest.mark.parametrize("path", HISTORIES, ids=lambda path: path.stem)
def test_a_recorded_stream_folds_to_its_recorded_state(path: Path) -> None:
    """Every event is decoded, and all of them together make the state that they made when they were recorded."""
    history, first, events = _read(path)
    assert not [event for event in events if isinstance(event, Undecodable)]
    folded = msgspec.json.decode(msgspec.json.encode(fold(first, events)))
    # A field that was added since then has its default, which no recorded state can know.
    assert {name: folded[name] for name in history["state"]} == history["state"]


@pytest.mark.parametrize("path", HISTORIES, ids=lambda path: path.stem)
def test_an_event_of_todays_form_is_written_as_it_was(path: Path) -> None:
    """The audit chain hashes stored bytes, so equal events are equal bytes, today and then."""
    history, _, events = _read(path)
    for stored, event in zip(history["events"], events, strict=True):
        if stored["topic"] == topic_of(type(event)):
            assert encode(event).decode() == stored["state"]


def test_every_event_type_has_been_recorded() -> None:
    """An event that is in no history could change its form unseen; `record` writes what is missing."""
    recorded = {each["topic"] for path in HISTORIES for each in msgspec.json.decode(path.read_bytes())["events"]}
    known = {
        topic_of(each)
        for each in vars(domain).values()
        if isinstance(each, type) and issubclass(each, DomainEvent) and each not in (DomainEvent, Undecodable)
    }
    assert known <= recorded


def test_a_history_with_a_damaged_event_does_not_fold() -> None:
    """An event that cannot be read is never skipped: no decision is made from what follows it."""
    path = next(path for path in HISTORIES if path.stem == "pipeline")
    history, first, events = _read(path)
    damaged = history["events"][1]["state"].replace('"generation":2', '"generation":"two"')
    events[1] = decode(history["events"][1]["topic"], damaged.encode(), first.id, 2)
    with pytest.raises(HistoryUnreadableError):
        fold(first, events)
