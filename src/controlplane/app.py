"""The composition root: the only place that knows all rooms. It makes the parts, starts them in order, and stops them.

    stored events ─┬─ resources (what the API reads, and the timing of changes)
                   ├─ audit     (each tenant's chain)
                   └─ channel   (documents for nodes)

A commit in this process wakes all runners at once; a commit in another one does so through the database's notification.
The process starts while the hub is away, and waits for the database for as long as it takes.
"""

import asyncio
import logging
import threading
import time
from pathlib import Path

import psycopg
from eventsourcing.domain import datetime_now_with_tzinfo
from litestar.types import ASGIApp
from psycopg_pool import ConnectionPool

from controlplane import schema
from controlplane.access.secrets import SecretMaker
from controlplane.api.application import create_app
from controlplane.api.key_uses import KeyUses
from controlplane.api.services import THREADS_MAX, Services
from controlplane.audit.chain import AuditChain
from controlplane.channel import keys
from controlplane.channel.service import Channel
from controlplane.commands import WritePath, catalogue
from controlplane.commands.reports import Reports
from controlplane.log import EventLog
from controlplane.metrics import ChangeTimer, Metrics
from controlplane.projection import LogListener, Pool, Projection, ProjectionRunner, rebuild
from controlplane.readmodels.resources import Resources
from controlplane.row_security import DatabaseRole, role_name
from controlplane.settings import DatabaseSettings, Settings
from controlplane.store import (
    CHECKOUT_SECONDS_MAX,
    EVENTS_TABLE,
    RECONNECT_SECONDS_MAX,
    EventStore,
    check_if_idle,
)

API_CONNECTIONS_MAX = THREADS_MAX
WRITER_CONNECTIONS_MAX = 8
"""For what commands read. The store, which reads and writes the log, has as many of its own."""
PROJECTOR_CONNECTIONS_MAX = 12
"""One for each projection, the others for the channel."""
DATABASE_RETRY_SECONDS_MAX = 5.0
STOP_SECONDS_MAX = 3.0

_log = logging.getLogger(__name__)


def make_pool(
    settings: DatabaseSettings, role: DatabaseRole | None = None, *, connections_max: int = PROJECTOR_CONNECTIONS_MAX
) -> Pool:
    """Return a pool that is not open yet, whose connections act as `role`; None stands for the tables' owner."""
    acting = f" -c role={role_name(settings.name, role)}" if role is not None else ""
    return ConnectionPool(
        settings.conninfo(),
        kwargs={
            # Whoever writes, or reads for a tenant, opens a transaction; other reads are one statement and need none.
            "autocommit": True,
            "options": f"-c timezone=UTC -c application_name=pointsman-control-plane{acting}",
            "connect_timeout": 5,
        },
        min_size=1,
        max_size=connections_max,
        open=False,
        timeout=CHECKOUT_SECONDS_MAX,
        reconnect_timeout=RECONNECT_SECONDS_MAX,
        check=check_if_idle,
        name=role.value if role is not None else "owner",
        num_workers=1,
    )


class Database:
    """The control plane's database as each part reaches it: the store and a pool for every role."""

    def __init__(self, settings: DatabaseSettings) -> None:
        """Connect, create what is missing, and open what the parts need.

        Raises:
            controlplane.row_security.RightsMissingError: the user may not make the roles.
            psycopg.Error: the database refuses.
        """
        self.store = EventStore(settings, role_name(settings.name, DatabaseRole.WRITER))
        with make_pool(settings, connections_max=1) as owner:
            schema.migrate(owner, self.store)
        self.api = make_pool(settings, DatabaseRole.API, connections_max=API_CONNECTIONS_MAX)
        self.writer = make_pool(settings, DatabaseRole.WRITER, connections_max=WRITER_CONNECTIONS_MAX)
        self.projector = make_pool(settings, DatabaseRole.PROJECTOR)
        for pool in self._pools:
            pool.open()

    def close(self) -> None:
        """Close every connection."""
        for pool in self._pools:
            pool.close(timeout=1.0)
        self.store.close()

    @property
    def _pools(self) -> tuple[Pool, ...]:
        return self.api, self.writer, self.projector


def wait_for_database(settings: DatabaseSettings, stopping: threading.Event) -> bool:
    """Wait until the database takes a connection; False if `stopping` was set before."""
    wait = 0.1
    while not stopping.is_set():
        try:
            psycopg.connect(settings.conninfo(), connect_timeout=5).close()
        except (psycopg.OperationalError, OSError) as error:
            _log.warning("waiting for the database: %s", type(error).__name__)
            stopping.wait(wait)
            wait = min(wait * 2, DATABASE_RETRY_SECONDS_MAX)
        else:
            return True
    return False


class ControlPlane:
    """One control plane process, but for the HTTP server."""

    def __init__(self, settings: Settings) -> None:
        """Connect to the database, create missing tables and make all parts.

        Raises:
            OSError, ValueError: a key file cannot be read.
            controlplane.row_security.RightsMissingError: the database's user may not make the roles.
            psycopg.Error: the database refuses.
        """
        self.metrics = Metrics()
        self.database = Database(settings.database)
        self.store, projector = self.database.store, self.database.projector
        self.log = EventLog(self.store.recorder)
        self.write_path = WritePath(
            self.store,
            self.database.writer,
            self._committed,
            observe=lambda outcome: self.metrics.commands.labels(outcome).inc(),
        )
        self.reports = Reports(self.store, self.database.writer, self.write_path)
        self.channel = Channel(settings, self.log, projector, self.reports, registry=self.metrics.registry)
        timer = ChangeTimer(Resources(), self.metrics.change_to_applied.observe)
        self._resources = ProjectionRunner(self.log, projector, timer)
        self._audit = ProjectionRunner(self.log, projector, AuditChain())
        channel_runners = [ProjectionRunner(self.log, projector, each) for each in self.channel.projections()]
        # The channel first: it is woken first, and a change should reach its node before anybody reads about it.
        self.runners = [*channel_runners, self._resources, self._audit]
        self._listener = LogListener(settings.database.conninfo, EVENTS_TABLE, self.wake)
        folder = Path(settings.keys_folder)
        self.services = Services(
            pool=self.database.api,
            write_path=self.write_path,
            load=self.store.load,
            secrets=SecretMaker.from_file(folder / "master.key"),
            accounts=self.channel.accounts,
            checkpoint_key=keys.read(folder).signing,
            certificates=self.channel.certificates,
            certificates_required=settings.hub.leaf_certificates,
            renew=self.channel.renewals.renew,
            hub_leaf_url=settings.hub.leaf_url,
            operator_key_sha256=settings.operator_key_sha256,
            resources=self._resources,
            audit=self._audit,
            runners=lambda: self.runners,
            latest=self.log.latest,
            ask=self.channel.ask,
            channel_ready=lambda: self.channel.ready,
            channel_notes=self.channel.notes,
            metrics=self.metrics,
            key_uses=KeyUses(self.database.writer),
            clock=datetime_now_with_tzinfo,
        )
        self.asgi: ASGIApp = create_app(self.services)

    async def start(self) -> None:
        """Start projecting and, if the hub is there, talking to nodes. Waits for neither."""
        for runner in self.runners:
            runner.start()
        self._listener.start()
        await self.channel.start()

    async def stop(self) -> None:
        """Stop in reverse. What was committed and not yet projected is projected by the next process."""
        await self.channel.stop()
        await asyncio.get_running_loop().run_in_executor(None, self._stop_threads)

    def wake(self) -> None:
        """Let every runner look at the log."""
        for runner in self.runners:
            runner.wake()

    def _committed(self, revision: int) -> None:
        self.wake()

    def _stop_threads(self) -> None:
        self.services.close()
        end = time.monotonic() + STOP_SECONDS_MAX
        threads: list[ProjectionRunner | LogListener] = [*self.runners, self._listener]
        for each in threads:
            each.stop(timeout=0)
        for each in threads:
            each.stop(timeout=max(0.0, end - time.monotonic()))
        self.database.close()


def projections_of(settings: Settings, log: EventLog, pool: Pool, reports: Reports) -> list[Projection]:
    """Return every projection, for a rebuild."""
    return [Resources(), AuditChain(), *Channel(settings, log, pool, reports).projections()]


def rebuild_everything(settings: Settings) -> int:
    """Derive every table that follows from the log again, and return the id of the last event.

    Raises:
        TimeoutError: a control plane is running; stop it first.
        psycopg.Error: the database refuses.
    """
    database = Database(settings.database)
    try:
        log, pool = EventLog(database.store.recorder), database.projector
        writes = WritePath(database.store, database.writer, lambda revision: None)
        reports = Reports(database.store, database.writer, writes)
        rebuild(log, pool, projections_of(settings, log, pool, reports))
        catalogue.rebuild(log, pool)
        return log.latest()
    finally:
        database.close()
