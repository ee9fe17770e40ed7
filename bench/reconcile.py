"""How fast two equal tables are compared by key and value, against psql's COPY of the same rows.

`uv run python -m bench.reconcile [--rows N] [--runs N]`: starts a server of its own with two databases that hold the same
table of 8 columns (about 115 bytes a row), and prints medians, with the CPU time of our process for a row. The bound on
rows a second is lifted; what a node runs is held to it. Nothing of an installed server is touched.
"""

import argparse
import asyncio
import resource
import shutil
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import msgspec
import psycopg
from bench.summary import tell

from contracts import v2
from contracts.reconciling import Reconcile, ReconcileState
from dataplane.reconcile.runtime import ReconcileRuntime
from dataplane.sinks.postgres import checkpoints
from dataplane.worker.protocol import Assignment, Half
from pointsman.local import postgres, processes

TENANT = "7d9e3c0a-0000-4000-8000-000000000001"
SETTINGS = {"shared_buffers": "512MB", "max_wal_size": "4GB", "checkpoint_timeout": "30min", "wal_level": "logical"}
TABLE = "public.bench"
MAKE = """CREATE TABLE bench (id bigint PRIMARY KEY, customer int, name text, amount numeric(10, 2), at timestamptz,
    paid boolean, note text, token uuid)"""
FILL = """INSERT INTO bench SELECT n, n %% 100000, 'customer ' || n %% 100000, n %% 1000000 / 100.0,
    '2026-11-24'::timestamptz + n * interval '1 s', n %% 2 = 0, CASE WHEN n %% 5 > 0 THEN 'note on ' || n END,
    lpad(to_hex(n), 32, '0')::uuid FROM generate_series(1, %s) n"""
CHECKPOINT = """INSERT INTO pointsman.checkpoints (pipeline_id, epoch, owner, source_system, source_timeline,
        source_database, source_slot, source_publication, position_lsn, snapshot_done, tables_owned, tables_copied)
    SELECT 'bench', 1, 'bench', system_identifier, 1, 'source', 's', 'p', 1, true, ARRAY[%s], ARRAY[%s]
    FROM pg_control_system()"""
UNBOUNDED = 1 << 40


def assignment(port: int, number: int, folder: Path) -> Assignment:
    """What a node would tell the process."""
    ends = {
        name: v2.ConnectionDocument(
            tenant=TENANT,
            data_plane="bench",
            name=name,
            epoch=1,
            generation=1,
            config=v2.PostgresConfig(host="127.0.0.1", port=port, database=name, user="postgres"),
        )
        for name in ("source", "destination")
    }
    document = v2.PipelineDocument(
        tenant=TENANT,
        data_plane="bench",
        name="bench",
        epoch=1,
        generation=1,
        run=v2.RunState.RUNNING,
        source=v2.PipelineSource(connection="source", tables=[TABLE]),
        sink=v2.PipelineSink(connection="destination"),
        reconciles={TABLE: Reconcile(number=number)},
    )
    return Assignment(
        pipeline_id="bench",
        tenant=TENANT,
        half=Half.RECONCILE,
        contract=2,
        document=msgspec.json.encode(document).decode(),
        source=ends["source"],
        sink=ends["destination"],
        secrets_folder=str(folder),
        owner="bench",
    )


async def compare(port: int, number: int, folder: Path, rows: int) -> tuple[float, float]:
    """Compare once; return rows a second and our CPU time for a row, in microseconds."""
    over = asyncio.Event()

    def look() -> None:
        if any(line.state is not ReconcileState.RUNNING for line in runtime.status().reconciles):
            over.set()

    runtime = ReconcileRuntime(assignment(port, number, folder), changed=look, rows_per_second_max=UNBOUNDED)
    before, since = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    running = asyncio.create_task(runtime.run())
    await over.wait()
    took = time.perf_counter() - since
    after = resource.getrusage(resource.RUSAGE_SELF)
    (line,) = runtime.status().reconciles
    runtime.stop()
    await running
    assert (line.state, line.rows_compared) == (ReconcileState.DONE, rows), line
    assert (line.rows_missing, line.rows_extra, line.rows_different) == (0, 0, 0), line
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return rows / took, cpu / rows * 1e6


def copy_out(server: postgres.PostgresServer, rows: int) -> float:
    """Read the source's table with psql's COPY; return rows a second."""
    psql = str(server.binaries / "psql")
    since = time.perf_counter()
    subprocess.run(
        [psql, "-XqAt", server.conninfo("source"), "-c", "COPY bench TO STDOUT"], stdout=subprocess.DEVNULL, check=True
    )
    return rows / (time.perf_counter() - since)


def copy_over(server: postgres.PostgresServer, rows: int) -> float:
    """Copy the table into an empty one with two psql; return rows a second."""
    psql = str(server.binaries / "psql")
    with psycopg.connect(server.conninfo("destination"), autocommit=True) as connection:
        connection.execute("DROP TABLE IF EXISTS copied")
        connection.execute("CREATE TABLE copied (LIKE bench INCLUDING INDEXES)")
    since = time.perf_counter()
    with subprocess.Popen(
        [psql, "-XqAt", server.conninfo("source"), "-c", "COPY bench TO STDOUT"], stdout=subprocess.PIPE
    ) as reading:
        subprocess.run(
            [psql, "-XqAt", server.conninfo("destination"), "-c", "COPY copied FROM STDIN"],
            stdin=reading.stdout,
            check=True,
        )
    return rows / (time.perf_counter() - since)


def main() -> None:
    """Run everything side by side and print medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=500_000)
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="pm-bench-"))
    server = postgres.PostgresServer(folder / "server", processes.free_port(), settings=SETTINGS)
    server.create()
    server.start()
    try:
        with psycopg.connect(server.conninfo(), autocommit=True) as connection:
            for name in ("source", "destination"):
                connection.execute(f"CREATE DATABASE {name}")
        for name in ("source", "destination"):
            with psycopg.connect(server.conninfo(name), autocommit=True) as connection:
                connection.execute(MAKE)
                connection.execute(FILL, (arguments.rows,))
                connection.execute("VACUUM ANALYZE bench")
                if name == "destination":
                    for statement in checkpoints.SETUP:
                        connection.execute(statement.encode())
                    connection.execute(CHECKPOINT, (TABLE, TABLE))
        compared, read, copied = [], [], []
        for number in range(1, arguments.runs + 1):
            read.append(copy_out(server, arguments.rows))
            copied.append(copy_over(server, arguments.rows))
            compared.append(asyncio.run(compare(server.port, number, folder, arguments.rows)))
        print(f"{arguments.rows:,} rows, medians of {arguments.runs}")
        print(f"psql COPY to /dev/null      {statistics.median(read):>10,.0f} rows/s")
        print(f"psql COPY | psql COPY       {statistics.median(copied):>10,.0f} rows/s")
        speed, cpu = (statistics.median(each) for each in zip(*compared, strict=True))
        tell("reconcile: rows/s", [each[0] for each in compared])
        print(f"compared, both directions   {speed:>10,.0f} rows/s, {cpu:.2f} µs of our CPU a row")
    finally:
        server.stop(immediate=True)
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
