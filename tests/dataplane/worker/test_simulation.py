"""Crashes between any two steps, from a seed, on a virtual clock: whatever happens, no row is lost, doubled or halved.

A failing run prints its seed; `test_any_seed_ends_with_equal_rows[SEED-…]` replays it.
"""

import asyncio
from random import Random

import numpy as np
import pytest
from tests.dataplane.buffers.changes import inserts, large_transaction, rows_of, transaction
from tests.dataplane.worker import virtual
from tests.dataplane.worker.world import Chaos, World

from dataplane.batch import ChangeBatch, ChangeSet, Op
from dataplane.worker.protocol import Half
from dataplane.worker.queueing import QueueLimits
from dataplane.worker.runtime import Runtime

SEEDS = range(40)
TRANSACTIONS = 40


def _load(random: Random) -> list[list[ChangeSet]]:
    """Transactions over a few keys: inserts, overwrites, deletes, and some that come in many sets."""
    load: list[list[ChangeSet]] = []
    for number in range(TRANSACTIONS):
        lsn = (number + 1) * 10
        keys = random.sample(range(12), random.randint(1, 4))
        if random.random() < 0.2:
            parts = [random.sample(range(12), random.randint(1, 3)) for _ in range(random.randint(2, 5))]
            load.append(large_transaction(lsn, parts, f"note {number}"))
        elif random.random() < 0.3:
            load.append([_deletes(lsn, keys)])
        else:
            load.append([transaction(lsn, keys, f"note {number}")])
    return load


def _deletes(lsn: int, keys: list[int]) -> ChangeSet:
    change = transaction(lsn, keys)
    batch = inserts(lsn, keys)
    gone = ChangeBatch(
        batch.table,
        rows_of(keys, [None] * len(keys)),
        np.full(len(keys), Op.DELETE, dtype=np.uint8),
        batch.commit_lsns,
        batch.ordinals,
        batch.commit_times,
    )
    return ChangeSet((gone,), change.first, change.last, True, True, lsn + 1, lsn * 1000, 1)


class _Node:
    """Workers that are killed and started again, some while their predecessors still run."""

    def __init__(self, world: World, random: Random, halves: list[Half]) -> None:
        self._world = world
        self._random = random
        self._halves = halves
        self._running: list[asyncio.Task[None]] = []
        self.runtimes: dict[Half, Runtime] = {}

    def start(self, half: Half) -> None:
        limits = QueueLimits(sets_max=self._random.randint(1, 8), bytes_max=self._random.choice([100, 10_000]))
        runtime = self.runtimes[half] = self._world.runtime(half=half, limits=limits)
        self._running.append(asyncio.create_task(runtime.run()))

    async def trouble(self) -> None:
        """Once in a while: kill a half, or start a second one beside it; the older one dies a little later."""
        while True:
            await asyncio.sleep(self._random.random() * 20)
            half = self._random.choice(self._halves)
            old, self._running = self._running, []
            if self._random.random() < 0.5:
                await _end(old)
                for each in self._halves:
                    self.start(each)
            else:
                self.start(half)
                await asyncio.sleep(self._random.random() * 5)
                await _end(old)
                for each in self._halves:
                    if each is not half:
                        self.start(each)

    async def stop(self) -> None:
        await _end(self._running)


async def _end(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    for outcome in await asyncio.gather(*tasks, return_exceptions=True):
        assert outcome is None or isinstance(outcome, asyncio.CancelledError), outcome


async def _simulate(seed: int, halves: list[Half]) -> World:
    random = Random(seed)
    chaos = Chaos(seed, rate=random.choice([0.0, 0.02, 0.1]))
    world = World(point=chaos, buffer_bytes_max=random.choice([300, 1 << 20]))
    node = _Node(world, random, halves)
    for half in halves:
        node.start(half)
    trouble = asyncio.create_task(node.trouble())
    for committed in _load(random):
        world.origin.commit(committed)
        await asyncio.sleep(random.random() * 2)
        if random.random() < 0.02:
            world.leaf.lose()
    trouble.cancel()
    await asyncio.gather(trouble, return_exceptions=True)
    chaos.rate = 0.0
    await node.stop()
    for half in halves:
        node.start(half)
    async with asyncio.timeout(120):
        await world.until_caught_up()
    await node.stop()
    return world


@pytest.mark.parametrize("seed", SEEDS)
def test_any_seed_ends_with_equal_rows_in_one_process(seed: int) -> None:
    """Source and sink in one process, killed, doubled and failing at any step."""
    virtual.run(_simulate(seed, [Half.WHOLE]))


@pytest.mark.parametrize("seed", SEEDS)
def test_any_seed_ends_with_equal_rows_with_a_buffer_between(seed: int) -> None:
    """Two halves and a buffer that may be lost, killed, doubled and failing at any step."""
    virtual.run(_simulate(seed, [Half.SINK, Half.SOURCE]))
