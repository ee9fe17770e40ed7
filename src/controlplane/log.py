"""The log: every event of every tenant, in the one order in which they were committed.

Projections read it in pages, from the position where they stand. Only the write path's store adds to it.
"""

from datetime import datetime
from uuid import UUID

from eventsourcing.postgres import PostgresApplicationRecorder
from msgspec import Struct

from controlplane.domain.event import DomainEvent, decode, kind_of

PAGE_EVENTS_MAX = 1000


class LoggedEvent(Struct, frozen=True):
    """An event with its place in the log. Ids only grow, and may skip numbers."""

    id: int
    at: datetime
    tenant: str
    kind: str
    name: str
    aggregate_id: UUID
    version: int
    type: str
    """The name of the event's class: `PipelineConfigured`."""
    event: DomainEvent
    """`Undecodable` if today's code cannot read it; the runner keeps those from projections."""
    payload: bytes
    """The event as it is stored: deterministic JSON."""


class EventLog:
    """Reads what the store has committed. Used from threads."""

    def __init__(self, recorder: PostgresApplicationRecorder) -> None:
        self._recorder = recorder

    def read(self, after: int, limit: int = PAGE_EVENTS_MAX) -> list[LoggedEvent]:
        """Return the events whose ids are above `after`, in order, at most `limit`.

        Raises:
            EventUnreadableError: an event has not even a readable head.
            eventsourcing.persistence.OperationalError: the database does not answer.
        """
        events = []
        for row in self._recorder.select_notifications(after, limit, inclusive_of_start=False):
            if not isinstance(row.originator_id, UUID):
                raise TypeError("streams are addressed by UUID")
            event = decode(row.topic, row.state, row.originator_id, row.originator_version)
            logged = LoggedEvent(
                id=row.id,
                at=event.at,
                tenant=event.tenant,
                kind=kind_of(row.topic),
                name=event.name,
                aggregate_id=row.originator_id,
                version=row.originator_version,
                type=row.topic.partition("/")[0],
                event=event,
                payload=row.state,
            )
            events.append(logged)
        return events

    def latest(self) -> int:
        """Return the id of the newest event, 0 if there is none."""
        return self._recorder.max_notification_id() or 0
