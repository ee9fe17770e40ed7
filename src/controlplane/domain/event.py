"""What every event carries, and how it is written down: deterministic JSON beside a topic that names type and version.

A stored event never changes. When a type's form changes, its `SCHEMA` goes up by one and an entry of `UPCASTS` says how
the older form becomes the newer; today's code then folds every history that was ever written.
Used by the store (encode, decode), by aggregates (events are what they decide) and by every projection.
"""

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, ClassVar
from uuid import UUID

import msgspec
from msgspec import Struct


class DomainEvent(Struct, frozen=True, kw_only=True):
    """Something that happened to one resource of one tenant.

    `actor` is an opaque id of who asked: `key:…`, `node:…`, `operator` or `system`; never a person's name.
    """

    KIND: ClassVar[str] = ""
    """The kind of resource, as people write it: `Pipeline`."""
    SCHEMA: ClassVar[int] = 1
    """The version of this type's stored form."""
    UPCASTS: ClassVar[Mapping[int, Callable[[dict[str, Any]], dict[str, Any]]]] = {}
    """For each older version, what makes its stored fields into those of the next one."""

    originator_id: UUID
    originator_version: int
    at: datetime
    tenant: str
    name: str
    actor: str


class Undecodable(DomainEvent, frozen=True, kw_only=True):
    """Stands in for a stored event that today's code cannot read, so that only its own tenant waits for a repair."""

    topic: str


class EventUnreadableError(ValueError):
    """A stored event has not even the head that says whose it is. Nothing may be projected past it."""


class _Head(Struct, frozen=True):
    at: datetime
    tenant: str
    name: str
    actor: str


_ENCODER = msgspec.json.Encoder(order="deterministic")
_HEAD = msgspec.json.Decoder(_Head)
_TYPES: dict[str, type[DomainEvent]] = {}
_ADDRESS = ("originator_id", "originator_version")


def registered(event_type: type[DomainEvent]) -> type[DomainEvent]:
    """Return `event_type`, made known to `decode`. Used as a decorator.

    Raises:
        ValueError: the name is taken, or a version between 1 and SCHEMA has no upcast.
    """
    name = event_type.__name__
    if name in _TYPES:
        raise ValueError(f"two event types are called {name}")
    if set(event_type.UPCASTS) != set(range(1, event_type.SCHEMA)):
        raise ValueError(f"{name} needs one upcast from each version before {event_type.SCHEMA}")
    _TYPES[name] = event_type
    return event_type


def topic_of(event_type: type[DomainEvent]) -> str:
    """Return what the store keeps beside the event: `PipelineConfigured`, or `PipelineConfigured/2` in a later form."""
    return event_type.__name__ if event_type.SCHEMA == 1 else f"{event_type.__name__}/{event_type.SCHEMA}"


def encode(event: DomainEvent) -> bytes:
    """Return the stored form: every field but the address, keys sorted, so that equal events are equal bytes.

    A field that was added later, and is not set, does not stand there: such an event is stored as it was before.
    """
    fields = {name: getattr(event, name) for name in event.__struct_fields__ if name not in _ADDRESS}
    fields = {name: each for name, each in fields.items() if each is not msgspec.UNSET}
    return _ENCODER.encode(fields)


def decode(topic: str, state: bytes, originator_id: UUID, originator_version: int) -> DomainEvent:
    """Return the event that was stored, in its newest form; `Undecodable` if only its head can be read.

    Raises:
        EventUnreadableError: not even the head can be read.
    """
    name, _, version = topic.partition("/")
    try:
        event_type = _TYPES[name]
        fields = msgspec.json.decode(state)
        written = int(version or 1)
        if not 1 <= written <= event_type.SCHEMA:
            raise ValueError("written by a newer version")
        for older in range(written, event_type.SCHEMA):
            fields = event_type.UPCASTS[older](fields)
        address = {"originator_id": originator_id, "originator_version": originator_version}
        return msgspec.convert(fields | address, event_type, builtin_types=(UUID,))
    except (KeyError, TypeError, ValueError):
        # ValueError covers msgspec's own errors and a version that is no number.
        return Undecodable(
            originator_id=originator_id, originator_version=originator_version, topic=topic, **_head(topic, state)
        )


def decode_entry(name: str, state: bytes, originator_id: UUID, originator_version: int) -> DomainEvent:
    """Return an event of which the class is known and not the version of its form: the newest form that it has is taken.

    Raises:
        EventUnreadableError: not even the head can be read.
    """
    event_type = _TYPES.get(name)
    event: DomainEvent | None = None
    for version in range(event_type.SCHEMA if event_type is not None else 1, 0, -1):
        event = decode(f"{name}/{version}", state, originator_id, originator_version)
        if not isinstance(event, Undecodable):
            break
    assert event is not None
    return event


def _head(topic: str, state: bytes) -> dict[str, Any]:
    try:
        return msgspec.structs.asdict(_HEAD.decode(state))
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise EventUnreadableError(f"a stored event of topic {topic!r} cannot be read") from error


def kind_of(topic: str) -> str:
    """Return the kind of resource that events of `topic` belong to; empty for a topic that today's code has not."""
    event_type = _TYPES.get(topic.partition("/")[0])
    return event_type.KIND if event_type is not None else ""
