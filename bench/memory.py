"""How much memory each process takes while one transaction of a million rows meets a destination that stands still.

`uv run python -m bench.memory [--rows N] [--buffer direct|jetstream]`: two fresh servers with fsync on, one table of 8
columns. Somebody holds a lock on the table at the destination, so that nothing can be applied. One transaction is
committed at the source. Once nothing moves any more, because everything on the way is full, the lock is let go, and the
rows flow to their end. Prints each process's resident memory before, and its peaks until everything stood and until the
last row was visible, beside what the rows weigh as text.
"""

import argparse
import asyncio
import time
from pathlib import Path

from bench.pairs import ROWS, TABLE, Pair, Pipeline
from bench.summary import tell

from contracts.v2 import BufferType

STILL_SECONDS = 3.0
"""Nothing was sent for so long: everything on the way is full."""
RUN_SECONDS_MAX = 300.0
SENT = "SELECT coalesce(max(sent_lsn - '0/0'), 0) FROM pg_stat_replication"
WEIGHT = "SELECT sum(octet_length(bench::text)) FROM bench"


def resident(pid: int, field: str) -> int:
    """Return bytes of a process: `VmRSS` now, `VmHWM` at its peak."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(f"{field}:")).split()[1]) << 10


def reset_peak(pid: int) -> None:
    """Let the kernel count the peak from now on."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


async def until_still(pair: Pair) -> None:
    """Wait until the source has sent what anybody would take."""
    end = time.monotonic() + RUN_SECONDS_MAX
    with pair.connect(pair.shop) as shop:
        sent, since = -1, time.monotonic()
        while time.monotonic() - since < STILL_SECONDS:
            row = shop.execute(SENT).fetchone()
            if row is not None and row[0] != sent:
                sent, since = int(str(row[0])), time.monotonic()
            if time.monotonic() > end:
                raise RuntimeError("the source sends for ever")
            await asyncio.sleep(0.1)


async def measure(kind: BufferType, rows: int) -> None:
    with Pair() as pair:
        with pair.connect(pair.shop) as shop, pair.connect(pair.warehouse) as warehouse:
            shop.execute(TABLE)
            warehouse.execute(f"CREATE DATABASE {kind.value}")
        pipeline = Pipeline(pair, kind)
        await pipeline.start()
        try:
            await fill(pair, pipeline, rows)
        finally:
            await pipeline.stop()


async def fill(pair: Pair, pipeline: Pipeline, rows: int) -> None:
    pids = pipeline.pids()
    before = {name: resident(pid, "VmRSS") for name, pid in pids.items()}
    for pid in pids.values():
        reset_peak(pid)
    with pair.connect(pair.shop) as shop, pair.connect(pair.warehouse, pipeline.kind.value) as warehouse:
        with warehouse.transaction():
            warehouse.execute("LOCK TABLE bench IN ACCESS EXCLUSIVE MODE")
            await asyncio.to_thread(shop.execute, ROWS.format(first=1, last=rows))
            await until_still(pair)
            stopped = {name: resident(pid, "VmHWM") for name, pid in pids.items()}
        end = time.monotonic() + RUN_SECONDS_MAX
        while warehouse.execute("SELECT count(*) FROM bench").fetchone() != (rows,):
            if time.monotonic() > end:
                raise RuntimeError("the rows do not arrive")
            await asyncio.sleep(0.1)
        (weight,) = shop.execute(WEIGHT).fetchone() or (0,)
    print(f"\nbuffer {pipeline.kind.value}: one transaction of {rows:,} rows, {int(str(weight)) >> 20} MiB of text")
    print("| process | before | peak, destination stands still | peak until all is there |\n|---|---|---|---|")
    for name, pid in pids.items():
        cells = (before[name], stopped[name], resident(pid, "VmHWM"))
        tell(f"memory {pipeline.kind.value} {name}: peak, MiB", [resident(pid, "VmHWM") / (1 << 20)])
        print(f"| {name} | " + " | ".join(f"{cell / (1 << 20):.0f} MiB" for cell in cells) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    names = [kind.value for kind in BufferType]
    parser.add_argument("--buffer", choices=names, action="append", help="which of ours take part; all by default")
    arguments = parser.parse_args()
    for name in arguments.buffer or names:
        asyncio.run(measure(BufferType(name), arguments.rows))


if __name__ == "__main__":
    main()
