"""Both ends of the channel on real servers: PostgreSQL, a hub, a leaf, and in the test's own process a channel and links."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg_pool import ConnectionPool
from tests.channel.servers import Hub, Leaf, node_config, until

from contracts import v2
from contracts.keys import KeyPair, Role
from controlplane.access.roles import Principal
from controlplane.access.roles import Role as AccessRole
from controlplane.channel.service import Channel
from controlplane.commands import WriteOptions, WritePath, connections, pipelines
from controlplane.commands.reports import Reports
from controlplane.domain import Context, DataPlane, DataPlaneModel, Node, Tenant
from controlplane.domain.aggregate import fold
from controlplane.domain.pipeline import PipelineSpec
from controlplane.log import EventLog
from controlplane.projection import ProjectionRunner
from controlplane.schema import migrate
from controlplane.settings import DatabaseSettings, HubSettings, Settings
from controlplane.store import EventStore
from dataplane.config import NodeConfig
from dataplane.link.link import Link
from dataplane.link.store import DocumentStore

OPTIONS = WriteOptions()


class ControlPlane:
    """A control plane without its API: event store, commands, and the channel with its projection."""

    def __init__(self, database: Any, hub: Hub) -> None:
        self.hub = hub
        self.settings = Settings(
            database=DatabaseSettings(host=database.host, port=database.port, name=database.name, user=database.user),
            hub=HubSettings(url=hub.url, leaf_url=hub.leaf_url, leaf_certificates=hub.certificates),
            keys_folder=str(hub.keys_folder),
            operator_key_sha256="0" * 64,
        )
        self.pool: Any = ConnectionPool(database.conninfo, min_size=1, max_size=8, open=True)
        self.store = EventStore(self.settings.database)
        migrate(self.pool, self.store)
        self.log = EventLog(self.store.recorder)
        self.statuses: list[tuple[str, str, v2.PipelineStatus]] = []
        self.runners: list[ProjectionRunner] = []
        self.write_path = WritePath(self.store, self.pool, lambda _: self.wake())
        self._reports = Reports(self.store, self.pool, self.write_path)
        self._lock = threading.Lock()
        self.channel: Channel
        self.tenant = self._create_tenant("acme")

    def wake(self) -> None:
        for runner in self.runners:
            runner.wake()

    def report(self, tenant: str, data_plane: str, node: str, statuses: Any) -> None:
        """The status command of the control plane, and a list of everything that reached it."""
        with self._lock:
            self.statuses += [(data_plane, node, status) for status in statuses]
        self._reports.report(tenant, data_plane, node, statuses)

    async def start(self) -> None:
        self.channel = Channel(self.settings, self.log, self.pool, self)
        self.runners = [ProjectionRunner(self.log, self.pool, each) for each in self.channel.projections()]
        for runner in self.runners:
            runner.start()
        await self.channel.start()
        await until(lambda: self.channel.ready)
        assert await asyncio.to_thread(self.runners[0].wait_for, self.log.latest(), 10)

    async def stop(self) -> None:
        for runner in self.runners:
            await asyncio.to_thread(runner.stop)
        self.runners = []
        await self.channel.stop()

    def close(self) -> None:
        self.store.close()
        self.pool.close()

    # ---- Writes -----------------------------------------------------------------------------------------------------

    def _append(self, fresh: Any, decide: Callable[[Any, Context], Any]) -> None:
        before = self.store.load(fresh)
        events = decide(before, Context("operator", datetime.now(UTC)))
        self.store.save([fold(before, events)], events)
        self.wake()

    def _create_tenant(self, name: str) -> str:
        fresh = Tenant.named(name)
        self._append(fresh, lambda tenant, context: tenant.create(context))
        return fresh.tenant

    async def projected(self, revision: int) -> None:
        """Wait until the channel's documents reflect an event."""
        assert await asyncio.to_thread(self.runners[0].wait_for, revision, 10)

    def create_tenant(self, name: str) -> str:
        return self._create_tenant(name)

    def run(self, decide: Any, tenant: str | None = None) -> int:
        return self.write_path.run(Principal(tenant or self.tenant, AccessRole.OWNER, "key:test"), decide).revision

    def create_plane(self, name: str = "local", tenant: str | None = None) -> None:
        from controlplane.commands import data_planes

        self.run(data_planes.create(name, DataPlaneModel.SELF_MANAGED, OPTIONS), tenant)

    def enrol_leaf(self, key: str, name: str = "local", tenant: str | None = None) -> str:
        tenant = tenant or self.tenant
        fresh = DataPlane.new(tenant, name)
        self._append(fresh, lambda plane, context: plane.redeem(context, "hash", "node-x", key))
        return self.channel.accounts.leaf_credentials(tenant, name, key)

    def enrol_node(
        self, node: str, key: str, name: str = "local", contract: int = 2, tenant: str | None = None
    ) -> None:
        fresh = Node.new(tenant or self.tenant, node)
        self._append(fresh, lambda state, context: state.enrol(context, data_plane=name, key=key, contract=contract))

    def revoke_node(self, node: str) -> None:
        self._append(Node.new(self.tenant, node), lambda state, context: state.revoke(context))

    def put_connection(self, name: str, **config: Any) -> int:
        fields = {"host": f"{name}.internal", "database": name, "user": "pointsman", **config}
        decide = connections.configure(
            name, "postgres", v2.PostgresConfig(**fields), {"password": f"file:{name}_password"}, OPTIONS
        )
        return self.run(decide)

    def put_pipeline(self, name: str, tables: list[str] | None = None, **changes: Any) -> int:
        spec = PipelineSpec(
            data_plane=changes.get("data_plane", "local"),
            source=v2.PipelineSource(connection=changes.get("source", "shop"), tables=tables or [f"public.{name}"]),
            sink=v2.PipelineSink(connection=changes.get("sink", "warehouse")),
            buffer=changes.get("buffer", v2.BufferSettings()),
            transforms=changes.get("transforms", []),
        )
        return self.run(pipelines.configure(name, spec, OPTIONS))

    def pause(self, name: str) -> int:
        return self.run(pipelines.pause(name, OPTIONS))

    def delete_pipeline(self, name: str) -> int:
        return self.run(pipelines.delete(name, OPTIONS, cleanup=False))

    def rows(self, sql: str, *parameters: Any) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.settings.database.conninfo(), autocommit=True) as connection:
            return connection.execute(sql, parameters or None).fetchall()  # type: ignore[arg-type]

    async def start_leaf(self, folder: Path, *, name: str = "local", tenant: str | None = None) -> Leaf:
        leaf = Leaf(folder, self.hub.leaf_url, data_plane=name, credentials=None)
        leaf.write_credentials(self.enrol_leaf(leaf.key.public, name, tenant))
        if self.hub.certificates:
            leaf.write_certificate(self.certify(leaf, name, tenant), self.authorities())
        leaf.start()
        return leaf

    def certify(self, leaf: Leaf, name: str = "local", tenant: str | None = None) -> str:
        """A certificate for a leaf, as enrolment gives it."""
        certificates = self.channel.certificates
        given = certificates.for_leaf(tenant or self.tenant, name, leaf.key.public, *leaf.ask_for_certificate())
        assert given is not None
        return given

    def authorities(self) -> str:
        """The authorities by which a leaf knows the hub."""
        return (self.hub.keys_folder / "ca.pem").read_text()


class TestNode:
    """A node's link and store in the test's process, restarted at will."""

    __test__ = False

    def __init__(self, folder: Path, config: NodeConfig) -> None:
        self.folder = folder
        self.config = config
        self.statuses: list[v2.PipelineStatus] = []
        self.started_at = datetime.now(UTC)
        self.link: Link
        self.store: DocumentStore

    @property
    def key(self) -> KeyPair:
        return KeyPair(Path(self.config.seed_file).read_text())

    def heartbeat(self) -> v2.Heartbeat:
        return v2.Heartbeat(
            at=datetime.now(UTC),
            started_at=self.started_at,
            agent_version="0.1.0",
            contract=self.config.contract_max,
            index_digest=self.store.index_digest,
            pipelines=self.statuses,
            telemetry=[v2.PipelineTelemetry(pipeline=each.pipeline, rows_total=7) for each in self.statuses],
        )

    async def start(self) -> None:
        self.store = DocumentStore(self.folder / "documents")
        self.link = Link(self.config, self.store, self.folder / "link")
        self.link.heartbeat_source = self.heartbeat
        await self.link.start()

    async def stop(self) -> None:
        await self.link.stop()

    def status(self, pipeline: str, generation: int, phase: v2.Phase = v2.Phase.STREAMING) -> v2.PipelineStatus:
        return v2.PipelineStatus(
            pipeline=pipeline, epoch=1, observed_generation=generation, phase=phase, since=datetime.now(UTC)
        )

    def generations(self) -> dict[str, int]:
        return {name: stored.document.generation for name, stored in self.store.pipelines().items()}


@pytest.fixture
def hub(folder: Path) -> Iterator[Hub]:
    """A running hub with fresh keys."""
    server = Hub(folder)
    server.start()
    yield server
    server.kill()


@pytest.fixture
async def control(database: Any, hub: Hub) -> AsyncIterator[ControlPlane]:
    """A started control plane with one tenant, one data plane and two connections."""
    async with started(database, hub) as made:
        yield made


@asynccontextmanager
async def started(database: Any, hub: Hub) -> AsyncIterator[ControlPlane]:
    """Start a control plane with one tenant, one data plane and two connections."""
    made = ControlPlane(database, hub)
    await made.start()
    made.create_plane()
    made.put_connection("shop")
    made.put_connection("warehouse")
    yield made
    await made.stop()
    made.close()


@pytest.fixture
async def leaf(control: ControlPlane, folder: Path) -> AsyncIterator[Leaf]:
    """The leaf of the data plane `local`, linked to the hub."""
    server = await control.start_leaf(folder / "leaf")
    yield server
    server.kill()


NodeMaker = Callable[..., Any]


@pytest.fixture
async def make_node(control: ControlPlane, leaf: Leaf, folder: Path) -> AsyncIterator[NodeMaker]:
    """Return a function that makes and starts an enrolled node of the data plane `local`."""
    made: list[TestNode] = []

    async def make(name: str = "node-1", *, contract: int = 2, at: Leaf = leaf) -> TestNode:
        place = folder / "nodes" / name
        node = TestNode(place, node_config(place, control.hub, at, node=name, contract=contract, tenant=control.tenant))
        control.enrol_node(name, node.key.public, at.data_plane, contract)
        _trust(node, control)
        made.append(node)
        await node.start()
        return node

    yield make
    for node in made:
        await node.stop()


def _trust(node: TestNode, control: ControlPlane) -> None:
    """Give the node what enrolment gives: the first list of trusted keys."""
    from dataplane.link.admission import Expected, admit

    text = control.channel.accounts.trust_document(node.config.tenant, node.config.data_plane)
    expected = Expected(
        tenant=node.config.tenant,
        data_plane=node.config.data_plane,
        root_key=node.config.root_key,
        contract=node.config.contract_max,
    )
    DocumentStore(node.folder / "documents").put(admit(text, expected))


@asynccontextmanager
async def closing(client: Any) -> AsyncIterator[Any]:
    """A NATS client that is closed at the end."""
    try:
        yield client
    finally:
        await client.close()


__all__ = ["ControlPlane", "KeyPair", "Role", "TestNode", "closing", "until"]
