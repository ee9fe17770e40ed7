"""How fast a whole pipeline carries rows from PostgreSQL to PostgreSQL, against PostgreSQL's own subscription.

`uv run python -m bench.pipeline [--rows N] [--runs N] [--transaction ROWS]`: two fresh servers with fsync on, one table
of 8 columns, and a database of the destination for each contender. While all are stopped rows are committed to the
table; then one after the other goes on, and the time runs from that moment until the last row is visible at its
destination. So all read the same log, and their order changes with each run. Prints medians, and the CPU time of each
process for a row.
"""

import argparse
import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable

import psycopg
from bench.pairs import ROWS, TABLE, Pair, Pipeline, cpu_between, cpu_seconds
from bench.summary import tell

from contracts.v2 import BufferType, RunState

SUBSCRIPTION = "subscription"


class Contest:
    """Everything that takes part, and what was measured of it."""

    def __init__(self, pair: Pair, rows: int, per_transaction: int, kinds: list[BufferType]) -> None:
        self.pair = pair
        self.rows = rows
        self.per_transaction = per_transaction
        self.pipelines = {kind.value: Pipeline(pair, kind) for kind in kinds}
        self.names = [SUBSCRIPTION, *self.pipelines]
        self.loaded = 0
        self.seconds: dict[str, list[float]] = {name: [] for name in self.names}
        self.cpu: dict[str, list[dict[str, float]]] = {name: [] for name in self.names}

    async def prepare(self) -> None:
        with self.pair.connect(self.pair.shop) as shop, self.pair.connect(self.pair.warehouse) as warehouse:
            shop.execute(TABLE)
            shop.execute(f"CREATE PUBLICATION {SUBSCRIPTION} FOR TABLE bench")
            for name in self.names:
                warehouse.execute(f"CREATE DATABASE {name}")
        with self.pair.connect(self.pair.warehouse, SUBSCRIPTION) as warehouse:
            warehouse.execute(TABLE)
            warehouse.execute(
                f"CREATE SUBSCRIPTION {SUBSCRIPTION} CONNECTION '{self.pair.shop.conninfo()}' "
                f"PUBLICATION {SUBSCRIPTION} WITH (copy_data = false)"
            )
        for pipeline in self.pipelines.values():
            await pipeline.start()

    async def pause(self, name: str) -> None:
        if name in self.pipelines:
            await self.pipelines[name].run(RunState.PAUSED)
            return
        with self.pair.connect(self.pair.warehouse, SUBSCRIPTION) as warehouse:
            warehouse.execute(f"ALTER SUBSCRIPTION {SUBSCRIPTION} DISABLE")
        with self.pair.connect(self.pair.shop) as shop:
            query = "SELECT 1 FROM pg_replication_slots WHERE slot_name = %s AND active"
            while shop.execute(query, [SUBSCRIPTION]).fetchone():  # noqa: ASYNC110 - the server gives no event
                await asyncio.sleep(0.05)

    async def resume(self, name: str) -> None:
        if name in self.pipelines:
            await self.pipelines[name].run(RunState.RUNNING)
            return
        with self.pair.connect(self.pair.warehouse, SUBSCRIPTION) as warehouse:
            warehouse.execute(f"ALTER SUBSCRIPTION {SUBSCRIPTION} ENABLE")

    def load(self) -> None:
        """Commit rows, and let both servers write them out before anything is measured."""
        with self.pair.connect(self.pair.shop) as shop:
            for first in range(self.loaded + 1, self.loaded + self.rows + 1, self.per_transaction):
                last = min(first + self.per_transaction - 1, self.loaded + self.rows)
                if last == self.loaded + self.rows:
                    # As a server does every 15 s by itself: where a slot may restart. Without it, whoever confirms no
                    # more than its rows would read the rows of the run before again.
                    shop.execute("SELECT pg_log_standby_snapshot()")
                shop.execute(ROWS.format(first=first, last=last))
            shop.execute("CHECKPOINT")
        self.loaded += self.rows
        with self.pair.connect(self.pair.warehouse) as warehouse:
            warehouse.execute("CHECKPOINT")

    async def run(self, name: str) -> None:
        pids = self.pipelines[name].pids() if name in self.pipelines else {}
        servers = {"source server": self.pair.shop, "destination server": self.pair.warehouse}
        with self.pair.connect(self.pair.warehouse, name) as warehouse:
            before, started = cpu_seconds(pids, servers), time.perf_counter()
            await self.resume(name)
            while not _visible(warehouse, self.loaded):  # noqa: ASYNC110 - the server gives no event
                await asyncio.sleep(0.01)
            elapsed = time.perf_counter() - started
            self.seconds[name].append(elapsed)
            self.cpu[name].append(cpu_between(before, cpu_seconds(pids, servers)))
            count = warehouse.execute("SELECT count(*) FROM bench").fetchone()
            assert count == (self.loaded,), f"{name}: {count} rows instead of {self.loaded}"


def _visible(warehouse: psycopg.Connection[tuple[object, ...]], row: int) -> bool:
    return warehouse.execute("SELECT 1 FROM bench WHERE id = %s", [row]).fetchone() is not None


async def measure(rows: int, runs: int, per_transaction: int, kinds: list[BufferType]) -> None:
    with Pair() as pair:
        contest = Contest(pair, rows, per_transaction, kinds)
        try:
            await contest.prepare()
            for number in range(runs + 1):
                await _in_turn(contest.names, contest.pause)
                contest.load()
                turn = number % len(contest.names)
                await _in_turn(contest.names[turn:] + contest.names[:turn], contest.run)
        finally:
            for pipeline in contest.pipelines.values():
                await pipeline.stop()
    report(contest)


async def _in_turn(names: list[str], step: Callable[[str], Awaitable[None]]) -> None:
    for name in names:
        await step(name)


def report(contest: Contest) -> None:
    """Print medians; the first run warms caches and is left out."""
    print(
        f"{contest.rows} rows a run, {contest.per_transaction} a transaction, {len(contest.seconds[SUBSCRIPTION]) - 1} runs"
    )
    ours = {name: [contest.rows / seconds for seconds in runs[1:]] for name, runs in contest.seconds.items()}
    ratios = {
        name: [rate / own for rate, own in zip(rates, ours[SUBSCRIPTION], strict=True)] for name, rates in ours.items()
    }
    for name, rates in ours.items():
        if name != SUBSCRIPTION:
            least = 0.9 if name == BufferType.DIRECT.value else 0.7
            tell(f"pipeline {name}: rows/s of the subscription", ratios[name], least=least)
        parts = {part for run in contest.cpu[name][1:] for part in run}
        cpu = ", ".join(
            f"{part} {statistics.median(run.get(part, 0.0) for run in contest.cpu[name][1:]) / contest.rows * 1e6:.2f}"
            for part in sorted(parts)
        )
        print(
            f"{name:13s} {statistics.median(rates):>9,.0f} rows/s  {statistics.median(ratios[name]):.2f} of subscription "
            f"(runs {', '.join(f'{ratio:.2f}' for ratio in ratios[name])})  CPU µs/row: {cpu}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--transaction", type=int, default=1_000, help="rows in one transaction")
    names = [kind.value for kind in BufferType]
    parser.add_argument("--buffer", choices=names, action="append", help="which of ours take part; all by default")
    arguments = parser.parse_args()
    kinds = [BufferType(name) for name in arguments.buffer or names]
    asyncio.run(measure(arguments.rows, arguments.runs, arguments.transaction, kinds))


if __name__ == "__main__":
    main()
