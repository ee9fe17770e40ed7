"""How long rows stay away when a node dies with its workers and there is no control plane.

`uv run python -m bench.takeover [--runs N]`: three nodes share one pipeline with buffer `direct`; control plane, hub and
their database are killed first, and stay dead. While rows are committed at a steady rate, the node that carries them is
killed with -9, agent and worker at once. The time runs from the kill until a row that was committed after it is visible
at the destination. Then the node is started again, and the next run begins. After each run every row is compared.
"""

import argparse
import statistics
import time

import psycopg
from bench.summary import tell
from tests.chaos.schedule import AGENTS
from tests.chaos.world import World

from pointsman.local.workers import worker_pids

NAME = "direct"
WAIT_SECONDS_MAX = 60.0
ABOVE = ("control-plane", "hub", "postgres")


def run(world: World) -> float:
    """Kill the owner, and return the seconds until a row that was committed afterwards is there."""
    load = world.loads[NAME]
    owner = until(lambda: next((name for name in AGENTS if carries(world, name)), None))
    begin = time.monotonic()
    world.kill_machine(owner)
    with psycopg.connect(load.source, autocommit=True) as source, psycopg.connect(load.sink, autocommit=True) as sink:
        source.execute("INSERT INTO slips (id, note) VALUES (nextval('slips_id_seq'), 'after the kill')")
        (last,) = source.execute("SELECT max(id) FROM slips WHERE note = 'after the kill'").fetchone() or (0,)
        until(lambda: sink.execute("SELECT 1 FROM slips WHERE id = %s", [last]).fetchone())
    seconds = time.monotonic() - begin
    world.components[owner].start()
    return seconds


def carries(world: World, node: str) -> bool:
    """Say whether the pipeline's worker lives on this node."""
    return any(worker.startswith(f"{NAME}/") for worker in worker_pids(world.stack.folder / "nodes" / node))


def until(look, seconds_max: float = WAIT_SECONDS_MAX):  # type: ignore[no-untyped-def]
    """Look until there is something, and return it."""
    end = time.monotonic() + seconds_max
    while not (found := look()):
        if time.monotonic() > end:
            raise RuntimeError("the state that was waited for did not come")
        time.sleep(0.01)
    return found


def main() -> None:
    """Read the command line and print the table."""
    parser = argparse.ArgumentParser(prog="python -m bench.takeover", description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    world = World(1)
    try:
        world.start()
        load = world.loads[NAME]
        load.start()
        for name in ABOVE:
            world.components[name].kill()
        times = []
        for number in range(arguments.runs):
            # Every node must have seen the others before one dies.
            time.sleep(8)
            seconds = run(world)
            times.append(seconds)
            print(
                f"run {number + 1}: rows again after {seconds:.1f} s, {load.looks} looks, violations {load.violations}"
            )
        load.stop()
        until(lambda: not load.differences())
        tell("takeover: seconds without rows", times, most=15)
        print(
            f"median {statistics.median(times):.1f} s, longest {max(times):.1f} s; {load.committed} transactions, all equal"
        )
    finally:
        world.close()


if __name__ == "__main__":
    main()
