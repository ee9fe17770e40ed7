"""What `consistency: key` gains over one connection: the same sets, applied by the PostgreSQL sink in 1, 2 and 4 lanes.

`uv run python -m bench.lanes [--rows N] [--runs N]`: a server of its own with fsync on, one table of 8 columns, inserts and
then updates in sets of 20,000 rows that are ready in memory. Three destinations: the server itself; the same behind a proxy
that lets each piece of 64 kB pass 2 ms later, on each connection; and one whose rows each wait in a trigger, as
rows do that wait for a disk. Prints medians, as ratios to one lane of the same run, with the CPU time of both ends for a row.
"""

import argparse
import asyncio
import multiprocessing
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection

import psycopg
from bench.apply import SOURCE, Bench, cpu_of, rows, servers, whole
from tests.chaos.proxy import Network

from contracts.v2 import Consistency, PipelineSink
from dataplane.batch import Op
from dataplane.sinks.ownership import Ownership
from dataplane.sinks.postgres import PostgresSink
from pointsman.local import postgres

LANES = (1, 2, 4)
DELAY_SECONDS = 0.002
BACKENDS = "SELECT pid FROM pg_stat_activity WHERE application_name = 'pointsman sink bench'"
WAITS = """CREATE OR REPLACE FUNCTION waits() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    PERFORM pg_sleep(0.0001); RETURN NEW; END $$;
    CREATE TRIGGER waits BEFORE INSERT OR UPDATE ON public.bench FOR EACH ROW EXECUTE FUNCTION waits()"""

Sample = tuple[float, float, float]


def _slow(port: int, told: Connection) -> None:
    network = Network()
    proxy = network.proxy(port)
    proxy.slow(DELAY_SECONDS)
    told.send(proxy.port)
    told.recv()
    network.close()


@contextmanager
def slowed(port: int) -> Iterator[int]:
    """A process of its own that passes everything on to `port`, later. Gives the port to connect to."""
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_slow, args=(port, there), daemon=True)
    process.start()
    try:
        yield here.recv()
    finally:
        here.send(None)
        process.join(10)


class LaneBench(Bench):
    """One server, reached on `port`."""

    def __init__(self, server: postgres.PostgresServer, port: int, *, waits: bool) -> None:
        super().__init__(server, port)
        self._waits = waits

    async def apply(self, lanes: int, count: int, set_rows: int) -> dict[str, Sample]:
        """Inserts and then updates of `count` rows: seconds, our CPU seconds, the server's."""
        settings = PipelineSink(
            connection="bench",
            consistency=Consistency.KEY if lanes > 1 else Consistency.TRANSACTION,
            parallelism=lanes,
        )
        sink = PostgresSink(
            self.document, None, pipeline_id="bench", ownership=Ownership.of("bench"), settings=settings
        )
        await sink.open()
        await sink.begin(SOURCE)
        await sink.apply(self.snapshot(rows(0, 1, 0).slice(0, 0)))
        with psycopg.connect(self.server.conninfo(), autocommit=True) as connection:
            if self._waits:
                connection.execute("DROP TRIGGER IF EXISTS waits ON public.bench")
                connection.execute(WAITS)
            # What connects and learns the table is not measured: the first sets do both.
            first = rows(count, 2 * set_rows, 3)
            for place in (0, set_rows):
                await sink.apply(whole(first.slice(place, set_rows), Op.INSERT, 1000 + place))
            connection.execute("CHECKPOINT")
            taken: dict[str, Sample] = {}
            for number, (name, op) in enumerate((("inserts", Op.INSERT), ("updates", Op.UPDATE))):
                batch = rows(0, count, number)
                pids = [pid for (pid,) in connection.execute(BACKENDS).fetchall()]
                servers_before, ours, start = sum(map(cpu_of, pids)), time.process_time(), time.perf_counter()
                for place in range(0, count, set_rows):
                    lsn = 10_000_000 * (number + 1) + place
                    await sink.apply(whole(batch.slice(place, min(set_rows, count - place)), op, lsn))
                seconds, own = time.perf_counter() - start, time.process_time() - ours
                taken[name] = (seconds, own, sum(map(cpu_of, pids)) - servers_before)
        await sink.close()
        return taken


async def measure(bench: LaneBench, name: str, count: int, set_rows: int, runs: int) -> None:
    samples: dict[tuple[int, str], list[Sample]] = {}
    for run in range(runs + 1):
        order = LANES[run % len(LANES) :] + LANES[: run % len(LANES)]
        for lanes in order:
            for what, sample in (await bench.apply(lanes, count, set_rows)).items():
                if run:  # the first run warms caches
                    samples.setdefault((lanes, what), []).append(sample)
    for what in ("inserts", "updates"):
        one = [seconds for seconds, _, _ in samples[1, what]]
        for lanes in LANES:
            seconds, ours, theirs = zip(*samples[lanes, what], strict=True)
            ratio = statistics.median(before / now for before, now in zip(one, seconds, strict=True))
            rate = count / statistics.median(seconds)
            spent = " | ".join(f"{statistics.median(each) / count * 1e6:.2f}" for each in (ours, theirs))
            print(f"| {name} | {what} | {lanes} | {rate:,.0f} | {ratio:.2f} | {spent} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--set-rows", type=int, default=20_000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--only", choices=("itself", "slowed", "waits"))
    options = parser.parse_args()
    print("| destination | what | lanes | rows/s | of one lane | our CPU, µs a row | server's CPU, µs a row |")
    print("|---|---|---|---|---|---|---|")
    for server, _ in servers(fsync=True):
        with slowed(server.port) as port:
            cases = (
                ("itself", "itself", server.port, options.rows, options.set_rows),
                ("slowed", "2 ms away", port, options.rows, options.set_rows),
                ("waits", "rows that wait", server.port, options.rows // 25, options.set_rows // 10),
            )
            for key, name, at, count, set_rows in cases:
                if options.only in (None, key):
                    bench = LaneBench(server, at, waits=key == "waits")
                    asyncio.run(measure(bench, name, count, set_rows, options.runs))


if __name__ == "__main__":
    main()
