"""What all aggregates share: an immutable state that events move forward, one by one.

An aggregate is asked to decide and answers with events; it never changes in place and does no I/O. The name of a
deleted resource may be used again: its stream goes on, so an aggregate also exists before its first event, at version 0.
"""

from collections.abc import Iterable
from datetime import datetime
from typing import Any, ClassVar, TypeVar
from uuid import UUID

from msgspec import Struct, structs

from contracts.names import resource_id
from controlplane.domain.event import DomainEvent, Undecodable

SelfAggregate = TypeVar("SelfAggregate", bound="Aggregate")
SomeEvent = TypeVar("SomeEvent", bound=DomainEvent)


class HistoryUnreadableError(Exception):
    """A stream holds an event that today's code cannot read."""


class Context(Struct, frozen=True):
    """Who asks, and when."""

    actor: str
    at: datetime


class Aggregate(Struct, frozen=True, kw_only=True):
    """The state of one resource. `version` counts its events."""

    KIND: ClassVar[str] = ""
    SNAPSHOT_SCHEMA: ClassVar[int] = 1
    """Raise it when the state's form changes: snapshots of another form are passed over."""

    id: UUID
    version: int = 0
    tenant: str
    name: str
    created_at: datetime | None = None
    """When it came to exist, the last time that it did."""
    updated_at: datetime | None = None

    @property
    def exists(self) -> bool:
        """Say whether the resource exists now: created and not deleted."""
        raise NotImplementedError

    @classmethod
    def new(cls: type[SelfAggregate], tenant: str, name: str) -> SelfAggregate:
        """Return the aggregate as it is before its first event."""
        return cls(id=cls.address(tenant, name), tenant=tenant, name=name)

    @classmethod
    def address(cls, tenant: str, name: str) -> UUID:
        """Return the id of the event stream of a tenant's resource."""
        return resource_id(tenant, cls.KIND, name)

    def event(self, event_type: type[SomeEvent], context: Context, **fields: Any) -> SomeEvent:
        """Return the next event of this aggregate."""
        return event_type(
            originator_id=self.id,
            originator_version=self.version + 1,
            at=context.at,
            tenant=self.tenant,
            name=self.name,
            actor=context.actor,
            **fields,
        )

    def applied(self: SelfAggregate, event: DomainEvent) -> SelfAggregate:
        """Return what `event` changes of this aggregate's own fields. Each aggregate says how; the rest is `after`'s."""
        raise NotImplementedError

    def after(self: SelfAggregate, event: DomainEvent) -> SelfAggregate:
        """Return the state that follows `event`.

        Raises:
            HistoryUnreadableError: today's code cannot read the event, so no decision may be made from what follows.
        """
        if isinstance(event, Undecodable):
            raise HistoryUnreadableError(f"{self.KIND} {self.id} has an event that this version cannot read")
        changed = self.applied(event)
        created_at = self.created_at if self.exists else event.at
        return structs.replace(changed, version=event.originator_version, created_at=created_at, updated_at=event.at)


def fold(aggregate: SelfAggregate, events: Iterable[DomainEvent]) -> SelfAggregate:
    """Return the state that follows `events`."""
    for event in events:
        aggregate = aggregate.after(event)
    return aggregate
