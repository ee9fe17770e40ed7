"""The worker as a process of its own, between two real databases: what flows, what survives kill -9, what it answers."""

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from random import Random

import msgspec
import psutil
import pytest
from tests.dataplane.buffers.leaf import Leaf
from tests.dataplane.worker.bank import TABLES, Bank
from tests.dataplane.worker.processes import Worker, connection, document, new_pipeline_id

from contracts import v2
from contracts.codes import Code
from contracts.v2 import BufferType, Confirm, Phase, RunState
from dataplane.worker.protocol import SOCKET_LINE_BYTES_MAX, Half

JETSTREAM = v2.BufferSettings(type=BufferType.JETSTREAM, size_bytes_max=8 << 20)
DATA = v2.BufferSettings(type=BufferType.JETSTREAM, confirm=Confirm.BUFFER, size_bytes_max=64 << 20)
DIRECT = v2.BufferSettings()


@pytest.fixture(scope="module")
def leaf(tmp_path_factory) -> Iterator[Leaf]:
    leaf = Leaf(tmp_path_factory.mktemp("leaf"))
    leaf.start()
    yield leaf
    leaf.stop()


class Pipeline:
    """Two databases and the workers between them."""

    def __init__(self, folder: Path, make_database, leaf: Leaf | None, buffer=JETSTREAM) -> None:  # type: ignore[no-untyped-def]
        self.folder = folder
        self.shop, self.warehouse = make_database("shop"), make_database("warehouse")
        self.bank = Bank(self.shop.conninfo, self.warehouse.conninfo, seed=7)
        self.buffer = buffer if leaf else DIRECT
        self.leaf = leaf
        halves = [Half.SINK, Half.SOURCE] if leaf else [Half.WHOLE]
        servers = [
            connection(name, host="127.0.0.1", port=database.port, database=database.name)
            for name, database in (("shop", self.shop), ("warehouse", self.warehouse))
        ]
        pipeline_id = new_pipeline_id()
        self.workers = [
            Worker(folder, half, *servers, pipeline_id=pipeline_id, access=leaf.access if leaf else None)
            for half in halves
        ]

    def document(self, **changes) -> v2.PipelineDocument:  # type: ignore[no-untyped-def]
        tables = changes.pop("tables", TABLES)
        return document(tables, buffer=self.buffer, **changes)

    async def start(self, **changes) -> None:  # type: ignore[no-untyped-def]
        for worker in self.workers:
            await worker.start(self.document(**changes))

    async def until(self, phase: Phase, generation: int = 1) -> None:
        for worker in self.workers:
            await worker.until_phase(phase, generation)

    async def send(self, **changes) -> None:  # type: ignore[no-untyped-def]
        for worker in self.workers:
            await worker.send(self.document(**changes))

    async def stop(self) -> None:
        for worker in self.workers:
            assert await worker.stop() == 0


@pytest.fixture
async def direct(folder, make_database) -> AsyncIterator[Pipeline]:  # type: ignore[no-untyped-def]
    pipeline = Pipeline(folder, make_database, None)
    yield pipeline
    await pipeline.stop()


@pytest.fixture(params=["direct", "jetstream"])
async def pipeline(request, folder, make_database) -> AsyncIterator[Pipeline]:  # type: ignore[no-untyped-def]
    leaf = request.getfixturevalue("leaf") if request.param == "jetstream" else None
    pipeline = Pipeline(folder, make_database, leaf)
    yield pipeline
    await pipeline.stop()


async def test_a_killed_worker_loses_and_doubles_nothing(pipeline: Pipeline) -> None:
    """Each half is killed again and again during transfers: every look sees the same total, and all ends equal."""
    bank, random = pipeline.bank, Random(3)
    bank.create()
    await pipeline.start()
    working, watching = asyncio.create_task(bank.work()), asyncio.create_task(bank.watch())
    for number in range(4):
        await asyncio.sleep(random.random() * 0.8)
        victim = pipeline.workers[number % len(pipeline.workers)]
        await victim.kill()
        await victim.start()
    bank.stop()
    await working
    await bank.settle()
    assert not watching.done(), watching.exception()
    watching.cancel()
    assert bank.transfers > 100


async def test_a_killed_leaf_and_a_deleted_stream_lose_nothing(leaf: Leaf, folder, make_database) -> None:  # type: ignore[no-untyped-def]
    """The buffer is a cache: its server is killed and its streams are deleted during transfers, and all ends equal."""
    import nats

    pipeline = Pipeline(folder, make_database, leaf)
    bank = pipeline.bank
    bank.create()
    await pipeline.start()
    await pipeline.until(Phase.STREAMING)
    working, watching = asyncio.create_task(bank.work()), asyncio.create_task(bank.watch())
    for _ in range(2):
        await asyncio.sleep(0.7)
        leaf.kill()
        leaf.start()
        await asyncio.sleep(0.7)
        client = await nats.connect(leaf.access.url, nkeys_seed=leaf.access.seed_file)
        for stream in await client.jetstream().streams_info():
            await client.jetstream().delete_stream(stream.config.name)
        await client.close()
    bank.stop()
    await working
    await bank.settle()
    assert not watching.done(), watching.exception()
    watching.cancel()
    await pipeline.stop()


async def test_pause_resume_and_remove(pipeline: Pipeline) -> None:
    """A pause stops between transactions and keeps the slot; resuming catches up; removing drops slot and checkpoint."""
    bank = pipeline.bank
    bank.create()
    await pipeline.start()
    await pipeline.until(Phase.STREAMING)
    working = asyncio.create_task(bank.work())
    await asyncio.sleep(0.2)
    await pipeline.send(generation=2, run=RunState.PAUSED)
    await pipeline.until(Phase.PAUSED, 2)
    (before,) = pipeline.warehouse.execute("SELECT count(*) FROM ledger")
    await asyncio.sleep(0.2)
    bank.stop()
    await working
    assert pipeline.warehouse.execute("SELECT count(*) FROM ledger") == [before]
    assert pipeline.shop.execute("SELECT count(*) FROM pg_replication_slots WHERE database = current_database()") == [
        (1,)
    ]
    await pipeline.send(generation=3)
    await bank.settle()
    await pipeline.send(generation=4, run=RunState.REMOVED)
    await pipeline.until(Phase.REMOVED, 4)
    assert pipeline.shop.execute("SELECT count(*) FROM pg_replication_slots WHERE database = current_database()") == [
        (0,)
    ]
    assert pipeline.shop.execute("SELECT count(*) FROM pg_publication") == [(0,)]
    assert pipeline.warehouse.execute("SELECT count(*) FROM pointsman.checkpoints") == [(0,)]


async def test_a_new_assignment_is_applied_in_the_same_process(direct: Pipeline) -> None:
    """A changed document begins a new session within the process, soon; one that changes nothing only its generation."""
    direct.bank.create()
    await direct.start(tables=["public.ledger"])
    (worker,) = direct.workers
    first = await worker.until_phase(Phase.STREAMING)
    mask = v2.MaskTransform(table="public.ledger", columns=["amount"])
    started = time.perf_counter()
    await direct.send(tables=["public.ledger"], generation=2, transforms=[mask])
    second = await worker.until_phase(Phase.STREAMING, 2)
    assert time.perf_counter() - started < 2
    assert (second.pid, second.since_seconds > first.since_seconds) == (first.pid, True)
    await direct.send(tables=["public.ledger"], generation=3, transforms=[mask])
    third = await worker.until(lambda status: status.generation == 3)
    assert (third.phase, third.since_seconds) == (Phase.STREAMING, second.since_seconds)
    stored = msgspec.json.decode(worker.assignment_path.read_bytes())
    assert msgspec.json.decode(stored["document"])["generation"] == 3
    assert worker.assignment_path.stat().st_mode & 0o777 == 0o600


async def test_the_status_says_what_is_there(direct: Pipeline) -> None:
    """Totals, position, schemas and latency are told; nothing of a row is."""
    direct.bank.create()
    await direct.start()
    (worker,) = direct.workers
    await worker.until_phase(Phase.STREAMING)
    working = asyncio.create_task(direct.bank.work())
    await asyncio.sleep(0.3)
    direct.bank.stop()
    await working
    await direct.bank.settle()
    status = await worker.until(
        lambda status: status.telemetry.lag_seconds == 0 and status.telemetry.rows_total >= direct.bank.transfers * 3
    )
    telemetry = status.telemetry
    assert status.position_lsn > 0
    assert telemetry.latency_buckets["+Inf"] > 0
    assert telemetry.latency_buckets["+Inf"] <= telemetry.transactions_total
    assert telemetry.bytes_total > 0
    assert (telemetry.tables_total, telemetry.tables_copied) == (2, 2)
    assert {line.table for line in status.schemas} == set(TABLES)
    assert [phase for phase in worker.seen if phase is not Phase.PENDING] in (
        [Phase.SNAPSHOTTING, Phase.STREAMING],
        [Phase.STREAMING],
    )
    assert psutil.Process(status.pid).memory_info().rss < 130 << 20


async def test_a_worker_goes_on_while_nobody_listens(direct: Pipeline) -> None:
    """The agent goes away and a new one connects to the same socket: the process went on meanwhile."""
    direct.bank.create()
    await direct.start()
    (worker,) = direct.workers
    first = await worker.until_phase(Phase.STREAMING)
    await worker.disconnect()
    working = asyncio.create_task(direct.bank.work())
    await asyncio.sleep(0.1)
    direct.bank.stop()
    await working
    await direct.bank.settle()
    worker.status = None
    await worker.connect()
    assert (await worker.until_phase(Phase.STREAMING)).pid == first.pid


async def test_sigterm_ends_the_worker_soon_and_clean(direct: Pipeline) -> None:
    """Under load the process ends within five seconds with exit code 0, and what it left is a state of the bank."""
    direct.bank.create()
    await direct.start()
    (worker,) = direct.workers
    await worker.until_phase(Phase.STREAMING)
    working, watching = asyncio.create_task(direct.bank.work()), asyncio.create_task(direct.bank.watch())
    await asyncio.sleep(0.3)
    started = time.monotonic()
    assert await worker.stop() == 0
    assert time.monotonic() - started < 5
    assert not worker.socket_path.exists()
    direct.bank.stop()
    await working
    assert not watching.done(), watching.exception()
    watching.cancel()
    await worker.start()
    await direct.bank.settle()


async def test_a_document_of_the_older_contract_runs(direct: Pipeline) -> None:
    """A node that is pinned to contract 1 hands the older document to the same worker."""
    direct.bank.create()
    (worker,) = direct.workers
    await worker.start(direct.document(), contract=1)
    await worker.until_phase(Phase.STREAMING)
    await direct.bank.settle()


async def test_a_missing_secret_is_waited_for(direct: Pipeline) -> None:
    """The secret is read at each session: one that appears later is picked up without a restart."""
    direct.bank.create()
    secret = direct.folder / "secrets" / "password"
    secret.unlink()
    await direct.start()
    (worker,) = direct.workers
    status = await worker.until_phase(Phase.RETRYING)
    assert status.code is Code.SECRET_MISSING
    secret.write_text("any")
    await worker.until_phase(Phase.STREAMING)


async def test_lines_that_are_no_assignment_change_nothing(direct: Pipeline) -> None:
    """Rubbish on the socket is logged; a line without an end closes that connection; the worker goes on."""
    direct.bank.create()
    await direct.start()
    (worker,) = direct.workers
    await worker.until_phase(Phase.STREAMING)
    for line in (b"{}\n", b"\xff\xfe\n", b'{"pipeline_id": 1}\n'):
        _, writer = await asyncio.open_unix_connection(worker.socket_path)
        writer.write(line)
        await writer.drain()
        writer.close()
        await writer.wait_closed()
    reader, writer = await asyncio.open_unix_connection(worker.socket_path, limit=1 << 20)
    writer.write(b"x" * (SOCKET_LINE_BYTES_MAX + 1024))
    with pytest.raises((ConnectionError, asyncio.TimeoutError)):  # noqa: PT012
        async with asyncio.timeout(20):
            while await reader.readline():
                pass
            raise ConnectionError
    writer.close()
    await worker.send(direct.document(generation=2))
    await worker.until_phase(Phase.STREAMING, 2)
    assert "is no assignment" in worker.log.read_text()


def test_a_worker_without_an_assignment_says_so(tmp_path: Path) -> None:
    """An assignment that is missing or broken ends the process with code 64 and one JSON line that says why."""
    command = [sys.executable, "-m", "dataplane.worker", "--socket", str(tmp_path / "s")]
    broken = tmp_path / "broken.json"
    broken.write_text("{}")
    for path in (tmp_path / "missing.json", broken):
        ended = subprocess.run([*command, "--assignment", str(path)], check=False, capture_output=True, timeout=60)
        assert ended.returncode == 64
        assert msgspec.json.decode(ended.stderr)["level"] == "error"
