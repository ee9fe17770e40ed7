"""How fast the PostgreSQL sink applies sets that are ready in memory, against psql's COPY of the same rows.

`uv run python -m bench.apply [--rows N] [--runs N]`: starts a server of its own with fsync on, applies a snapshot, a
stream of inserts, updates, deletes and small transactions, and prints medians with the CPU time of both processes for a
row. One table of 8 columns, about 115 bytes a row. The server is made fresh; nothing of an installed one is touched.
"""

import argparse
import asyncio
import os
import resource
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import psycopg
import pyarrow as pa
from bench.summary import tell

from contracts.v2 import ConnectionDocument, PostgresConfig
from dataplane.batch import ChangeBatch, ChangeSet, Column, Op, Position, TableSchema, Truncate
from dataplane.checkpoint import SourceIdentity
from dataplane.sinks.ownership import Ownership
from dataplane.sinks.postgres import PostgresSink, copy_text, delivery
from pointsman.local import postgres, processes

TABLE = TableSchema(
    "public",
    "bench",
    (
        Column("id", "bigint", 20, key=True, nullable=False),
        Column("customer", "integer", 23, key=False, nullable=True),
        Column("name", "text", 25, key=False, nullable=True),
        Column("amount", "numeric(10,2)", 1700, key=False, nullable=True),
        Column("at", "timestamp with time zone", 1184, key=False, nullable=True),
        Column("paid", "boolean", 16, key=False, nullable=True),
        Column("note", "text", 25, key=False, nullable=True),
        Column("token", "uuid", 2950, key=False, nullable=True),
    ),
)
SETTINGS = {"shared_buffers": "512MB", "max_wal_size": "4GB", "checkpoint_timeout": "30min", "wal_level": "logical"}
BACKEND = "SELECT pid FROM pg_stat_activity WHERE application_name = 'pointsman sink bench'"
SOURCE = SourceIdentity(system_identifier="1", timeline=1, database="s", slot="s", publication="p")


def rows(start: int, count: int, salt: int) -> pa.RecordBatch:
    """Make `count` rows with keys from `start`."""
    numbers = np.random.default_rng(salt).integers(0, 10**6, count)
    columns = [
        [str(start + n) for n in range(count)],
        [str(n) for n in numbers],
        [f"customer {n}" for n in numbers],
        [f"{n / 100:.2f}" for n in numbers],
        [f"2026-11-24 05:47:{n % 60:02d}.{n:06d}+00" for n in numbers],
        ["t" if n % 2 else "f" for n in numbers],
        [None if n % 5 == 0 else f"note on {n}" for n in numbers],
        [f"00000000-0000-4000-8000-{n:012d}" for n in numbers],
    ]
    return pa.record_batch([pa.array(each, pa.string()) for each in columns], names=[c.name for c in TABLE.columns])


def whole(batch: pa.RecordBatch, op: Op, lsn: int) -> ChangeSet:
    """One set of one kind of change."""
    count = batch.num_rows
    return ChangeSet(
        items=(
            ChangeBatch(
                table=TABLE,
                rows=batch,
                ops=np.full(count, op, dtype=np.uint8),
                commit_lsns=np.full(count, lsn, dtype=np.uint64),
                ordinals=np.arange(count, dtype=np.uint32),
                commit_times=np.zeros(count, dtype=np.int64),
            ),
        ),
        first=Position(lsn, 0),
        last=Position(lsn, count - 1),
        begins=True,
        ends=True,
        commit_end_lsn=lsn + 1,
        commit_time=0,
        transactions=1,
    )


class Bench:
    """One server, one sink, and what each of the two spent."""

    def __init__(self, server: postgres.PostgresServer, port: int | None = None) -> None:
        self.server = server
        config = PostgresConfig(host="127.0.0.1", port=port or server.port, database="postgres", user="postgres")
        self.document = ConnectionDocument(
            tenant="00000000-0000-0000-0000-000000000000",
            data_plane="local",
            name="bench",
            epoch=1,
            generation=1,
            config=config,
        )
        self.lsn = 1000

    async def fresh(self, held: pa.RecordBatch | None = None) -> PostgresSink:
        """A sink whose table holds `held`."""
        sink = PostgresSink(self.document, None, pipeline_id="bench", ownership=Ownership.of("bench"))
        await sink.open()
        await sink.begin(SOURCE)
        self.lsn = 1000
        made = self.snapshot(held if held is not None else rows(0, 1, 0).slice(0, 0))
        await sink.apply(made)
        with psycopg.connect(self.server.conninfo(), autocommit=True) as connection:
            connection.execute("VACUUM ANALYZE bench")
            connection.execute("CHECKPOINT")
        return sink

    def snapshot(self, batch: pa.RecordBatch) -> ChangeSet:
        made = whole(batch, Op.INSERT, 999)
        truncate = Truncate(TABLE, Position(999, 0), for_snapshot=True)
        return replace(
            made, items=(truncate, *made.items), commit_end_lsn=0, snapshot_of=TABLE.table, snapshot_ends=True
        )

    async def measure(self, sink: PostgresSink, sets: list[ChangeSet]) -> tuple[float, float, float]:
        """Return seconds, our CPU seconds and the server's, for applying `sets`."""
        with psycopg.connect(self.server.conninfo(), autocommit=True) as connection:
            (pid,) = connection.execute(BACKEND).fetchone() or (0,)
        server, ours, start = cpu_of(pid), time.process_time(), time.perf_counter()
        for change in sets:
            await sink.apply(change)
        taken = time.perf_counter() - start, time.process_time() - ours, cpu_of(pid) - server
        await sink.close()
        return taken


def cpu_of(pid: int) -> float:
    """CPU seconds of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def psql_copy(server: postgres.PostgresServer, file: Path) -> tuple[float, float, float]:
    """Seconds for `psql \\copy` of the rows into an empty table with the same key; CPU of psql; none of the server's."""
    psql = [str(server.binaries / "psql"), "-X", "-q", server.conninfo()]
    subprocess.run([*psql, "-c", "TRUNCATE bench", "-c", "CHECKPOINT"], check=True)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    subprocess.run([*psql, "-c", f"\\copy bench FROM '{file}'"], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.perf_counter() - start, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 0.0


async def run(server: postgres.PostgresServer, folder: Path, count: int, runs: int, set_rows: int) -> None:
    bench = Bench(server)
    batch, newer = rows(0, count, 1), rows(0, count, 2)
    file = folder / "rows.copy"
    file.write_bytes(b"".join(copy_text.blocks(batch.columns, count)))
    file.chmod(0o644)

    def cut(of: pa.RecordBatch, op: Op, size: int, limit: int = count) -> list[ChangeSet]:
        return [whole(of.slice(start, min(size, limit - start)), op, 1000 + start) for start in range(0, limit, size)]

    async def applied(held: pa.RecordBatch | None, sets: list[ChangeSet]) -> tuple[float, float, float]:
        return await bench.measure(await bench.fresh(held), sets)

    parts = [
        replace(bench.snapshot(batch.slice(start, set_rows)), begins=start == 0, ends=start + set_rows >= count)
        for start in range(0, count, set_rows)
    ]
    parts = [part if part.begins else replace(part, items=part.items[1:]) for part in parts]
    keys = [pa.nulls(count, pa.string()) for _ in TABLE.columns[1:]]
    gone = pa.record_batch([batch.column(0), *keys], names=batch.schema.names)
    small = min(count, 2000)
    await (await bench.fresh()).close()
    print(f"{count} rows of 8 columns, sets of {set_rows} rows, medians of {runs}; CPU in microseconds a row\n")
    print("| what | rows/s | of psql | our CPU | server's CPU |\n|---|---|---|---|---|")
    reference = 0.0
    cases: list[tuple[str, int, Callable[[], object]]] = [
        ("`psql \\copy` of the same rows", count, lambda: psql_copy(server, file)),
        ("snapshot", count, lambda: applied(None, parts)),
        ("stream: inserts", count, lambda: applied(None, cut(batch, Op.INSERT, set_rows))),
        ("stream: updates", count, lambda: applied(batch, cut(newer, Op.UPDATE, set_rows))),
        ("stream: deletes", count, lambda: applied(batch, cut(gone, Op.DELETE, set_rows))),
        ("100 inserts a set", small, lambda: applied(None, cut(batch, Op.INSERT, 100, small))),
        ("10 updates a set", small, lambda: applied(batch, cut(newer, Op.UPDATE, 10, small))),
        ("1 insert a set", small, lambda: applied(None, cut(batch, Op.INSERT, 1, small))),
    ]
    samples: dict[str, list[tuple[float, float, float]]] = {name: [] for name, _, _ in cases}
    for _ in range(runs):
        for name, _, case in cases:
            result = case()
            samples[name].append(await result if asyncio.iscoroutine(result) else result)  # type: ignore[arg-type]
    for name, size, _ in cases:
        tell(f"apply, {name}: rows/s", [size / each[0] for each in samples[name]])
        seconds, ours, servers = (statistics.median(column) for column in zip(*samples[name], strict=True))
        reference = reference or size / seconds
        share = f"{size / seconds / reference:.2f}" if size == count else ""
        spent = f"{servers / size * 1e6:.2f}" if servers else "not measured"
        print(f"| {name} | {size / seconds:,.0f} | {share} | {ours / size * 1e6:.2f} | {spent} |")


async def thresholds(server: postgres.PostgresServer, runs: int) -> None:
    """Where COPY overtakes single rows: milliseconds of CPU (ours and the server's) a set, and elapsed ones."""
    bench = Bench(server)
    batch, newer = rows(0, 20_000, 1), rows(0, 20_000, 2)
    print("| rows a set | inserts singly | by COPY | updates singly | staged |\n|---|---|---|---|---|")
    for size in (1, 10, 20, 50, 100, 200, 400):
        cells = []
        for of, op, held in ((batch, Op.INSERT, None), (newer, Op.UPDATE, batch)):
            for singly in (10**6, 0):
                delivery.INSERTS_SINGLY_MAX = delivery.CHANGES_SINGLY_MAX = singly
                count = min(100, 20_000 // size)
                sets = [whole(of.slice(number * size, size), op, 1000 + number) for number in range(count)]
                taken = [await bench.measure(await bench.fresh(held), sets) for _ in range(runs)]
                wall = statistics.median(seconds for seconds, _, _ in taken) / count * 1000
                spent = statistics.median(ours + servers for _, ours, servers in taken) / count * 1000
                cells.append(f"{spent:.2f} ({wall:.2f})")
        print(f"| {size} | " + " | ".join(cells) + " |", flush=True)


def servers(fsync: bool) -> Iterator[tuple[postgres.PostgresServer, Path]]:
    folder = Path(tempfile.mkdtemp(prefix="pm-bench-"))
    folder.chmod(0o755)
    settings = {**SETTINGS, "fsync": "on" if fsync else "off"}
    server = postgres.PostgresServer(folder, processes.free_port(), settings=settings)
    server.create()
    server.start()
    try:
        yield server, folder
    finally:
        server.stop(immediate=True)
        shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--set-rows", type=int, default=20_000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--thresholds", action="store_true", help="measure where COPY overtakes single rows instead")
    parser.add_argument("--no-fsync", action="store_true")
    options = parser.parse_args()
    for server, folder in servers(not options.no_fsync):
        if options.thresholds:
            asyncio.run(thresholds(server, options.runs))
        else:
            asyncio.run(run(server, folder, options.rows, options.runs, options.set_rows))


if __name__ == "__main__":
    main()
