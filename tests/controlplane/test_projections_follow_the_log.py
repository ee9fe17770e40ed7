"""Projections: rebuilt to the same bytes, alone in their work, repaired after a crash, and stopped by nobody's bad event."""

import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import psycopg
import pytest
from msgspec import structs
from tests.controlplane.conftest import make_settings
from tests.controlplane.test_reports_become_status import status

from contracts import v2
from contracts.codes import Code
from controlplane import domain
from controlplane.access.roles import Principal, Role
from controlplane.app import make_pool, projections_of
from controlplane.audit.chain import AuditChain
from controlplane.commands import WriteOptions, WritePath, catalogue, connections, data_planes, pipelines
from controlplane.commands.reports import Reports
from controlplane.domain import (
    Aggregate,
    Connection,
    Context,
    DataPlaneModel,
    DomainEvent,
    Tenant,
    TenantCreated,
    Undecodable,
)
from controlplane.domain.aggregate import fold
from controlplane.domain.event import decode
from controlplane.domain.pipeline import PipelineSpec
from controlplane.log import EventLog, LoggedEvent
from controlplane.projection import LogListener, Projection, ProjectionRunner, rebuild
from controlplane.readmodels.resources import KINDS, Resources
from controlplane.refusals import Refused
from controlplane.schema import migrate
from controlplane.settings import Settings
from controlplane.store import EVENTS_TABLE, EventStore

OPTIONS = WriteOptions()


class Bench:
    """A store, a log and a write path on a database of their own; nothing is projected unless a test says so."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.pool = make_pool(settings.database)
        self.pool.open()
        self.store = EventStore(settings.database)
        migrate(self.pool, self.store)
        self.log = EventLog(self.store.recorder)
        self.runners: list[ProjectionRunner] = []
        self.write_path = WritePath(self.store, self.pool, lambda _: self.wake())
        self.reports = Reports(self.store, self.pool, self.write_path)

    def wake(self) -> None:
        for runner in self.runners:
            runner.wake()

    def projections(self) -> list[Projection]:
        return projections_of(self.settings, self.log, self.pool, self.reports)

    def run(self, projection: Projection) -> ProjectionRunner:
        runner = ProjectionRunner(self.log, self.pool, projection)
        self.runners.append(runner)
        runner.start()
        return runner

    def make_tenant(self, name: str) -> str:
        tenant = Tenant.named(name)
        events = tenant.create(Context("operator", self.write_path._clock()))
        self.store.save([fold(tenant, events)], events)
        self.wake()
        return tenant.tenant

    def put_connection(self, tenant: str, name: str = "shop", port: int = 5432) -> int:
        config = v2.PostgresConfig(host=f"{name}.internal", database=name, user="u", port=port)
        principal = Principal(tenant, Role.OWNER, "key:test")
        decide = connections.configure(name, "postgres", config, {"password": "file:p"}, OPTIONS)
        return self.write_path.run(principal, decide).revision

    def make_history(self, tenant: str) -> None:
        """Some of everything that can happen to a tenant's documents."""
        principal = Principal(tenant, Role.OWNER, "key:test")
        run = lambda decide: self.write_path.run(principal, decide)  # noqa: E731
        run(data_planes.create("local", DataPlaneModel.BYOC, OPTIONS))
        for name in ("shop", "warehouse", "spare"):
            self.put_connection(tenant, name)
        spec = PipelineSpec(
            data_plane="local",
            source=v2.PipelineSource(connection="shop", tables=["public.a", "public.b"]),
            sink=v2.PipelineSink(connection="warehouse"),
            buffer=v2.BufferSettings(),
            transforms=[v2.DropTransform(table="public.a", columns=["x"])],
        )
        run(pipelines.configure("orders", spec, OPTIONS))
        self.reports.report(tenant, "local", "node-1", [status(v2.Phase.SNAPSHOTTING)])
        run(pipelines.pause("orders", OPTIONS))
        self.reports.report(tenant, "local", "node-1", [status(v2.Phase.PAUSED, 2)])
        run(pipelines.resume("orders", OPTIONS))
        self.reports.report(tenant, "local", "node-1", [status(v2.Phase.GAP, 3, code=Code.GAP_SLOT_MISSING)])
        run(connections.delete("spare", OPTIONS))
        self.put_connection(tenant, "spare", 6000)
        run(pipelines.restart("orders", OPTIONS))
        run(pipelines.delete("orders", OPTIONS, cleanup=False))
        run(pipelines.configure("orders", spec, OPTIONS))

    def dump(self, *tables: str) -> dict[str, list[Any]]:
        """Every byte of some tables."""
        with self.pool.connection() as connected:
            return {
                table: connected.execute(f"SELECT t::text FROM {table} t ORDER BY 1").fetchall() for table in tables
            }

    def query(self, statement: str, *parameters: Any) -> list[Any]:
        with self.pool.connection() as connected:
            cursor = connected.execute(statement, parameters)
            return cursor.fetchall() if cursor.description else []

    def close(self) -> None:
        for runner in self.runners:
            runner.stop()
        self.pool.close()
        self.store.close()


@pytest.fixture
def bench(database: Any, folder: Path) -> Iterator[Bench]:
    made = Bench(make_settings(database.server, database.name, folder))
    yield made
    made.close()


def test_a_rebuild_from_the_first_event_gives_the_same_bytes(bench: Bench) -> None:
    """Whether events came one by one or in large pages, every projected table is equal, row for row."""
    tenants = [bench.make_tenant(name) for name in ("acme", "globex")]
    live = bench.projections()
    for projection in live:
        bench.run(projection)
    for tenant in tenants:
        bench.make_history(tenant)
    for runner in bench.runners:
        assert runner.wait_for(bench.log.latest(), 10)
        runner.stop()
    tables = [table for projection in live for table in projection.tables]
    before = bench.dump(*tables, "catalogue", "projection_positions")
    assert before["resources"]
    assert before["audit_entries"]
    rebuild(bench.log, bench.pool, live)
    catalogue.rebuild(bench.log, bench.pool)
    assert bench.dump(*tables, "catalogue", "projection_positions") == before


HISTORIES = sorted((Path(__file__).parent.parent / "histories").glob("*.json"))
"""Every kind of event that was ever written is in one of them; a test beside them says so."""


def _replayed(tenants: Sequence[str]) -> Iterator[tuple[Aggregate, DomainEvent]]:
    """Yield each recorded event, and the aggregate behind it; streams of one name go to different tenants."""
    taken: Counter[tuple[str, str]] = Counter()
    for path in HISTORIES:
        history = msgspec.json.decode(path.read_bytes())
        place = (history["kind"], history["name"])
        tenant, taken[place] = tenants[taken[place]], taken[place] + 1
        aggregate = KINDS[history["kind"]].new(tenant, history["name"])
        if history["kind"] == "Tenant":
            continue
        for number, each in enumerate(history["events"], start=1):
            event = structs.replace(decode(each["topic"], each["state"].encode(), aggregate.id, number), tenant=tenant)
            aggregate = aggregate.after(event)
            yield aggregate, event


def test_a_rebuild_over_every_kind_of_event_gives_the_same_bytes(bench: Bench) -> None:
    """All events that were ever recorded, projected one by one as they came, then at once from the first: no byte differs."""
    live = bench.projections()
    for projection in live:
        bench.run(projection)
    tenants = [bench.make_tenant(f"t{number}") for number in range(8)]
    seen: set[type[DomainEvent]] = {TenantCreated}
    for aggregate, event in _replayed(tenants):
        bench.store.save([aggregate], [event])
        bench.wake()
        seen.add(type(event))
    types = [each for each in vars(domain).values() if isinstance(each, type) and issubclass(each, DomainEvent)]
    assert [each.__name__ for each in types if each not in (DomainEvent, Undecodable, *seen)] == []
    for runner in bench.runners:
        assert runner.wait_for(bench.log.latest(), 20)
        runner.stop()
    tables = [table for projection in live for table in projection.tables]
    before = bench.dump(*tables, "projection_positions")
    assert bench.query("SELECT count(*) FROM projection_quarantines") == [(0,)]
    rebuild(bench.log, bench.pool, live)
    assert bench.dump(*tables, "projection_positions") == before
    assert [table for table in tables if not before[table]] == []


class Faulty:
    """A projection that counts events in its own table and fails on the events that a test names."""

    name = "faulty"
    tables: Sequence[str] = ("faulty",)

    def __init__(self, bench: Bench) -> None:
        bench.query("CREATE TABLE faulty (id bigint PRIMARY KEY, tenant text)")
        self.fail_on: set[str] = set()
        self.seen: list[int] = []

    def apply(self, cursor: psycopg.Cursor[Any], events: Sequence[LoggedEvent]) -> None:
        for event in events:
            cursor.execute("INSERT INTO faulty VALUES (%s, %s)", [event.id, event.tenant])
            if event.name in self.fail_on:
                raise KeyError("a bug of the projection")

    def after_commit(self, events: Sequence[LoggedEvent]) -> None:
        self.seen += [event.id for event in events]


def test_a_projection_that_fails_sets_one_tenant_aside_and_goes_on(bench: Bench) -> None:
    """The other tenants' events are applied, the failing one's from that event on are not, and it is on record."""
    projection = Faulty(bench)
    projection.fail_on = {"broken"}
    good, bad = bench.make_tenant("good"), bench.make_tenant("bad")
    bench.put_connection(bad, "fine")
    failed = bench.put_connection(bad, "broken")
    bench.put_connection(good, "one")
    runner = bench.run(projection)
    assert runner.wait_for(bench.log.latest(), 10)
    bench.put_connection(bad, "later")
    last = bench.put_connection(good, "two")
    assert runner.wait_for(last, 10)
    assert runner.quarantined == {bad}
    rows = bench.query("SELECT tenant, count(*) FROM faulty GROUP BY 1 ORDER BY 2 DESC")
    assert rows == [(good, 3), (bad, 2)]
    assert bench.query("SELECT projection, tenant, event_id, event_type, error FROM projection_quarantines") == [
        ("faulty", bad, failed, "ConnectionConfigured", "KeyError")
    ]
    runner.stop()
    projection.fail_on = set()
    rebuild(bench.log, bench.pool, [projection])
    assert bench.query("SELECT count(*) FROM faulty") == [(7,)]
    assert bench.query("SELECT count(*) FROM projection_quarantines") == [(0,)]


def test_an_event_that_cannot_be_read_sets_its_tenant_aside(bench: Bench) -> None:
    """An event of a newer version, or a damaged one, stops only the tenant that it belongs to."""
    good, bad = bench.make_tenant("good"), bench.make_tenant("bad")
    bench.put_connection(bad)
    bench.query(
        "UPDATE stored_events SET topic = 'ConnectionConfigured/9' WHERE originator_id = %s",
        Connection.address(bad, "shop"),
    )
    runner = bench.run(Resources())
    last = bench.put_connection(good)
    assert runner.wait_for(last, 10)
    assert bench.query("SELECT tenant, error FROM projection_quarantines") == [(bad, "undecodable")]
    assert bench.query("SELECT tenant FROM resources WHERE kind = 'Connection'") == [(good,)]


def test_a_decision_is_not_made_from_a_history_that_cannot_be_read(bench: Bench) -> None:
    """The write is refused, with a code of its own, and adds nothing."""
    tenant = bench.make_tenant("acme")
    bench.put_connection(tenant)
    bench.query("UPDATE stored_events SET topic = 'ConnectionConfigured/9' WHERE topic = 'ConnectionConfigured'")
    with pytest.raises(Refused) as refused:
        bench.put_connection(tenant, port=1)
    assert refused.value.code == "history_unreadable"
    assert bench.query("SELECT count(*) FROM stored_events") == [(2,)]


def test_a_crash_between_commit_and_projection_loses_nothing(bench: Bench) -> None:
    """What was committed while nothing projected is projected by whoever starts next, once."""
    tenant = bench.make_tenant("acme")
    first = bench.run(Resources())
    assert first.wait_for(bench.log.latest(), 10)
    first.stop()
    last = bench.put_connection(tenant)  # committed, and the process that should have projected it is gone
    second = bench.run(Resources())
    assert second.wait_for(last, 10)
    chain = bench.run(AuditChain())
    assert chain.wait_for(last, 10)
    assert bench.query("SELECT name FROM resources WHERE kind = 'Connection'") == [("shop",)]
    assert bench.query("SELECT count(*) FROM audit_entries") == [(2,)]


def test_a_page_and_its_position_commit_together(bench: Bench) -> None:
    """A connection that breaks in the middle of a page leaves neither rows nor position, and the page comes again."""
    projection = Faulty(bench)
    broken = threading.Event()
    apply = projection.apply

    def break_once(cursor: psycopg.Cursor[Any], events: Sequence[LoggedEvent]) -> None:
        apply(cursor, events)
        if not broken.is_set():
            broken.set()
            pid = cursor.connection.info.backend_pid
            bench.query("SELECT pg_terminate_backend(%s)", pid)
            cursor.execute("SELECT 1")

    projection.apply = break_once  # type: ignore[method-assign]
    bench.make_tenant("acme")
    runner = bench.run(projection)
    assert runner.wait_for(bench.log.latest(), 10)
    assert broken.is_set()
    assert bench.query("SELECT count(*) FROM faulty") == [(1,)]
    assert bench.query("SELECT count(*) FROM projection_quarantines") == [(0,)]


def test_only_one_process_runs_a_projection_and_another_takes_over(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second follows the position, woken by each commit, and goes on when the first has ended."""
    monkeypatch.setattr("controlplane.projection.STANDBY_SECONDS", 60.0)  # only a commit can wake it in time
    projection = Faulty(bench)
    first = bench.run(projection)
    tenant = bench.make_tenant("acme")
    assert first.wait_for(bench.log.latest(), 10)
    second = bench.run(projection)
    assert second.wait_for(bench.log.latest(), 10)
    last = bench.put_connection(tenant)
    assert second.wait_for(last, 10)
    end = time.monotonic() + 10
    while projection.seen != [1, last] and time.monotonic() < end:  # it is told of a page after the page is committed
        time.sleep(0.01)
    assert projection.seen == [1, last]
    first.stop()
    last = bench.put_connection(tenant, port=1)
    assert second.wait_for(last, 10)
    assert bench.query("SELECT count(*) FROM faulty") == [(3,)]


def test_what_follows_a_commit_may_fail_without_stopping_the_projection(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    """The page is durable; the failure is logged and the next page comes."""
    projection = Faulty(bench)

    def fail(_: Sequence[LoggedEvent]) -> None:
        raise ConnectionError("the hub is away")

    projection.after_commit = fail  # type: ignore[method-assign]
    runner = bench.run(projection)
    tenant = bench.make_tenant("acme")
    last = bench.put_connection(tenant)
    assert runner.wait_for(last, 10)
    assert bench.query("SELECT count(*) FROM faulty") == [(2,)]
    assert "could not act on a page" in caplog.text
    caplog.clear()


def test_a_commit_of_another_process_wakes_the_runners(bench: Bench) -> None:
    """The database notifies; nobody has to poll for it."""
    woken = threading.Event()
    listener = LogListener(bench.settings.database.conninfo, EVENTS_TABLE, woken.set)
    listener.start()
    assert woken.wait(10)  # it listens now
    woken.clear()
    bench.make_tenant("acme")
    assert woken.wait(10)
    listener.stop()


def test_a_rebuild_refuses_to_run_beside_a_control_plane(bench: Bench) -> None:
    """Both would write the same tables."""
    bench.run(Resources())
    bench.make_tenant("acme")
    assert bench.runners[0].wait_for(1, 10)
    with pytest.raises(TimeoutError, match="resources"):
        rebuild(bench.log, bench.pool, [Resources()], lock_seconds_max=0.2)
