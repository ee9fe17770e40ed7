"""How fast a table is copied from one PostgreSQL to another, against `psql COPY … | psql COPY` of the same rows.

`uv run python -m bench.snapshot [--rows N] [--runs N] [--chunk-rows N] [--parallelism N]`: two servers of their own with fsync
on, one table of 8 columns with a primary key on both ends, a real worker process with the buffer `direct`. The two take
turns; medians are printed with the CPU time of every process for a row. Ours is timed from the worker's first sign that it
copies to the table being settled, so it includes what makes the copy resumable; the start of the processes is left out.
"""

import argparse
import asyncio
import os
import resource
import statistics
import subprocess
import time
from pathlib import Path
from typing import NamedTuple

import psutil
import psycopg
from bench.pairs import ROWS, TABLE, Pair, Pipeline
from bench.summary import tell
from tests.dataplane.worker.processes import document

from contracts import v2
from contracts.v2 import BufferType, Phase, RunState
from pointsman.local import postgres

DATABASE = BufferType.DIRECT.value


class Taken(NamedTuple):
    """Seconds, and CPU seconds: of whoever moves the rows, of the source's server and of the destination's."""

    seconds: float
    mover: float
    source: float
    destination: float


class CopyPipeline(Pipeline):
    """A pipeline whose tables are copied as the benchmark was asked to."""

    snapshot = v2.SnapshotSettings()

    def _document(self, state: RunState) -> v2.PipelineDocument:
        self._generation += 1
        pipeline = document(["public.bench"], run=state, generation=self._generation)
        source = v2.PipelineSource(connection="shop", tables=["public.bench"], snapshot=self.snapshot)
        return v2.PipelineDocument(
            **{name: getattr(pipeline, name) for name in pipeline.__struct_fields__ if name != "source"}, source=source
        )


def cpu_of(server: postgres.PostgresServer) -> float:
    """CPU seconds of a server so far: of its processes, and of those that have ended."""
    pid = int((server.folder / "data" / "postmaster.pid").read_text().split()[0])
    ticks = os.sysconf("SC_CLK_TCK")
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    spent = sum(int(field) for field in fields[11:15]) / ticks
    for child in psutil.Process(pid).children():
        try:
            times = child.cpu_times()
        except psutil.NoSuchProcess:
            continue
        spent += times.user + times.system
    return spent


def fresh(pair: Pair) -> None:
    """Make the destination's database anew, with the empty table."""
    with pair.connect(pair.warehouse) as connection:
        connection.execute(f"DROP DATABASE IF EXISTS {DATABASE} WITH (FORCE)")
        connection.execute(f"CREATE DATABASE {DATABASE}")
    with pair.connect(pair.warehouse, DATABASE) as connection:
        connection.execute(TABLE)
        connection.execute("CHECKPOINT")


def psql(pair: Pair) -> Taken:
    """Copy with two psql and a pipe."""
    fresh(pair)
    program = [str(pair.shop.binaries / "psql"), "-X", "-q"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    source, destination, start = cpu_of(pair.shop), cpu_of(pair.warehouse), time.perf_counter()
    with subprocess.Popen(
        [*program, pair.shop.conninfo(), "-c", "COPY bench TO STDOUT"], stdout=subprocess.PIPE
    ) as giver:
        subprocess.run(
            [*program, pair.warehouse.conninfo(DATABASE), "-c", "COPY bench FROM STDIN"], stdin=giver.stdout, check=True
        )
    seconds = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    ours = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Taken(seconds, ours, cpu_of(pair.shop) - source, cpu_of(pair.warehouse) - destination)


async def pointsman(pair: Pair, rows: int) -> Taken:
    """Copy with a pipeline that is made for it."""
    fresh(pair)
    pipeline = CopyPipeline(pair, BufferType.DIRECT)
    (worker,) = pipeline.workers
    await worker.start(pipeline._document(RunState.RUNNING))  # noqa: SLF001 - the benchmark's own class
    await worker.until(lambda status: status.phase in (Phase.SNAPSHOTTING, Phase.STREAMING))
    assert worker.process is not None
    process = psutil.Process(worker.process.pid)
    before, source, destination = process.cpu_times(), cpu_of(pair.shop), cpu_of(pair.warehouse)
    start = time.perf_counter()
    await worker.until_phase(Phase.STREAMING, 1)
    seconds, after = time.perf_counter() - start, process.cpu_times()
    ours = after.user + after.system - before.user - before.system
    taken = Taken(seconds, ours, cpu_of(pair.shop) - source, cpu_of(pair.warehouse) - destination)
    with pair.connect(pair.warehouse, DATABASE) as connection:
        assert connection.execute("SELECT count(*) FROM bench").fetchone() == (rows,)
    await pipeline.run(RunState.PAUSED)
    await pipeline.stop()
    with pair.connect(pair.shop) as connection:
        connection.execute("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots")
        for (name,) in connection.execute("SELECT pubname FROM pg_publication").fetchall():
            connection.execute(psycopg.sql.SQL("DROP PUBLICATION {}").format(psycopg.sql.Identifier(str(name))))
    return taken


async def run(rows: int, runs: int) -> None:
    """Measure, and print a table."""
    with Pair() as pair:
        with pair.connect(pair.shop) as connection:
            connection.execute(TABLE)
            connection.execute(ROWS.format(first=1, last=rows))
            connection.execute("VACUUM ANALYZE bench")
            connection.execute("CHECKPOINT")
        samples: dict[str, list[Taken]] = {"`psql COPY … | psql COPY`": [], "Pointsman, `direct`": []}
        theirs, ours = samples.values()
        for _ in range(runs):
            theirs.append(psql(pair))
            ours.append(await pointsman(pair, rows))
    print(f"{rows} rows of 8 columns, medians of {runs} in turns; CPU in microseconds a row\n")
    print("| what | rows/s | of psql | mover's CPU | source's CPU | destination's CPU |\n|---|---|---|---|---|---|")
    ratios = [psqls.seconds / mine.seconds for psqls, mine in zip(theirs, ours, strict=True)]
    tell("snapshot direct: rows/s of psql", ratios, least=0.9)
    reference = 0.0
    for name, taken in samples.items():
        seconds, mover, source, destination = (statistics.median(column) for column in zip(*taken, strict=True))
        reference = reference or seconds
        spent = " | ".join(f"{each / rows * 1e6:.2f}" for each in (mover, source, destination))
        print(f"| {name} | {rows / seconds:,.0f} | {reference / seconds:.2f} | {spent} |")


def main() -> None:
    """Read the arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--chunk-rows", type=int, default=v2.SnapshotSettings().chunk_rows)
    parser.add_argument("--parallelism", type=int, default=v2.SnapshotSettings().parallelism)
    arguments = parser.parse_args()
    CopyPipeline.snapshot = v2.SnapshotSettings(parallelism=arguments.parallelism, chunk_rows=arguments.chunk_rows)
    asyncio.run(run(arguments.rows, arguments.runs))


if __name__ == "__main__":
    main()
