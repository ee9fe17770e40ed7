"""Capture and decode to Arrow into a discarding sink, side by side with `pg_recvlogical` writing to /dev/null.

    uv run python -m bench.capture [--rows 800000] [--runs 5] [--shape narrow|wide|small|single|large]

Both read the same slot content: one slot keeps the log, and every run reads a copy of it. Runs alternate. Ours is timed
in a process of its own from before it connects until the last row has arrived in the sink, `pg_recvlogical` from its
start to its end at the same position. CPU times are those of the client and of its walsender.
"""

import argparse
import asyncio
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import psutil
import psycopg

from pointsman.local import postgres, processes

SETTINGS = {
    **postgres.LOGICAL,
    "shared_buffers": "512MB",
    "max_wal_size": "8GB",
    "fsync": "off",
    "full_page_writes": "off",
    "autovacuum": "off",
    "logical_decoding_work_mem": "256MB",
}
SAMPLE_SECONDS = 0.02
RUN_SECONDS_MAX = 300
TABLE = "public.orders"

NARROW = """CREATE TABLE public.orders (id bigint PRIMARY KEY, customer integer NOT NULL, status text, amount numeric(12,2),
 placed timestamptz, paid boolean, code uuid, note text)"""
NARROW_ROWS = """INSERT INTO public.orders SELECT n, n % 10007, (ARRAY['new','paid','sent','done'])[1 + n % 4],
 (n % 100000) / 100.0, timestamptz '2024-01-01 00:00:00Z' + n * interval '1.234567 seconds', n % 3 = 0,
 ('00000000-0000-4000-8000-' || lpad(to_hex(n), 12, '0'))::uuid, 'note number ' || n
 FROM generate_series({first}, {last}) n"""
WIDE = "CREATE TABLE public.orders (id bigint PRIMARY KEY, " + ", ".join(f"c{n} text" for n in range(59)) + ")"
WIDE_ROWS = (
    "INSERT INTO public.orders SELECT n, "
    + ", ".join(f"'value {n} ' || n" if n % 2 else f"(n * {n + 1})::text" for n in range(59))
    + " FROM generate_series({first}, {last}) n"
)
LARGE = "CREATE TABLE public.orders (id bigint PRIMARY KEY, document text STORAGE EXTERNAL)"
LARGE_ROWS = (
    """INSERT INTO public.orders SELECT n, repeat(md5(n::text), 3125) FROM generate_series({first}, {last}) n"""
)


@dataclass(frozen=True)
class Shape:
    """A table, how to fill it, and how many rows one transaction has."""

    create: str
    insert: str
    transaction_rows: int


SHAPES = {
    "narrow": Shape(NARROW, NARROW_ROWS, 1_000),
    "single": Shape(NARROW, NARROW_ROWS, 1 << 60),
    "small": Shape(NARROW, NARROW_ROWS, 2),
    "wide": Shape(WIDE, WIDE_ROWS, 1_000),
    "large": Shape(LARGE, LARGE_ROWS, 20),
}


@dataclass
class Run:
    """What one run took."""

    seconds: float
    client_seconds: float
    walsender_seconds: float
    memory_bytes: int = 0


class Sampler:
    """Samples CPU time of the walsender of a slot until it is gone; the last value is within one sample of its whole."""

    def __init__(self, conninfo: str, slot: str) -> None:
        self._connection = psycopg.connect(conninfo, autocommit=True)
        self._slot = slot
        self._process: psutil.Process | None = None
        self.seconds = 0.0

    def sample(self) -> None:
        try:
            if self._process is None:
                row = self._connection.execute(
                    "SELECT active_pid FROM pg_replication_slots WHERE slot_name = %s AND active", [self._slot]
                ).fetchone()
                if row is None or row[0] is None:
                    return
                self._process = psutil.Process(row[0])
            times = self._process.cpu_times()
            self.seconds = times.user + times.system
        except psutil.Error:
            return

    def close(self) -> None:
        self._connection.close()


def fill(conninfo: str, shape: Shape, rows: int) -> None:
    with psycopg.connect(conninfo, autocommit=True) as connection:
        step = min(shape.transaction_rows, rows)
        if step >= 20:
            for first in range(1, rows + 1, step):
                connection.execute(shape.insert.format(first=first, last=min(first + step - 1, rows)))  # type: ignore[arg-type]
            return
        body = shape.insert.format(first="f", last=f"least(f + {step - 1}, {rows})")
        connection.execute(
            f"DO $$ BEGIN FOR f IN 1..{rows} BY {step} LOOP {body}; COMMIT; END LOOP; END $$"  # type: ignore[arg-type]
        )


def prepare(conninfo: str, shape: Shape, publication: str, rows: int) -> int:
    """Make table, publication and the slot `base`, and fill the table. Return where the slot begins."""
    with psycopg.connect(conninfo, autocommit=True) as connection:
        connection.execute(shape.create)  # type: ignore[arg-type]
        connection.execute(
            f"CREATE PUBLICATION {publication} FOR TABLE {TABLE} WITH (publish_via_partition_root = true)"  # type: ignore[arg-type]
        )
        row = connection.execute("SELECT lsn - '0/0' FROM pg_create_logical_replication_slot('base', 'pgoutput')")
        ((start,),) = row.fetchall()
    fill(conninfo, shape, rows)
    with psycopg.connect(conninfo, autocommit=True) as connection:
        connection.execute("CHECKPOINT")
    return int(start)


def copy_slot(conninfo: str, base: str, slot: str) -> None:
    with psycopg.connect(conninfo, autocommit=True) as connection:
        connection.execute("SELECT pg_copy_logical_replication_slot(%s, %s)", [base, slot])


def drop_slot(conninfo: str, slot: str) -> None:
    with psycopg.connect(conninfo, autocommit=True) as connection:
        for _ in range(500):
            row = connection.execute("SELECT active FROM pg_replication_slots WHERE slot_name = %s", [slot]).fetchone()
            if row == (False,):
                connection.execute("SELECT pg_drop_replication_slot(%s)", [slot])
                return
            time.sleep(0.02)


def watched(command: list[str], conninfo: str, slot: str) -> tuple[Run, str]:
    """Run a client to its end. Its own CPU time comes from the kernel's account of the child."""
    sampler = Sampler(conninfo, slot)
    before = os.times()
    began = time.perf_counter()
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    while child.poll() is None:
        sampler.sample()
        time.sleep(SAMPLE_SECONDS)
        if time.perf_counter() - began > RUN_SECONDS_MAX:
            child.kill()
    seconds = time.perf_counter() - began
    sampler.close()
    assert child.stdout is not None
    output = child.stdout.read()
    child.stdout.close()
    if child.returncode != 0:
        raise RuntimeError(f"{command[0]} ended with {child.returncode}")
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return Run(seconds, cpu, sampler.seconds), output


def peer(server: postgres.PostgresServer, conninfo: str, slot: str, publication: str, end: str) -> Run:
    command = [str(postgres.BINARIES / "pg_recvlogical"), "-d", conninfo, "--slot", slot, "--start", "--no-loop"]
    command += ["-f", "/dev/null", "-o", "proto_version=1", "-o", f"publication_names={publication}", "--endpos", end]
    return watched(command, conninfo, slot)[0]


def ours(server: postgres.PostgresServer, conninfo: str, slot: str, pipeline: str, rows: int, start: int) -> Run:
    task = {"port": server.port, "slot": slot, "pipeline": pipeline, "rows": rows, "start": start}
    run, output = watched([sys.executable, __file__, "--child", json.dumps(task)], conninfo, slot)
    told = json.loads(output)
    return Run(told["seconds"], told["cpu"], run.walsender_seconds, told["memory"])


async def child(task: dict[str, object]) -> None:
    """Our side of one run, in a process of its own that is set up as a worker is."""
    import gc
    import resource

    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

    from contracts.v2 import ConnectionDocument, PostgresConfig
    from dataplane.batch import Position
    from dataplane.checkpoint import Checkpoint, SourceIdentity
    from dataplane.sources.postgres import PostgresSource
    from dataplane.sources.postgres.opening import object_name

    port, pipeline, start = int(str(task["port"])), str(task["pipeline"]), int(str(task["start"]))
    system = psycopg.connect(f"host=127.0.0.1 port={port} user=postgres dbname=bench").execute(
        "SELECT system_identifier::text FROM pg_control_system()"
    )
    ((identifier,),) = system.fetchall()
    system.connection.close()
    identity = SourceIdentity(
        system_identifier=identifier,
        timeline=1,
        database="bench",
        slot=str(task["slot"]),
        publication=object_name(pipeline),
    )

    class Discarding:
        """Keeps the checkpoint alone."""

        async def load(self) -> Checkpoint:
            return Checkpoint(
                epoch=1,
                source=identity,
                position=Position(start, 0),
                confirmed_through=start,
                snapshot_done=True,
                tables_owned=[],
                tables_copied=[TABLE],
            )

        async def begin(self, source: SourceIdentity) -> None:
            raise AssertionError

        async def advance(self, confirmed_through: int) -> None:
            return

        async def forget(self) -> None:
            raise AssertionError

    document = ConnectionDocument(
        tenant="00000000-0000-4000-8000-000000000000",
        data_plane="bench",
        name="bench",
        epoch=1,
        generation=1,
        config=PostgresConfig(host="127.0.0.1", port=port, database="bench", user="postgres"),
    )
    gc.freeze()
    source = PostgresSource(document, None, pipeline_id=pipeline, tables=[TABLE])
    cpu, began = time.process_time(), time.perf_counter()
    await source.open(Discarding())
    rows = sets = 0
    async for change in source.changes():
        rows += change.row_count
        sets += 1
        if change.ends:
            source.confirm(change.commit_end_lsn)
        if rows >= int(str(task["rows"])):
            break
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    await source.close()
    print(json.dumps({"seconds": seconds, "cpu": cpu, "rows": rows, "sets": sets, "memory": memory}))


def report(name: str, runs: list[Run], rows: int) -> tuple[float, float, float]:
    rate = statistics.median(rows / run.seconds for run in runs)
    client = statistics.median(run.client_seconds / rows for run in runs) * 1e6
    walsender = statistics.median(run.walsender_seconds / rows for run in runs) * 1e6
    spread = ", ".join(f"{rows / run.seconds / 1000:.0f}k" for run in runs)
    print(
        f"{name:16} {rate / 1000:8.1f}k rows/s   client {client:5.2f} µs/row   walsender {walsender:5.2f} µs/row   ({spread})"
    )
    return rate, client, walsender


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=800_000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="narrow")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        asyncio.run(child(json.loads(arguments.child)))
        return
    folder = Path(tempfile.mkdtemp(prefix="pm-bench-"))
    server = postgres.PostgresServer(folder, processes.free_port(), settings=SETTINGS)
    server.create()
    server.start()
    try:
        measure(server, arguments.shape, arguments.rows, arguments.runs)
    finally:
        server.stop(immediate=True)
        shutil.rmtree(folder, ignore_errors=True)


def measure(server: postgres.PostgresServer, name: str, rows: int, count: int) -> None:
    from bench.summary import tell

    from dataplane.sources.postgres.opening import object_name

    pipeline = str(uuid4())
    publication = object_name(pipeline)
    with psycopg.connect(server.conninfo(), autocommit=True) as connection:
        connection.execute("CREATE DATABASE bench")
    conninfo = server.conninfo("bench")
    start = prepare(conninfo, SHAPES[name], publication, rows)
    with psycopg.connect(conninfo, autocommit=True) as connection:
        ((end,),) = connection.execute("SELECT pg_current_wal_lsn()::text").fetchall()
    peers: list[Run] = []
    mine: list[Run] = []
    for number in range(count + 1):
        for runs in (peers, mine):
            slot = f"{publication}_{number:07x}{int(runs is mine)}"
            copy_slot(conninfo, "base", slot)
            if runs is peers:
                run = peer(server, conninfo, slot, publication, end)
            else:
                run = ours(server, conninfo, slot, pipeline, rows, start)
            drop_slot(conninfo, slot)
            if number:  # the first pair warms the caches
                runs.append(run)
    print(f"{rows} rows, {count} alternating runs, medians")
    theirs = report("pg_recvlogical", peers, rows)
    own = report("pointsman", mine, rows)
    print(f"ratio of rows/s {own[0] / theirs[0]:.2f}; our CPU per row / walsender's {own[1] / own[2]:.2f}; ", end="")
    print(f"peak resident memory {max(run.memory_bytes for run in mine) >> 20} MiB")
    ratios = [peer.seconds / run.seconds for peer, run in zip(peers, mine, strict=True)]
    tell(f"capture {name}: rows/s of pg_recvlogical", ratios, least=0.95 if name == "narrow" else 0.7)
    cpu = [run.client_seconds / run.walsender_seconds for run in mine]
    tell(f"capture {name}: our CPU of the walsender's", cpu, most=0.5 if name == "narrow" else None)
    tell(f"capture {name}: peak memory, MiB", [run.memory_bytes / (1 << 20) for run in mine])


if __name__ == "__main__":
    main()
