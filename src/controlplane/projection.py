"""From the log to everything that is derived from it: one loop that all projections share.

A runner is one thread for one projection. It reads a page of events, lets the projection fold them in memory and write
each touched row once, and commits that together with the position, so a page is applied exactly once to tables. After
the commit, `after_commit` is called, at most once per page: what it does must be repairable by other means.
A session-level advisory lock makes sure that of all processes only one runs a projection; the others wait for the lock.

A projection that fails on an event sets that event's tenant aside (a row, a metric) and goes on with all others. Such a
tenant is taken up again by a rebuild. Whatever a projection writes must follow from the events alone: no clock, no serial
number, no unordered JSON; a rebuild gives the same tables byte for byte.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import psycopg
from eventsourcing.persistence import PersistenceError
from psycopg import sql
from psycopg_pool import ConnectionPool, PoolTimeout

from controlplane.domain.event import Undecodable
from controlplane.log import PAGE_EVENTS_MAX, EventLog, LoggedEvent

IDLE_SECONDS_MAX = 0.25
"""How long a runner that nobody wakes waits before it looks at the log again."""
STANDBY_SECONDS = 0.5
"""How often a process that does not hold a projection's lock tries to get it."""
FOLLOW_SECONDS = 0.01
FOLLOW_LOOKS_MAX = 20
"""How often and how many times a process without the lock looks, after a commit, whether the page has been applied."""
RETRY_SECONDS_MAX = 5.0
"""The longest wait after the database did not answer."""

_log = logging.getLogger(__name__)

Pool = ConnectionPool[psycopg.Connection[tuple[Any, ...]]]


class Projection(Protocol):
    """What derives something from the log."""

    name: str
    """Unique; the position is kept under it."""
    tables: Sequence[str]
    """The tables that this projection alone writes; a rebuild empties them."""

    def apply(self, cursor: psycopg.Cursor[Any], events: Sequence[LoggedEvent]) -> None:
        """Write what follows from `events`, in the transaction that `cursor` is in. Must not commit.

        It may be called again with the same events after a rollback, so it keeps nothing of them in memory.
        """

    def after_commit(self, events: Sequence[LoggedEvent]) -> None:
        """Do what may only happen once the page is durable, for example publish. Called on the runner's thread."""


class ProjectionRunner:
    """One projection, kept up to date by a thread."""

    def __init__(self, log: EventLog, pool: Pool, projection: Projection) -> None:
        self._log = log
        self._pool = pool
        self.projection = projection
        self.position = 0
        """The id up to which everything is applied, as far as this process knows."""
        self.quarantined: frozenset[str] = frozenset()
        self._woken = threading.Event()
        self._stopping = threading.Event()
        self._moved = threading.Condition()
        self._thread = threading.Thread(target=self._run, name=f"projection-{projection.name}", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self, timeout: float = 3.0) -> None:
        """Ask the thread to end after its page, and wait up to `timeout` seconds for it."""
        self._stopping.set()
        self._woken.set()
        if self._thread.is_alive():
            self._thread.join(timeout)

    def wake(self) -> None:
        """Look at the log now. Cheap, from any thread."""
        self._woken.set()

    def wait_for(self, position: int, timeout: float) -> bool:
        """Wait until everything up to `position` is applied; say whether that was so within `timeout` seconds."""
        with self._moved:
            return self._moved.wait_for(lambda: self.position >= position, timeout)

    def _run(self) -> None:
        failures = 0
        while not self._stopping.is_set():
            try:
                with self._pool.connection() as connection:
                    self._lead(connection)
                failures = 0
            except (psycopg.OperationalError, psycopg.InterfaceError, PersistenceError, PoolTimeout) as error:
                failures += 1
                _log.warning("projection %s waits: %s", self.projection.name, type(error).__name__)
                self._stopping.wait(min(0.1 * 2**failures, RETRY_SECONDS_MAX))

    def _lead(self, connection: psycopg.Connection[tuple[Any, ...]]) -> None:
        """Hold the lock and project until told to stop; without the lock, follow the one who has it."""
        before, connection.autocommit = connection.autocommit, True
        try:
            while not self._stopping.is_set() and not self._acquire(connection):
                self._follow(connection)
            self._advance(read_position(connection, self.projection.name))
            self.quarantined = read_quarantined(connection, self.projection.name)
            while not self._stopping.is_set():
                self._woken.clear()
                if not self.step(connection):
                    self._woken.wait(IDLE_SECONDS_MAX)
        finally:
            if not connection.closed:
                connection.execute("SELECT pg_advisory_unlock_all()")
                connection.autocommit = before

    def _follow(self, connection: psycopg.Connection[tuple[Any, ...]]) -> None:
        """See how far the one who has the lock comes, then wait for a commit or for the time to try the lock again."""
        self._woken.clear()
        latest = self._log.latest()
        for _ in range(FOLLOW_LOOKS_MAX):
            self._advance(read_position(connection, self.projection.name))
            if self.position >= latest or self._stopping.wait(FOLLOW_SECONDS):
                break
        self.quarantined = read_quarantined(connection, self.projection.name)
        self._woken.wait(STANDBY_SECONDS)

    def _acquire(self, connection: psycopg.Connection[tuple[Any, ...]]) -> bool:
        row = connection.execute(
            "SELECT pg_try_advisory_lock(hashtextextended(%s, 0))", [f"projection/{self.projection.name}"]
        ).fetchone()
        return row == (True,)

    def step(self, connection: psycopg.Connection[tuple[Any, ...]]) -> bool:
        """Apply one page; say whether there was one. The caller holds the projection's lock."""
        events = self._log.read(self.position, PAGE_EVENTS_MAX)
        if not events:
            return False
        wanted = [event for event in events if event.tenant not in self.quarantined]
        try:
            with connection.transaction(), connection.cursor() as cursor:
                if any(isinstance(event.event, Undecodable) for event in wanted):
                    raise _UndecodablePageError  # leaves the transaction; told apart tenant by tenant below
                self.projection.apply(cursor, wanted)
                write_position(cursor, self.projection.name, events[-1].id)
            applied: Sequence[LoggedEvent] = wanted
        except (psycopg.OperationalError, psycopg.InterfaceError):
            raise
        except Exception:  # noqa: BLE001 - whatever a projection raises concerns the tenant it was raised for
            applied = self._apply_by_tenant(connection, wanted, events[-1].id)
        self._advance(events[-1].id)
        if applied:
            self._after_commit(applied)
        return True

    def _after_commit(self, applied: Sequence[LoggedEvent]) -> None:
        try:
            self.projection.after_commit(applied)
        except Exception:  # noqa: BLE001 - logged with its traceback; see the next line
            # The page is durable, and what was missed here is repaired by whoever asks next; the loop must go on.
            _log.exception("projection %s could not act on a page", self.projection.name)

    def _apply_by_tenant(
        self, connection: psycopg.Connection[tuple[Any, ...]], events: Sequence[LoggedEvent], position: int
    ) -> list[LoggedEvent]:
        """Apply a page that failed as a whole: each tenant on its own, event by event, until one fails."""
        applied: list[LoggedEvent] = []
        failed: set[str] = set()
        with connection.transaction(), connection.cursor() as cursor:
            for event in events:
                if event.tenant in failed:
                    continue
                try:
                    if isinstance(event.event, Undecodable):
                        raise _UndecodablePageError
                    with connection.transaction():
                        self.projection.apply(cursor, [event])
                    applied.append(event)
                except (psycopg.OperationalError, psycopg.InterfaceError):
                    raise
                except Exception as error:  # noqa: BLE001 - the tenant is set aside, and that is recorded
                    failed.add(event.tenant)
                    self._quarantine(cursor, event, error)
            write_position(cursor, self.projection.name, position)
        self.quarantined = self.quarantined | failed
        return applied

    def _quarantine(self, cursor: psycopg.Cursor[Any], event: LoggedEvent, error: Exception) -> None:
        reason = "undecodable" if isinstance(error, _UndecodablePageError) else type(error).__name__
        _log.error(
            "projection %s sets tenant %s aside at event %d (%s): %s",
            self.projection.name,
            event.tenant,
            event.id,
            event.type,
            reason,
        )
        cursor.execute(
            "INSERT INTO projection_quarantines (projection, tenant, event_id, event_type, error, at)"
            " VALUES (%s, %s, %s, %s, %s, %s) ON CONFLICT DO NOTHING",
            [self.projection.name, event.tenant, event.id, event.type, reason, event.at],
        )

    def _advance(self, position: int) -> None:
        with self._moved:
            self.position = max(self.position, position)
            self._moved.notify_all()


class _UndecodablePageError(Exception):
    """The page holds an event that today's code cannot read."""


class LogListener:
    """Wakes runners when any process commits events. One thread and one connection."""

    def __init__(self, conninfo: Callable[[], str], channel: str, wake: Callable[[], None]) -> None:
        self._conninfo = conninfo
        self._channel = channel
        self._wake = wake
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="log-listener", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self, timeout: float = 2.0) -> None:
        """End the thread, waiting up to `timeout` seconds."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(timeout)

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                with psycopg.connect(self._conninfo(), autocommit=True) as connection:
                    connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(self._channel)))
                    self._wake()
                    while not self._stopping.is_set():
                        for _ in connection.notifies(timeout=0.5, stop_after=1):
                            self._wake()
            except (psycopg.OperationalError, psycopg.InterfaceError, OSError):
                self._stopping.wait(1.0)


def read_position(connection: psycopg.Connection[tuple[Any, ...]], projection: str) -> int:
    """Return how far a projection has committed, 0 before its first page."""
    row = connection.execute("SELECT position FROM projection_positions WHERE projection = %s", [projection]).fetchone()
    return int(row[0]) if row else 0


def write_position(cursor: psycopg.Cursor[Any], projection: str, position: int) -> None:
    """Record, in the page's own transaction, how far a projection has come."""
    cursor.execute(
        "INSERT INTO projection_positions (projection, position) VALUES (%s, %s)"
        " ON CONFLICT (projection) DO UPDATE SET position = excluded.position",
        [projection, position],
    )


def read_quarantined(connection: psycopg.Connection[tuple[Any, ...]], projection: str) -> frozenset[str]:
    """Return the tenants that a projection has set aside."""
    rows = connection.execute("SELECT tenant FROM projection_quarantines WHERE projection = %s", [projection])
    return frozenset(row[0] for row in rows)


def rebuild(log: EventLog, pool: Pool, projections: Iterable[Projection], *, lock_seconds_max: float = 10.0) -> None:
    """Empty the tables of `projections` and derive them again from the first event. Publishes nothing.

    Raises:
        TimeoutError: another process runs one of them; stop it first.
    """
    for projection in projections:
        runner = ProjectionRunner(log, pool, _Silent(projection))
        with pool.connection() as connection:
            before, connection.autocommit = connection.autocommit, True
            try:
                end = time.monotonic() + lock_seconds_max
                while not runner._acquire(connection):  # noqa: SLF001 - the same module
                    if time.monotonic() > end:
                        raise TimeoutError(f"another process runs the projection {projection.name}")
                    time.sleep(0.05)
                with connection.transaction(), connection.cursor() as cursor:
                    for table in projection.tables:
                        cursor.execute(sql.SQL("TRUNCATE {}").format(sql.Identifier(table)))
                    cursor.execute("DELETE FROM projection_positions WHERE projection = %s", [projection.name])
                    cursor.execute("DELETE FROM projection_quarantines WHERE projection = %s", [projection.name])
                while runner.step(connection):
                    pass
            finally:
                connection.execute("SELECT pg_advisory_unlock_all()")
                connection.autocommit = before


class _Silent:
    """A projection that writes its tables and does nothing else."""

    def __init__(self, projection: Projection) -> None:
        self.name = projection.name
        self.tables = projection.tables
        self.apply = projection.apply

    def after_commit(self, events: Sequence[LoggedEvent]) -> None:
        """Publish nothing: nobody needs to hear of old events again."""
