"""Debezium's embedded engine beside ours, from the same rows of the same server: discarding, and into PostgreSQL.

    uv run python -m bench.debezium [--runs 5] [--extra] [--into discard|postgres|both] [--results FILE] [--seconds-max N]

Needs Java 17 and Maven, which gets Debezium and builds the small program in bench/debezium/. One table of 8 columns.

`discard`: as in bench.capture every run reads a copy of one slot. `postgres`: as in bench.pipeline rows are committed
while all are stopped, and then one after the other goes on until the last row is visible at its destination; Debezium's
own JDBC sink task gets the records from the engine without Kafka between. Ours is timed from before it connects,
Debezium only for the last three fifths of its rows: neither the start of the virtual machine, nor that of the engine, nor
what is spent until its code is compiled counts.

Contenders take turns. With --results what was measured is kept in a file, and the same command goes on where it ended;
--seconds-max starts no run after so long.
"""

import argparse
import asyncio
import json
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import psycopg
from bench import capture
from bench.pairs import ROWS, TABLE, Pair, Pipeline, cpu_between, cpu_seconds
from bench.summary import tell

from contracts.v2 import BufferType, RunState
from dataplane.sources.postgres.opening import object_name
from pointsman.local import postgres, processes

PROJECT = Path(__file__).with_name("debezium")
OURS = "pointsman"
JAVA_RELEASE_MIN = 17
ROWS_DISCARDED = 1_000_000
ROWS_DELIVERED = 200_000
WARMUP_SHARE = 0.4
"""Of each run's rows: the virtual machine compiles meanwhile, and Debezium is timed for the rest only."""
SAMPLE_SECONDS = 0.1
PER_TRANSACTION = 1_000
RUN_SECONDS_MAX = 300

Measures = dict[str, float]


@dataclass(frozen=True)
class Contender:
    """One way to run Debezium: what becomes of its records, and how much memory its virtual machine may use."""

    name: str
    into: str
    heap: str | None
    """Its limit; None leaves it to the virtual machine, which takes up to a quarter of the computer's memory."""
    sink: tuple[tuple[str, str], ...] = ()
    extra: bool = False


DISCARDING = (
    Contender("debezium, heap as it comes", "discard", None),
    Contender("debezium, heap 128 MB", "discard", "128m"),
    Contender("debezium, to JSON, heap as it comes", "json", None, extra=True),
)
UNNEST = (("dialect.postgres.unnest.insert.enabled", "true"),)
DELIVERING = (
    Contender("debezium, JDBC batches, heap 1 GB", "jdbc", "1g"),
    Contender("debezium, JDBC UNNEST, heap 1 GB", "jdbc", "1g", UNNEST),
    Contender("debezium, JDBC UNNEST, heap 256 MB", "jdbc", "256m", UNNEST, extra=True),
)

ENGINE = {
    "name": "bench",
    "topic.prefix": "bench",
    "connector.class": "io.debezium.connector.postgresql.PostgresConnector",
    "plugin.name": "pgoutput",
    "publication.autocreate.mode": "disabled",
    "slot.drop.on.stop": "false",
    "snapshot.mode": "no_data",
    "offset.storage": "org.apache.kafka.connect.storage.MemoryOffsetBackingStore",
    "offset.flush.interval.ms": "1000",
    "max.batch.size": "8192",
    "max.queue.size": "32768",
    "poll.interval.ms": "10",
    "tombstones.on.delete": "false",
}
SINK = {
    "connector.class": "io.debezium.connector.jdbc.JdbcSinkConnector",
    "name": "bench",
    "topics": "bench",
    "insert.mode": "upsert",
    "primary.key.mode": "record_key",
    "schema.evolution": "none",
    "batch.size": "8192",
}


class Results:
    """What was measured so far, by contest and contender, kept in a file if there is one."""

    def __init__(self, file: Path | None, seconds_max: float) -> None:
        self._file = file
        self._end = time.monotonic() + seconds_max
        self.runs: dict[str, dict[str, list[Measures]]] = {}
        if file is not None and file.exists():
            self.runs = json.loads(file.read_text())

    def of(self, contest: str, name: str) -> list[Measures]:
        return self.runs.setdefault(contest, {}).setdefault(name, [])

    def add(self, contest: str, name: str, measures: Measures) -> None:
        self.of(contest, name).append(measures)
        if self._file is not None:
            self._file.write_text(json.dumps(self.runs, indent=1))

    @property
    def late(self) -> bool:
        return time.monotonic() > self._end


def build() -> None:
    """Get Debezium and build its main.

    Raises:
        SystemExit: Java or Maven is missing or too old, or Maven failed; with what to do.
    """
    for tool in ("java", "mvn"):
        if shutil.which(tool) is None:
            raise SystemExit(f"{tool} is not installed: this benchmark needs Java {JAVA_RELEASE_MIN} and Maven")
    version = subprocess.run(
        ["java", "-XshowSettings:properties", "-version"], capture_output=True, text=True, check=True
    )
    told = [line.split("=")[1] for line in version.stderr.splitlines() if "java.specification.version =" in line]
    if not told or float(told[0]) < JAVA_RELEASE_MIN:
        raise SystemExit(f"Java {JAVA_RELEASE_MIN} or newer is needed, not {''.join(told).strip() or 'this one'}")
    goals = ["package", "dependency:copy-dependencies", "-Dmdep.overWriteReleases=false"]
    made = subprocess.run(["mvn", "-B", "-ntp", "-q", "-f", str(PROJECT / "pom.xml"), *goals])
    if made.returncode:
        raise SystemExit("Maven could not get or build Debezium: see above")


def command(contender: Contender, folder: Path, settings: dict[str, str]) -> list[str]:
    """Write the contender's settings, and return how it is started."""
    file = folder / "debezium.properties"
    sink = {f"sink.{name}": value for name, value in {**SINK, **dict(contender.sink)}.items()}
    lines = {**ENGINE, **sink, **settings, "bench.into": contender.into}
    file.write_text("".join(f"{name}={value}\n" for name, value in lines.items()))
    path = f"{PROJECT / 'target' / 'debezium-1.jar'}:{PROJECT / 'target' / 'dependency'}/*"
    java = ["java", "-Dorg.slf4j.simpleLogger.defaultLogLevel=error"]
    java.append("-Dorg.jboss.logging.provider=slf4j")
    if contender.heap is not None:
        java.append(f"-Xmx{contender.heap}")
    return [*java, "-cp", path, "bench.Peer", str(file)]


def source_settings(
    server: postgres.PostgresServer, database: str, table: str, slot: str, publication: str
) -> dict[str, str]:
    return {
        "database.hostname": "127.0.0.1",
        "database.port": str(server.port),
        "database.user": "postgres",
        "database.password": "none",
        "database.dbname": database,
        "table.include.list": table,
        "slot.name": slot,
        "publication.name": publication,
    }


def rows_settings(rows: int) -> dict[str, str]:
    return {"bench.rows": str(rows), "bench.warmup": str(int(rows * WARMUP_SHARE))}


def discard(results: Results, rows: int, runs: int, contenders: Sequence[Contender]) -> None:
    """The contest into nothing."""
    folder = Path(tempfile.mkdtemp(prefix="pm-bench-"))
    server = postgres.PostgresServer(folder / "server", processes.free_port(), settings=capture.SETTINGS)
    server.create()
    server.start()
    try:
        _discard(server, folder, results, rows, runs, contenders)
    finally:
        server.stop(immediate=True)
        shutil.rmtree(folder, ignore_errors=True)


def _discard(
    server: postgres.PostgresServer,
    folder: Path,
    results: Results,
    rows: int,
    runs: int,
    contenders: Sequence[Contender],
) -> None:
    pipeline = str(uuid4())
    publication = object_name(pipeline)
    with psycopg.connect(server.conninfo(), autocommit=True) as connection:
        connection.execute("CREATE DATABASE bench")
    conninfo = server.conninfo("bench")
    start = capture.prepare(conninfo, capture.SHAPES["narrow"], publication, rows)

    def ours(slot: str) -> Measures:
        run = capture.ours(server, conninfo, slot, pipeline, rows, start)
        told = {"rows": rows, "seconds": run.seconds, "cpu": run.client_seconds, "memory": run.memory_bytes}
        return _measures(rows, run.walsender_seconds, told)

    def peer(contender: Contender, slot: str) -> Measures:
        settings = source_settings(server, "bench", capture.TABLE, slot, publication) | rows_settings(rows)
        run, output = capture.watched(command(contender, folder, settings), conninfo, slot)
        told = json.loads(output.splitlines()[-1])
        return _measures(rows, run.walsender_seconds, told)

    def turn(name: str, work: Callable[[str], Measures]) -> None:
        slot = f"{publication}_{uuid4().hex[:8]}"
        capture.copy_slot(conninfo, "base", slot)
        results.add("discard", name, work(slot))
        capture.drop_slot(conninfo, slot)

    contest: dict[str, Callable[[str], Measures]] = {OURS: ours}
    for each in contenders:
        contest[each.name] = lambda slot, each=each: peer(each, slot)  # type: ignore[misc]
    take_turns(results, "discard", list(contest), runs, lambda name: turn(name, contest[name]))


def take_turns(results: Results, contest: str, names: list[str], runs: int, turn: Callable[[str], None]) -> None:
    """Let those go on that have the fewest runs, in an order that changes, until all have theirs or time is up."""
    while not results.late:
        counts = {name: len(results.of(contest, name)) for name in names}
        fewest = min(counts.values())
        if fewest >= runs:
            return
        shift = fewest % len(names)
        turn(next(name for name in names[shift:] + names[:shift] if counts[name] == fewest))


def _measures(rows: int, source_seconds: float, told: Measures) -> Measures:
    """What the table shows, of what a run told: rows, its seconds and CPU seconds for them, and its peak of memory."""
    return {
        "rows_per_second": told["rows"] / told["seconds"],
        "client_us": told["cpu"] / told["rows"] * 1e6,
        "source_us": source_seconds / rows * 1e6,
        "memory_mib": told["memory"] / (1 << 20),
    }


def deliver(results: Results, rows: int, runs: int, contenders: Sequence[Contender]) -> None:
    """The contest into PostgreSQL."""
    with Pair() as pair:
        asyncio.run(Delivery(pair, results, rows, runs, contenders).run())


class Delivery:
    """Ours and Debezium's, each into a database of its own."""

    def __init__(self, pair: Pair, results: Results, rows: int, runs: int, contenders: Sequence[Contender]) -> None:
        self.pair = pair
        self.results = results
        self.rows = rows
        self.runs = runs
        self.loaded = 0
        self.pipeline = Pipeline(pair, BufferType.DIRECT)
        self.contenders = {each.name: each for each in contenders}
        self.databases = {name: f"debezium{number}" for number, name in enumerate(self.contenders)}

    async def run(self) -> None:
        with self.pair.connect(self.pair.shop) as shop, self.pair.connect(self.pair.warehouse) as warehouse:
            shop.execute(TABLE)
            shop.execute("CREATE PUBLICATION debezium FOR TABLE bench")
            for database in (self.pipeline.kind.value, *self.databases.values()):
                warehouse.execute(f"CREATE DATABASE {database}")
        for database in self.databases.values():
            with self.pair.connect(self.pair.warehouse, database) as warehouse:
                warehouse.execute(TABLE)
        await self.pipeline.start()
        try:
            names = [OURS, *self.databases]
            for _ in range(self.runs):
                if self.results.late or all(len(self.results.of("postgres", each)) >= self.runs for each in names):
                    return
                await self.round(names)
        finally:
            await self.pipeline.stop()

    async def round(self, names: list[str]) -> None:
        """Commit the same rows for all, then let each go on by itself."""
        await self.pipeline.run(RunState.PAUSED)
        with self.pair.connect(self.pair.shop) as shop:
            for database in self.databases.values():
                shop.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", [database])
            first = self.loaded + 1
            self.loaded += self.rows
            for start in range(first, self.loaded + 1, PER_TRANSACTION):
                shop.execute(ROWS.format(first=start, last=min(start + PER_TRANSACTION - 1, self.loaded)))
            shop.execute("CHECKPOINT")
        shift = len(self.results.of("postgres", OURS)) % len(names)
        for name in names[shift:] + names[:shift]:
            with self.pair.connect(self.pair.warehouse) as warehouse:
                warehouse.execute("CHECKPOINT")
            measures = await (self.ours() if name == OURS else asyncio.to_thread(self.peer, name))
            self.results.add("postgres", name, measures)

    async def ours(self) -> Measures:
        pids, servers = self.pipeline.pids(), self._servers()
        with self.pair.connect(self.pair.warehouse, self.pipeline.kind.value) as warehouse:
            before, started = cpu_seconds(pids, servers), time.perf_counter()
            await self.pipeline.run(RunState.RUNNING)
            while not self._visible(warehouse):  # noqa: ASYNC110 - the server gives no event
                await asyncio.sleep(0.01)
            seconds = time.perf_counter() - started
            spent = cpu_between(before, cpu_seconds(pids, servers))
        ((worker, pid),) = pids.items()
        told = {"rows": self.rows, "seconds": seconds, "cpu": spent[worker], "memory": _peak_bytes(pid)}
        return self._measures(told, spent)

    def peer(self, name: str) -> Measures:
        database = self.databases[name]
        settings = source_settings(self.pair.shop, "postgres", "public.bench", database, "debezium") | {
            **rows_settings(self.rows),
            "sink.collection.name.format": "bench",
            "sink.connection.username": "postgres",
            "sink.connection.password": "none",
            "sink.connection.url": (
                f"jdbc:postgresql://127.0.0.1:{self.pair.warehouse.port}/{database}?reWriteBatchedInserts=true"
            ),
        }
        before = cpu_seconds({}, self._servers())
        seen, told = self._watched(command(self.contenders[name], self.pair.folder, settings))
        spent = cpu_between(before, seen)
        with self.pair.connect(self.pair.warehouse, database) as warehouse:
            # It says that it is done once its sink task has returned, which is after the commit.
            assert warehouse.execute("SELECT count(*) FROM bench").fetchone() == (self.loaded,), name
        capture.drop_slot(self.pair.shop.conninfo(), database)
        return self._measures(told, spent)

    def _watched(self, started: list[str]) -> tuple[dict[int, tuple[str, float]], Measures]:
        """Run it to its end. Return the servers' CPU times, also of backends that went with it, and what it told."""
        end = time.monotonic() + RUN_SECONDS_MAX
        seen: dict[int, tuple[str, float]] = {}
        with subprocess.Popen(started, stdout=subprocess.PIPE, text=True) as child:
            while child.poll() is None:
                seen |= cpu_seconds({}, self._servers())
                time.sleep(SAMPLE_SECONDS)
                if time.monotonic() > end:
                    child.kill()
            assert child.stdout is not None
            output = child.stdout.read()
        if child.returncode:
            raise RuntimeError(f"{started[-1]} ended with {child.returncode}")
        return seen | cpu_seconds({}, self._servers()), json.loads(output.splitlines()[-1])

    def _servers(self) -> dict[str, postgres.PostgresServer]:
        return {"source": self.pair.shop, "destination": self.pair.warehouse}

    def _visible(self, warehouse: psycopg.Connection[tuple[object, ...]]) -> bool:
        return warehouse.execute("SELECT 1 FROM bench WHERE id = %s", [self.loaded]).fetchone() is not None

    def _measures(self, told: Measures, spent: dict[str, float]) -> Measures:
        measures = _measures(self.rows, spent["source"], told)
        return measures | {"destination_us": spent["destination"] / self.rows * 1e6}


def _peak_bytes(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) << 10


def report(results: Results) -> None:
    """Print a table of medians for each contest, and the ratios to each of Debezium's."""
    for contest, runs in results.runs.items():
        complete = {name: each for name, each in runs.items() if each}
        if OURS not in complete:
            continue
        medians = {
            name: {key: statistics.median(run[key] for run in each) for key in each[0]}
            for name, each in complete.items()
        }
        own = medians[OURS]
        print(f"\n{contest}: medians of {min(len(each) for each in complete.values())} runs in turn")
        print("| what | rows/s | ours / its | its CPU, µs a row | servers' CPU, µs a row | peak memory | ours / its |")
        print("|---|---|---|---|---|---|---|")
        for name, each in complete.items():
            if name != OURS:
                pairs = list(zip(complete[OURS], each, strict=False))
                rates = [mine["rows_per_second"] / its["rows_per_second"] for mine, its in pairs]
                tell(f"debezium, {contest}, {name}: our rows/s of its", rates, least=3)
                memory_of = [mine["memory_mib"] / its["memory_mib"] for mine, its in pairs]
                tell(f"debezium, {contest}, {name}: our memory of its", memory_of, most=0.25)
        for name, each in medians.items():
            servers = ", ".join(f"{key[:-3]} {each[key]:.2f}" for key in ("source_us", "destination_us") if key in each)
            rate, memory = each["rows_per_second"], each["memory_mib"]
            ratios = (
                ("", "")
                if name == OURS
                else (f"{own['rows_per_second'] / rate:.2f}", f"{own['memory_mib'] / memory:.2f}")
            )
            print(
                f"| {name} | {rate:,.0f} | {ratios[0]} | {each['client_us']:.2f} | {servers} "
                f"| {memory:.0f} MiB | {ratios[1]} |"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--rows", type=int, help=f"{ROWS_DISCARDED} or {ROWS_DELIVERED} by default")
    parser.add_argument("--into", choices=("discard", "postgres", "both"), default="both")
    parser.add_argument("--results", type=Path, help="keep what was measured here, and go on from it")
    parser.add_argument("--seconds-max", type=float, default=float("inf"), help="start no run after so long")
    parser.add_argument("--extra", action="store_true", help="also JSON and another heap")
    options = parser.parse_args()
    build()

    def wanted(contenders: Sequence[Contender]) -> list[Contender]:
        return [each for each in contenders if options.extra or not each.extra]

    results = Results(options.results, options.seconds_max)
    if options.into in ("discard", "both"):
        discard(results, options.rows or ROWS_DISCARDED, options.runs, wanted(DISCARDING))
    if options.into in ("postgres", "both") and not results.late:
        deliver(results, options.rows or ROWS_DELIVERED, options.runs, wanted(DELIVERING))
    report(results)


if __name__ == "__main__":
    main()
