"""One seeded life of a pipeline on a virtual clock: crashes between any two steps, takeovers, and a buffer that fails.

Two nodes share a pipeline. Its owner's processes fail at any step, are killed at any step or at any time, or get a
second one beside them; now and then the other node takes over while the owner is dead, frozen in the middle of a step,
or runs on because it is only cut off, and wakes up later. The buffer loses everything, loses a message, or has one
twice. In most lives tables are copied in chunks beside the stream, and copied again when somebody asks; in half of them
the destination refuses some values, whose keys' changes become dead letters that are replayed now and then.

What must hold is asserted by the world at every step: the destination shows states of the origin only, the source is
told of what is durable only, and a process that was replaced never owns the pipeline again. A table with dead letters
would be a state of the origin, were they applied in their order. At the end all is equal, and no letter is left.

`uv run just simulate --runs N --seed S` runs seeds from S on, in one process, and prints those that fail.
"""

import argparse
import asyncio
import gc
import logging
import signal
import sys
import time
import traceback
from collections.abc import Mapping
from random import Random

from tests.dataplane.worker import virtual
from tests.dataplane.worker.origin import TABLES
from tests.dataplane.worker.simulated_load import POISON, Load
from tests.dataplane.worker.world import Chaos, World, assignment

from contracts.codes import Code
from contracts.delivery import OnRefused
from dataplane.node.reconciler import FENCED_SECONDS
from dataplane.worker.protocol import Half
from dataplane.worker.queueing import QueueLimits
from dataplane.worker.runtime import Runtime

TRANSACTIONS = 16
"""A short life each, and many of them: what matters is which two steps a crash comes between."""
CPU_SECONDS_MAX = 10.0
"""A life that takes longer goes round in a circle."""
CONVERGE_SECONDS_MAX = 180
PROGRESS_SECONDS = 60.0
HALVES = {"whole": [Half.WHOLE], "buffered": [Half.SINK, Half.SOURCE]}


class Node:
    """The processes of one node for one pipeline: started, killed, frozen and doubled."""

    def __init__(self, name: str, world: World, random: Random, halves: list[Half], rate: float) -> None:
        self.name = name
        self.chaos = Chaos(random, rate)
        self._world = world
        self._random = random
        self._halves = halves
        self._running: list[asyncio.Task[None]] = []
        self._runtimes: list[Runtime] = []

    def start(self, *halves: Half) -> None:
        """Start a process for each half, or for those that are named."""
        for half in halves or self._halves:
            limits = QueueLimits(sets_max=self._random.randint(1, 8), bytes_max=self._random.choice([100, 10_000]))
            runtime = self._world.runtime(half=half, limits=limits, node=self.name, point=self.chaos)
            self._runtimes.append(runtime)
            self._running.append(asyncio.create_task(runtime.run()))

    @property
    def is_fenced(self) -> bool:
        """A process says that somebody else has claimed the pipeline."""
        return any(each.observation.status().code is Code.SINK_FENCED for each in self._runtimes)

    def assign(self) -> None:
        """Let every process know the pipeline's newest document."""
        for runtime in self._runtimes:
            half = runtime.status().half
            runtime.assign(assignment(self._world.pipeline, half, self.name))

    async def kill(self) -> None:
        """End every process where it stands."""
        running, self._running, self._runtimes = self._running, [], []
        await end(running)
        self.chaos.killed.clear()

    async def double(self) -> None:
        """Start a second process beside one that still runs; the older one ends a little later."""
        half = self._random.choice(self._halves)
        old, self._running, self._runtimes = self._running, [], []
        self.start(half)
        await asyncio.sleep(self._random.random() * 5)
        await end(old)
        self.start(*(each for each in self._halves if each is not half))


async def end(tasks: list[asyncio.Task[None]]) -> None:
    """Cancel processes; one that has ended by itself has met something that must not be."""
    for task in tasks:
        task.cancel()
    for outcome in await asyncio.gather(*tasks, return_exceptions=True):
        if not isinstance(outcome, asyncio.CancelledError):
            raise AssertionError(f"a process ended by itself: {outcome!r}") from outcome


class Plane:
    """Two nodes, of which one owns the pipeline, and what happens to them."""

    def __init__(self, world: World, random: Random, halves: list[Half]) -> None:
        self._world = world
        self._random = random
        self.calm = False
        rate = random.choice([0.0, 0.02, 0.1])
        self._owner, self._other = (Node(name, world, random, halves, rate) for name in ("node-1", "node-2"))
        self._owner.start()

    async def trouble(self) -> None:
        """Once in a while something happens; a process that was killed in the middle of a step is followed at once."""
        random = self._random
        while not self.calm:
            try:
                async with asyncio.timeout(random.random() * 8):
                    await self._owner.chaos.killed.wait()
                await self._owner.kill()
                self._owner.start()
                continue
            except TimeoutError:
                await self._look_after()
            drawn = random.random()
            if drawn < 0.35:
                await self._owner.kill()
                self._owner.start()
            elif drawn < 0.6:
                await self._owner.double()
            else:
                await self._take_over()

    async def _take_over(self) -> None:
        """The other node gets the lease: the owner is dead, or frozen, or only cannot ask any more."""
        random = self._random
        drawn = random.random()
        if drawn < 0.3:
            await self._owner.kill()
        elif drawn < 0.7:
            self._owner.chaos.awake.clear()
        await self._other.kill()  # what an earlier takeover has left
        self._other.chaos.awake.set()
        self._owner, self._other = self._other, self._owner
        self._owner.start()
        await asyncio.sleep(random.random() * 10)
        self._other.chaos.awake.set()
        if random.random() < 0.7:
            await asyncio.sleep(random.random() * 40)
            await self._other.kill()

    def harm_buffer(self) -> None:
        """Let the buffer fail once in a while."""
        drawn, leaf = self._random.random(), self._world.leaf
        if drawn < 0.02:
            leaf.lose()
        elif drawn < 0.12:
            leaf.lose_message(self._random)
        elif drawn < 0.16:
            leaf.double_message(self._random)

    def command(self) -> None:
        """A person's work, once in a while: copy a table again, mend the destination or break it, replay dead letters."""
        random, world = self._random, self._world
        drawn = random.random()
        if world.copies and drawn < 0.08:
            for table in random.sample(sorted(TABLES), random.choice([1, 1, 2])):
                world.resync(table)
            self._owner.assign()
            if random.random() < 0.5:
                self._other.assign()
        elif drawn < 0.16:
            world.replay()
        elif drawn < 0.24:
            world.destination.refuses = is_refused if random.random() < 0.5 else takes_all

    async def settle(self) -> None:
        """Nothing fails any more: the owner alone goes on, in half of all lives with the processes that it has."""
        for node in (self._owner, self._other):
            node.chaos.rate = 0.0
            node.chaos.awake.set()
        await self._other.kill()
        if self._owner.chaos.killed.is_set() or self._random.random() < 0.5:
            await self._owner.kill()
            self._owner.start()
        async with asyncio.timeout(CONVERGE_SECONDS_MAX):
            while not self._world.caught_up:
                await self._look_after()
                await asyncio.sleep(FENCED_SECONDS)
            await self._world.until_caught_up()
        await self._owner.kill()
        self._world.end()

    async def _look_after(self) -> None:
        """As the owner's agent does: the lease is its own, so a fenced process is followed by one that claims."""
        if self._owner.is_fenced:
            await self._owner.kill()
            self._owner.start()


async def simulate(seed: int, halves: list[Half]) -> None:
    """Live through one seed.

    Raises:
        AssertionError: something that must never be.
        TimeoutError: it did not come to rest.
    """
    random = Random(seed)
    letters = random.random() < 0.5
    world = World(
        buffer_bytes_max=random.choice([300, 1 << 20]),
        parts=random.randint(1, 3),
        copies=random.random() < 0.7,
        on_refused=OnRefused.DEAD_LETTER if letters else OnRefused.STOP,
        randomness=random,
    )
    load = Load(random, poison=0.1 if letters else 0.0)
    world.destination.refuses = is_refused
    before = random.choice([0, TRANSACTIONS // 2]) if world.copies else 0
    for _ in range(before):
        world.origin.commit(load.transaction())
    plane = Plane(world, random, halves)
    trouble = asyncio.create_task(plane.trouble())
    for _ in range(TRANSACTIONS - before):
        world.origin.commit(load.transaction())
        await asyncio.sleep(random.random() * 2)
        plane.harm_buffer()
        plane.command()
    world.origin.commit(load.transaction())
    plane.calm = True
    await trouble
    await plane.settle()


def is_refused(_: str, row: Mapping[str, str | None]) -> bool:
    """Say whether the destination does not take a row."""
    return (row["note"] or "").startswith(POISON)


def takes_all(_: str, row: Mapping[str, str | None]) -> bool:
    """Take every row."""
    return False


def _endless(*_: object) -> None:
    raise RuntimeError("a life without end")


def main() -> int:
    """Run seeds and return 0 if all held."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=1_000, help="how many, half of them with a buffer")
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--only", choices=sorted(HALVES), help="only with, or only without a buffer")
    arguments = parser.parse_args()
    logging.disable(logging.CRITICAL)
    signal.signal(signal.SIGVTALRM, _endless)
    gc.freeze()  # what was imported stays, and is a lot to go through

    kinds = [arguments.only] if arguments.only else sorted(HALVES)
    begin = told = time.monotonic()
    failed = []
    for number in range(arguments.runs):
        seed, kind = arguments.seed + number // len(kinds), kinds[number % len(kinds)]
        signal.setitimer(signal.ITIMER_VIRTUAL, CPU_SECONDS_MAX)
        try:
            virtual.run(simulate(seed, HALVES[kind]))
        except Exception:  # noqa: BLE001 - each seed is told, and the others go on
            failed.append((seed, kind))
            print(f"seed {seed}, {kind}: uv run just simulate --runs 1 --seed {seed} --only {kind}")
            traceback.print_exc()
        if time.monotonic() > told + PROGRESS_SECONDS:
            told = time.monotonic()
            print(f"{number + 1} runs, {len(failed)} failed", flush=True)
    seconds = time.monotonic() - begin
    print(
        f"{arguments.runs} runs from seed {arguments.seed} on in {seconds:.0f} s "
        f"({arguments.runs / seconds * 60:.0f} a minute, {time.process_time() / arguments.runs * 1e3:.1f} ms of CPU each): "
        f"{len(failed)} failed {failed[:10]}"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
