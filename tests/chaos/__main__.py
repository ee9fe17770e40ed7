"""`python -m tests.chaos --minutes N [--seed S]`: the whole product under faults from a printed seed, and what held.

Prints one line for each fault with its time, and at the end counts and violations. Ends with 0 if every look at the
destination held, everything converged within the stated time once the last fault was undone, and both sides are equal.
A seed that fails is printed with the line that replays it, and belongs into seeds.txt, which `--kept` runs again: the
time is then shared, half of it for a fresh seed.
"""

import argparse
import contextlib
import random
import signal
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import httpx
import psycopg
from tests.chaos import faults
from tests.chaos.refusals import MEND, RefusingLoad
from tests.chaos.schedule import Fault
from tests.chaos.schedule import everything as drawn
from tests.chaos.workload import CONNECT
from tests.chaos.world import World

CONVERGE_SECONDS_MAX = 300.0
SETTLE_SHARE, SETTLE_SECONDS = 0.25, 40.0
"""Of the time of a short run, and at most: kept for starting and converging."""
SEEDS = Path(__file__).with_name("seeds.txt")
REVIVE_SECONDS = 5.0
TELL_SECONDS = 20.0
INTERRUPTED = 130


class Run:
    """One seed in one world, for so many seconds of faults."""

    def __init__(self, seed: int, seconds: float, *, keep: bool = False) -> None:
        self.seed = seed
        self.seconds = seconds
        self.keep = keep
        self.world = World(seed)
        self.counts: Counter[str] = Counter()
        self.skipped: Counter[str] = Counter()
        self.violations: list[str] = []
        self.converged_after: float | None = None
        self._undos: list[threading.Thread] = []
        self._begin = 0.0
        self._heal = threading.Event()

    def run(self) -> bool:
        """Do all of it, and return whether everything held."""
        say(f"seed {self.seed}: {self.seconds:.0f} s of faults; {replay(self.seed, self.seconds)}")
        try:
            self.world.start()
            for note in self.world.notes:
                say(f"  {note}")
            for load in self.world.loads.values():
                load.start()
            self._trouble()
            self._converge()
        finally:
            for load in self.world.loads.values():
                load.stop()
            if self.violations:
                say(self.world.log_of_workers())
            if not (self.keep and self.violations):
                self.world.close()
        self._tell()
        return not self.violations

    def _trouble(self) -> None:
        self._begin = time.monotonic()
        revived = self._begin
        for fault in drawn(self.seed):
            if fault.at > self.seconds:
                break
            while (left := self._begin + fault.at - time.monotonic()) > 0:
                time.sleep(min(left, 0.2))
                if time.monotonic() > revived + REVIVE_SECONDS:
                    revived = time.monotonic()
                    self.world.revive()
                if self._seen():
                    return
            thread = threading.Thread(target=self._one, args=[fault], daemon=True)
            thread.start()
            self._undos.append(thread)

    def _one(self, fault: Fault) -> None:
        at = time.monotonic() - self._begin
        try:
            undo = faults.inflict(fault, self.world)
        except faults.Skipped as why:
            self.skipped[fault.kind.value] += 1
            say(f"  {at:6.1f} s  {fault.number:3d}  {fault}: skipped, {why}")
            return
        except Exception as error:  # noqa: BLE001 - what the world cannot do is a finding of its own
            self.violations.append(f"fault {fault.number} ({fault}) could not be done: {error!r}")
            return
        self.counts[f"{fault.kind.value} {fault.target}"] += 1
        say(f"  {at:6.1f} s  {fault.number:3d}  {fault}")
        self._heal.wait(fault.seconds)
        try:
            undo()
        except Exception as error:  # noqa: BLE001 - as above
            self.violations.append(f"fault {fault.number} ({fault}) could not be undone: {error!r}")

    def _seen(self) -> bool:
        self.violations += [each for load in self.world.loads.values() for each in load.violations]
        return bool(self.violations)

    def _converge(self) -> None:
        """Undo what still holds, let everything run, and wait until both sides are equal and the status is green."""
        self._heal.set()
        for thread in self._undos:
            thread.join(timeout=90)
        for load in self.world.loads.values():
            load.large.set()
        time.sleep(0.5)
        self.world.revive()
        begin = told = time.monotonic()
        reasons = ["nobody has looked"]
        finished = False
        while reasons and not self._seen():
            if time.monotonic() - begin > CONVERGE_SECONDS_MAX:
                self.violations.append(f"not equal within {CONVERGE_SECONDS_MAX:.0f} s: {reasons}")
                return
            time.sleep(0.5)
            self.world.revive()
            if time.monotonic() > told + TELL_SECONDS:
                told = time.monotonic()
                say(f"  not yet equal: {reasons}")
            if not finished:
                finished = self._give_last_orders()
                if finished:
                    for load in self.world.loads.values():
                        load.stop()
            if finished:
                self._replay_the_rest()
            reasons = self._reasons() if finished else ["the last commands were not taken"]
        self.converged_after = time.monotonic() - begin
        if not self.violations and self.converged_after > CONVERGE_SECONDS_MAX:
            self.violations.append(f"equal, but not within {CONVERGE_SECONDS_MAX:.0f} s")

    def _give_last_orders(self) -> bool:
        """Resume everything and apply every table that was added; the source is written until this is done."""
        done = True
        for name, load in self.world.loads.items():
            load.away.clear()
            done = self.world.apply(name) == 0 and self.world.command("resume", "pipeline", name) == 0 and done
            for table in sorted(load.held):
                done = self.world.command("resume", "pipeline", name, "--table", f"public.{table}") == 0 and done
        return done

    def _replay_the_rest(self) -> None:
        """Mend the destinations that refuse rows for good, and replay what is there."""
        for load in self.world.loads.values():
            if isinstance(load, RefusingLoad):
                self._replay_the_rest_of(load)

    def _replay_the_rest_of(self, load: RefusingLoad) -> None:
        with contextlib.suppress(psycopg.Error), psycopg.connect(load.sink, autocommit=True, **CONNECT) as connection:
            if not load.mended:
                connection.execute(MEND)
                load.mended = True
            if connection.execute("SELECT 1 FROM pointsman.dead_letters LIMIT 1").fetchone() is not None:
                self.world.replay(load.name)

    def _reasons(self) -> list[str]:
        reasons: list[str] = []
        try:
            for name, load in self.world.loads.items():
                reasons += load.differences()
                with psycopg.connect(load.sink) as connection:
                    self.violations += load.look(connection, everything=True)
                status = self.world.stack.pipeline(name)["status"]
                if not status["ready"]:
                    reasons.append(f"{name} is {status}")
        except (psycopg.Error, httpx.HTTPError, KeyError) as error:
            reasons.append(repr(error))
        return reasons

    def _tell(self) -> None:
        for what, count in sorted(self.counts.items()):
            say(f"  {count:4d} x {what}")
        loads = self.world.loads.values()
        say(
            f"seed {self.seed}: {sum(self.counts.values())} faults, {sum(self.skipped.values())} skipped, "
            f"{sum(load.committed for load in loads)} transactions, {sum(load.looks for load in loads)} looks, "
            + (f"equal {self.converged_after:.0f} s after the last fault, " if self.converged_after is not None else "")
            + f"{len(self.violations)} violations"
        )
        for violation in self.violations:
            say(f"VIOLATION {violation}")
        if self.violations:
            say(f"replay: {replay(self.seed, self.seconds)}")


def replay(seed: int, seconds: float) -> str:
    """Return the command that does the same again."""
    return f"uv run just chaos --minutes {seconds / 60:g} --seed {seed}"


def kept() -> list[int]:
    """Return every seed that ever failed."""
    lines = (line.partition("#")[0].strip() for line in SEEDS.read_text().splitlines())
    return [int(line) for line in lines if line]


def say(text: str) -> None:
    print(text, flush=True)


def _end(*_: object) -> None:
    raise KeyboardInterrupt


def main() -> int:
    """Read the command line, run the seeds, and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--minutes", type=float, default=2.0, help="of faults; with --kept: in all")
    parser.add_argument("--seed", type=int, help="the seed; a fresh one if left out")
    parser.add_argument("--kept", action="store_true", help="a fresh seed, and every one in seeds.txt")
    parser.add_argument("--keep", action="store_true", help="leave a world that failed running, and print its folder")
    arguments = parser.parse_args()
    seed = arguments.seed if arguments.seed is not None else random.SystemRandom().randrange(1, 10**9)
    seconds = arguments.minutes * 60
    plan = [(seed, seconds)]
    if arguments.kept:
        old = kept()
        share = seconds / (1 + (len(old) > 0)) if old else seconds
        slots = [(seed, share), *((each, share / len(old)) for each in old)]
        plan = [(each, max(5.0, slot - min(SETTLE_SECONDS, slot * SETTLE_SHARE + 20))) for each, slot in slots]
    signal.signal(signal.SIGTERM, _end)
    held = True
    for each, length in plan:
        run = Run(each, length, keep=arguments.keep)
        try:
            held = run.run() and held
        except KeyboardInterrupt:
            return INTERRUPTED
        if arguments.keep and run.violations:
            say(f"left running in {run.world.folder}")
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
