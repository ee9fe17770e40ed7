"""The event store: aggregates come out, their new events go in, and with them all that must commit at the same moment.

Built on the recorders of `eventsourcing` for PostgreSQL. A save locks the events table for the length of one round trip,
so everything slow (validation, hashing, reading) happens before. The library is synchronous: callers are threads.
Its database functions stay off: without the table's lock, ids become visible out of order and projections skip events.
"""

import time
from collections.abc import Sequence
from typing import Any, TypeVar
from uuid import UUID
from weakref import WeakKeyDictionary

import msgspec
import psycopg
from eventsourcing.persistence import (
    EventStore as LibraryStore,
)
from eventsourcing.persistence import (
    IntegrityError,
    InterfaceError,
    JSONTranscoder,
    Mapper,
    OperationalError,
    StoredEvent,
)
from eventsourcing.postgres import PostgresAggregateRecorder, PostgresApplicationRecorder, PostgresDatastore
from eventsourcing.utils import retry
from psycopg import sql
from psycopg_pool import ConnectionPool

from controlplane import commit_rows
from controlplane.commit_rows import CatalogueChange, Guard, IdempotencyRecord, PersonalData
from controlplane.domain import Aggregate, DomainEvent
from controlplane.domain.aggregate import fold
from controlplane.domain.event import decode, encode, topic_of
from controlplane.row_security import set_local
from controlplane.settings import DatabaseSettings

EVENTS_TABLE = "stored_events"
"""Also the name of the channel that PostgreSQL notifies at each commit of events."""
SNAPSHOTS_TABLE = "snapshots"
LOCK_SECONDS_MAX = 5
CONNECTIONS_MAX = 8
CHECKOUT_SECONDS_MAX = 2.0
"""How long a caller waits for a connection; the API then says that the database does not answer."""
RECONNECT_SECONDS_MAX = 2.0
"""How long a pool goes on trying for one connection. Its pauses double, so a longer trial would miss the database's return."""
CHECK_AFTER_SECONDS = 1.0
SAVE_ATTEMPTS_MAX = 2
SNAPSHOT_EVERY_EVENTS = 100

SomeAggregate = TypeVar("SomeAggregate", bound=Aggregate)


class ConflictError(Exception):
    """Somebody else saved first: load again and decide again."""


class IdempotencyConflictError(Exception):
    """A request with the same Idempotency-Key committed first."""


class EventStore:
    """Loads and saves aggregates. Open it with `open`; it holds at most CONNECTIONS_MAX connections.

    They act as the database's role `role`; None stands for the tables' owner.
    """

    def __init__(self, settings: DatabaseSettings, role: str | None = None) -> None:
        self._settings = settings
        self._datastore = _Datastore(settings, role)
        self.recorder: _Recorder

    def create_tables(self) -> None:
        """Create the library's tables where they are missing, as their owner.

        Raises:
            OperationalError: the database does not answer.
        """
        owner = _Datastore(self._settings, None)
        try:
            _Recorder(owner, events_table_name=EVENTS_TABLE).create_table()
            _SnapshotRecorder(owner, events_table_name=SNAPSHOTS_TABLE).create_table()
        finally:
            owner.close()

    def open(self) -> None:
        """Connect. The tables are there.

        Raises:
            OperationalError: the database does not answer.
        """
        self.recorder = _Recorder(self._datastore, events_table_name=EVENTS_TABLE)
        self._snapshots = _SnapshotRecorder(self._datastore, events_table_name=SNAPSHOTS_TABLE)
        self._events: LibraryStore[UUID] = LibraryStore(_Mapper(JSONTranscoder()), self.recorder)

    def close(self) -> None:
        """Close every connection."""
        self._datastore.close()

    def load(self, fresh: SomeAggregate) -> SomeAggregate:
        """Return the aggregate of `fresh`'s address as its events made it; `fresh` itself if it has none.

        Raises:
            HistoryUnreadableError: an event of the stream cannot be read.
        """
        # A short stream is one query; only a long one has a snapshot to look for.
        events: Any = list(self._events.get(fresh.id, limit=SNAPSHOT_EVERY_EVENTS + 1))
        if len(events) <= SNAPSHOT_EVERY_EVENTS:
            return fold(fresh, events)
        start = self._snapshot(fresh)
        rest: Any = self._events.get(fresh.id, gt=start.version or None)
        return fold(start, rest)

    def load_last(self, fresh: Sequence[SomeAggregate]) -> list[SomeAggregate]:
        """Return aggregates as their last event alone makes them, in one query: for those whose events are whole states."""
        by_id = {aggregate.id: aggregate for aggregate in fresh}
        with self._datastore.cursor() as cursor:
            cursor.execute(
                "SELECT DISTINCT ON (originator_id) originator_id, originator_version, topic, state FROM stored_events"
                " WHERE originator_id = ANY(%s) ORDER BY originator_id, originator_version DESC",
                [list(by_id)],
            )
            for row in cursor.fetchall():
                address = row["originator_id"]
                event = decode(row["topic"], bytes(row["state"]), address, row["originator_version"])
                by_id[address] = by_id[address].after(event)
        return [by_id[aggregate.id] for aggregate in fresh]

    def revision_of(self, aggregate_id: UUID) -> int:
        """Return the id of the newest event of a stream, 0 if it has none."""
        with self._datastore.cursor() as cursor:
            cursor.execute(
                "SELECT coalesce(max(notification_id), 0) AS revision FROM stored_events WHERE originator_id = %s",
                [aggregate_id],
            )
            row = cursor.fetchone()
            return int(row["revision"]) if row else 0

    def save(
        self,
        aggregates: Sequence[Aggregate],
        events: Sequence[DomainEvent],
        *,
        tenant: str = "",
        guard: Guard | None = None,
        catalogue: Sequence[CatalogueChange] = (),
        idempotency: IdempotencyRecord | None = None,
        person: PersonalData | None = None,
    ) -> int:
        """Commit events with all that belongs to them, and return the id of the last one (0 without events).

        `aggregates` are the states after the events. `tenant` is who the write is for: guard, catalogue and idempotency record
        of any other are refused by the database.

        Raises:
            ConflictError: another command committed to one of the streams or, under a guard, to the catalogue.
            IdempotencyConflictError: the same Idempotency-Key was committed by another request.
        """
        try:
            recorded = self._events.put(
                list(events),
                tenant=tenant,
                guard=guard,
                catalogue=catalogue,
                idempotency=idempotency,
                person=person,
            )
        except IntegrityError as error:
            cause = error.__cause__
            table = cause.diag.table_name if isinstance(cause, psycopg.Error) else None
            if table == "idempotency_records":
                raise IdempotencyConflictError from error
            raise ConflictError from error
        for aggregate in aggregates:
            added = sum(event.originator_id == aggregate.id for event in events)
            if aggregate.version // SNAPSHOT_EVERY_EVENTS > (aggregate.version - added) // SNAPSHOT_EVERY_EVENTS:
                self._take_snapshot(aggregate)
        return recorded[-1].notification.id if recorded else 0

    def _snapshot(self, fresh: SomeAggregate) -> SomeAggregate:
        for stored in self._snapshots.select_events(fresh.id, desc=True, limit=1):
            if stored.topic == _snapshot_topic(fresh):
                return msgspec.json.decode(stored.state, type=type(fresh))
        return fresh

    def _take_snapshot(self, aggregate: Aggregate) -> None:
        stored = StoredEvent(
            aggregate.id, aggregate.version, _snapshot_topic(aggregate), msgspec.json.encode(aggregate)
        )
        try:
            self._snapshots.insert_events([stored])
        except IntegrityError:
            return  # another process took the same one


def _snapshot_topic(aggregate: Aggregate) -> str:
    return f"{type(aggregate).__name__}/{aggregate.SNAPSHOT_SCHEMA}"


def _once(method: Any) -> Any:
    """Return a method of the library without the retries that it is wrapped in."""
    return method.__wrapped__


def check_if_idle(connection: psycopg.Connection[Any]) -> None:
    """Find out whether a pooled connection still lives, unless it was given out a moment ago.

    Raises:
        psycopg.OperationalError: it does not; the pool then makes another one.
    """
    now = time.monotonic()
    if now - _GIVEN_OUT.get(connection, 0.0) > CHECK_AFTER_SECONDS:
        ConnectionPool.check_connection(connection)
    _GIVEN_OUT[connection] = now


_GIVEN_OUT: "WeakKeyDictionary[psycopg.Connection[Any], float]" = WeakKeyDictionary()


class _Datastore(PostgresDatastore):
    """The library's datastore, with a pool that recovers soon and checks only connections that were idle."""

    def __init__(self, settings: DatabaseSettings, role: str | None) -> None:
        super().__init__(
            settings.name,
            settings.host,
            settings.port,
            settings.user,
            settings.password(),
            pool_size=1,
            max_overflow=CONNECTIONS_MAX - 1,
            lock_timeout=LOCK_SECONDS_MAX,
            # The library waits for a full pool before every use when this is set: under load that never comes, and the
            # pool is closed.
            pool_open_timeout=None,
            connect_timeout=5.0,
        )
        if role is not None:
            assert isinstance(self.pool.kwargs, dict)
            self.pool.kwargs["options"] = f"-c role={role}"
        self.pool.reconnect_timeout = RECONNECT_SECONDS_MAX
        self.pool._check = check_if_idle  # noqa: SLF001 - the library passes no check through but its own


class _Mapper(Mapper[UUID]):
    """Between our frozen events and the library's stored ones."""

    def to_stored_event(self, domain_event: Any) -> StoredEvent:
        return StoredEvent(
            originator_id=domain_event.originator_id,
            originator_version=domain_event.originator_version,
            topic=topic_of(type(domain_event)),
            state=encode(domain_event),
        )

    def to_domain_event(self, stored_event: StoredEvent) -> Any:
        originator_id = stored_event.originator_id
        if not isinstance(originator_id, UUID):
            raise TypeError("streams are addressed by UUID")
        return decode(stored_event.topic, stored_event.state, originator_id, stored_event.originator_version)


class _SnapshotRecorder(PostgresAggregateRecorder):
    """The library's recorder for snapshots."""

    select_events = _once(PostgresAggregateRecorder.select_events)


class _Recorder(PostgresApplicationRecorder):
    """The library's recorder, with our rows in the same transaction as the events."""

    # The library repeats a read ten times while the database is away. Our callers have bounds of their own: a request is
    # answered, a runner backs off.
    select_events = _once(PostgresApplicationRecorder.select_events)
    select_notifications = _once(PostgresApplicationRecorder.select_notifications)
    max_notification_id = _once(PostgresApplicationRecorder.max_notification_id)

    def __init__(self, datastore: PostgresDatastore, *, events_table_name: str) -> None:
        super().__init__(datastore, events_table_name=events_table_name)
        # The library would also create its insert function, which never runs here.
        del self.sql_create_statements[self.create_insert_function_statement_index]
        self._lock_and_notify = sql.SQL(
            "SET LOCAL lock_timeout = {timeout}; LOCK TABLE {schema}.{table} IN EXCLUSIVE MODE; NOTIFY {channel}"
        ).format(
            timeout=sql.Literal(f"{LOCK_SECONDS_MAX}s"),
            schema=sql.Identifier(datastore.schema),
            table=sql.Identifier(events_table_name),
            channel=sql.Identifier(self.channel_name),
        )

    @retry((InterfaceError, OperationalError), max_attempts=SAVE_ATTEMPTS_MAX, wait=0.1)
    def insert_events(self, stored_events: Sequence[StoredEvent], **kwargs: Any) -> Sequence[int] | None:
        """Insert everything in one transaction; the events' table is locked from its last but two round trips on.

        The library would use psycopg's pipeline. An error in there leaves statements that the client believes prepared
        and the server does not know, and the connection fails from then on.
        """
        ids: Sequence[int] = []
        with self.datastore.get_connection() as connection, connection.transaction(), connection.cursor() as cursor:
            self._insert_before(cursor, **kwargs)
            if stored_events:
                self._insert_stored_events(cursor, stored_events)
                ids = self._fetch_ids_after_insert_events(cursor, stored_events) or []
            self._insert_after(cursor, ids, **kwargs)
        return ids

    def _lock_table(self, curs: psycopg.Cursor[Any]) -> None:
        """Lock, and say that something comes, in one round trip."""
        curs.execute(self._lock_and_notify, prepare=False)

    def _notify_channel(self, curs: psycopg.Cursor[Any]) -> None:
        """Done by `_lock_table`."""

    def _insert_before(
        self,
        cursor: psycopg.Cursor[Any],
        *,
        tenant: str = "",
        guard: Guard | None = None,
        catalogue: Sequence[CatalogueChange] = (),
        idempotency: IdempotencyRecord | None = None,
        person: PersonalData | None = None,
    ) -> None:
        if tenant and (guard is not None or catalogue or idempotency is not None or person is not None):
            cursor.execute(set_local("tenant", tenant), prepare=False)
        if guard is not None:
            commit_rows.raise_guard(cursor, guard)
        if person is not None:
            commit_rows.write_person(cursor, person)
        for change in catalogue:
            commit_rows.change_catalogue(cursor, change)

    def _insert_after(
        self,
        cursor: psycopg.Cursor[Any],
        ids: Sequence[int],
        *,
        idempotency: IdempotencyRecord | None = None,
        **_: Any,
    ) -> None:
        if idempotency is not None:
            commit_rows.write_idempotency(cursor, idempotency, revision=ids[-1] if ids else None)
