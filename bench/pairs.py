"""Two servers and a pipeline between them, for benchmarks of the whole way: real worker processes, real fsync."""

import shutil
import tempfile
from pathlib import Path
from types import TracebackType

import psutil
import psycopg
from tests.dataplane.buffers.leaf import Leaf
from tests.dataplane.worker.processes import Worker, connection, document, new_pipeline_id

from contracts import v2
from contracts.v2 import BufferType, Phase, RunState
from dataplane.worker.protocol import Half
from pointsman.local import postgres, processes

SETTINGS = {
    **postgres.LOGICAL,
    "shared_buffers": "256MB",
    "max_wal_size": "8GB",
    "checkpoint_timeout": "30min",
    "autovacuum": "off",
}
TABLE = """
CREATE TABLE bench (id bigint PRIMARY KEY, customer integer, name text, amount numeric(10,2), at timestamptz,
    paid boolean, note text, token uuid)
"""
ROWS = """
INSERT INTO bench SELECT n, n % 100000, 'customer ' || n, (n % 10000) / 100.0, now(), n % 2 = 0,
    CASE WHEN n % 5 > 0 THEN 'note on ' || n END, gen_random_uuid() FROM generate_series({first}, {last}) AS n
"""


class Pair:
    """A source and a destination server in a temporary folder. Use it as a context."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="pm-bench-"))
        self.shop = self._server("shop")
        self.warehouse = self._server("warehouse")

    def _server(self, name: str) -> postgres.PostgresServer:
        return postgres.PostgresServer(self.folder / name, processes.free_port(), settings=SETTINGS)

    def __enter__(self) -> "Pair":
        for server in (self.shop, self.warehouse):
            server.create()
            server.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for server in (self.shop, self.warehouse):
            server.stop(immediate=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    def connect(
        self, server: postgres.PostgresServer, database: str = "postgres"
    ) -> psycopg.Connection[tuple[object, ...]]:
        return psycopg.connect(server.conninfo(database), autocommit=True)


class Pipeline:
    """One pipeline's workers, from the pair's source to a database of its destination that is named like the buffer."""

    def __init__(self, pair: Pair, kind: BufferType) -> None:
        self.kind = kind
        self._generation = 0
        folder = Path(tempfile.mkdtemp(prefix=f"{kind.value}-", dir=pair.folder))
        servers = [
            connection(name, host="127.0.0.1", port=server.port, database=database)
            for name, server, database in (
                ("shop", pair.shop, "postgres"),
                ("warehouse", pair.warehouse, kind.value),
            )
        ]
        self.leaf = Leaf(folder / "leaf") if kind is BufferType.JETSTREAM else None
        halves = [Half.SINK, Half.SOURCE] if self.leaf else [Half.WHOLE]
        pipeline_id = new_pipeline_id()
        access = self.leaf.access if self.leaf else None
        self.workers = [Worker(folder, half, *servers, pipeline_id=pipeline_id, access=access) for half in halves]

    async def start(self) -> None:
        if self.leaf is not None:
            self.leaf.start()
        pipeline = self._document(RunState.RUNNING)
        for worker in self.workers:
            await worker.start(pipeline)
        for worker in self.workers:
            await worker.until_phase(Phase.STREAMING, self._generation)

    async def run(self, state: RunState) -> None:
        """Ask for a state and wait until every half is paused; a resumed one is not waited for."""
        pipeline = self._document(state)
        for worker in self.workers:
            await worker.send(pipeline)
        if state is RunState.PAUSED:
            for worker in self.workers:
                await worker.until_phase(Phase.PAUSED, self._generation)

    async def stop(self) -> None:
        for worker in self.workers:
            await worker.stop()
        if self.leaf is not None:
            self.leaf.stop()

    def pids(self) -> dict[str, int]:
        pids = {worker.half.value: worker.process.pid for worker in self.workers if worker.process is not None}
        if self.leaf is not None and self.leaf.process is not None:
            pids["leaf"] = self.leaf.process.pid
        return pids

    def _document(self, state: RunState) -> v2.PipelineDocument:
        self._generation += 1
        buffer = v2.BufferSettings(type=self.kind)
        return document(["public.bench"], buffer=buffer, run=state, generation=self._generation)


def cpu_seconds(pids: dict[str, int], servers: dict[str, postgres.PostgresServer]) -> dict[int, tuple[str, float]]:
    """The CPU time so far of the processes, and of every backend of the servers, by pid."""
    times: dict[int, tuple[str, float]] = {}
    roots = [(name, pid, False) for name, pid in pids.items()]
    roots += [(name, server.process.pid, True) for name, server in servers.items() if server.process is not None]
    for name, pid, with_children in roots:
        root = psutil.Process(pid)
        for process in [root, *(root.children(recursive=True) if with_children else [])]:
            try:
                spent = process.cpu_times()
            except psutil.NoSuchProcess:
                continue
            times[process.pid] = (name, spent.user + spent.system)
    return times


def cpu_between(before: dict[int, tuple[str, float]], after: dict[int, tuple[str, float]]) -> dict[str, float]:
    """Seconds spent, by name."""
    spent: dict[str, float] = {}
    for pid, (name, seconds) in after.items():
        spent[name] = spent.get(name, 0.0) + seconds - before.get(pid, (name, 0.0))[1]
    return spent
