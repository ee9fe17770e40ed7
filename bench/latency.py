"""How long a commit at the source takes until it is visible at the destination, with the machine's own noise beside it.

`uv run python -m bench.latency [--rates 200 500] [--seconds N] [--runs N]`: two fresh servers with fsync on. One
connection commits single rows at a steady rate; another asks the destination for the newest row all the time. A row's
latency runs from the return of its commit until it was seen. The noise is measured in turn with it, by the same two
loops without a pipeline: the rows are committed at the destination itself, from the sending of the commit until the row
was seen. Prints medians of the runs' p50 and p99 in milliseconds.
"""

import argparse
import asyncio
import statistics
import threading
import time

from bench.pairs import TABLE, Pair, Pipeline
from bench.summary import tell

from contracts.v2 import BufferType
from pointsman.local import postgres

ROW = "INSERT INTO bench VALUES (%s, 1, 'customer', 1.5, now(), true, NULL, NULL)"
NOISE = "noise"


class Watcher(threading.Thread):
    """Notes when each row was first seen at the destination."""

    def __init__(self, pair: Pair, database: str) -> None:
        super().__init__()
        self._pair = pair
        self._database = database
        self.seen: dict[int, float] = {}
        self.newest = 0
        self.stopping = False

    def run(self) -> None:
        with self._pair.connect(self._pair.warehouse, self._database) as connection:
            while not self.stopping:
                row = connection.execute("SELECT coalesce(max(id), 0) FROM bench").fetchone()
                now = time.perf_counter()
                newest = int(str(row[0])) if row else 0
                for number in range(self.newest + 1, newest + 1):
                    self.seen[number] = now
                self.newest = max(self.newest, newest)
                time.sleep(0.0002)


def commit_steadily(
    pair: Pair, server: postgres.PostgresServer, database: str, first: int, rate: int, seconds: float
) -> dict[int, tuple[float, float]]:
    """Commit rows from number `first` on; return when each commit was sent and when it returned."""
    commits: dict[int, tuple[float, float]] = {}
    with pair.connect(server, database) as connection:
        start = time.perf_counter()
        for number in range(int(rate * seconds)):
            time.sleep(max(0.0, start + number / rate - time.perf_counter()))
            sent = time.perf_counter()
            connection.execute(ROW, [first + number])
            commits[first + number] = (sent, time.perf_counter())
    return commits


def measure_once(pair: Pair, name: str, first: int, rate: int, seconds: float) -> list[float]:
    """Return the latencies of one run, in milliseconds, sorted."""
    watcher = Watcher(pair, name)
    watcher.newest = first - 1
    watcher.start()
    server, database = (pair.warehouse, NOISE) if name == NOISE else (pair.shop, "postgres")
    commits = commit_steadily(pair, server, database, first, rate, seconds)
    while watcher.newest < max(commits):
        time.sleep(0.01)
    watcher.stopping = True
    watcher.join()
    sent_or_returned = 0 if name == NOISE else 1
    return sorted((watcher.seen[number] - times[sent_or_returned]) * 1e3 for number, times in commits.items())


async def measure(rates: list[int], seconds: float, runs: int) -> None:
    with Pair() as pair:
        pipelines = {kind.value: Pipeline(pair, kind) for kind in BufferType}
        with pair.connect(pair.shop) as shop, pair.connect(pair.warehouse) as warehouse:
            shop.execute(TABLE)
            for name in (NOISE, *pipelines):
                warehouse.execute(f"CREATE DATABASE {name}")
        with pair.connect(pair.warehouse, NOISE) as warehouse:
            warehouse.execute(TABLE)
        first = 1
        try:
            for rate in rates:
                results: dict[str, list[list[float]]] = {name: [] for name in (NOISE, *pipelines)}
                for _ in range(runs):
                    for name, latencies in results.items():
                        if name != NOISE:
                            await pipelines[name].start()
                        latencies.append(await asyncio.to_thread(measure_once, pair, name, first, rate, seconds))
                        first += int(rate * seconds)
                        if name != NOISE:
                            await pipelines[name].stop()
                report(rate, results)
        finally:
            for pipeline in pipelines.values():
                await pipeline.stop()


def report(rate: int, results: dict[str, list[list[float]]]) -> None:
    print(f"{rate} transactions/s")
    for name, runs in results.items():
        p50, p99 = (
            statistics.median(latencies[int(len(latencies) * share)] for latencies in runs) for share in (0.5, 0.99)
        )
        print(f"  {name:10s} p50 {p50:6.2f} ms  p99 {p99:6.2f} ms")
        aimed = name == "direct" and rate == 500
        for share, most in ((0.5, 10.0), (0.99, 50.0)):
            tell(
                f"latency {rate}/s {name}: p{share * 100:.0f}, ms",
                [latencies[int(len(latencies) * share)] for latencies in runs],
                most=most if aimed else None,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rates", type=int, nargs="+", default=[200, 500])
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    asyncio.run(measure(arguments.rates, arguments.seconds, arguments.runs))


if __name__ == "__main__":
    main()
