"""How each fault is done to the world, and undone. Called by the run, in threads that may wait."""

import contextlib
import os
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import psycopg
from tests.chaos.refusals import BREAK, MEND, RefusingLoad
from tests.chaos.schedule import Fault, Kind
from tests.chaos.workload import Load
from tests.chaos.world import FAKETIME, World

BALLAST = ".ballast"
FILE_BYTES_MAX = 4096
"""Where no small disk can be mounted: no file may grow beyond this."""
DELAYS_SECONDS = (0.005, 0.05, 0.2)
CLOCK_JUMPS_SECONDS = (-86_400, -3_600, -90, -2, 2, 90, 3_600, 86_400)
CONNECT_SECONDS = 3
START_SECONDS_MAX = 30
PART_ROWS = 2_000
PARTS_BY_ANOTHER_COLUMN = 0.25

Undo = Callable[[], None]


class Skipped(Exception):
    """The fault has nothing to be done to, or cannot be done here; the text says why."""


def inflict(fault: Fault, world: World) -> Undo:
    """Do it, and return what undoes it.

    Raises:
        Skipped: it was not done.
    """
    return _WAYS[fault.kind](fault, world)


def _nothing() -> None:
    return None


def _victims(fault: Fault, world: World) -> list[psutil.Process]:
    if fault.target == "worker":
        workers = world.workers()
        found = [workers[int(fault.draw * len(workers))]] if workers else []
    elif fault.target.startswith("machine-"):
        found = world.machine(fault.target.replace("machine", "node"))
    else:
        process = world.components[fault.target].process
        found = [process] if process is not None and process.is_running() else []
    if not found:
        raise Skipped("it does not run")
    return found


def _kill(fault: Fault, world: World) -> Undo:
    victims = _victims(fault, world)
    if fault.target == "worker":
        with contextlib.suppress(psutil.NoSuchProcess):
            victims[0].kill()
        return _nothing
    name = fault.target.replace("machine", "node")
    if fault.target.startswith("machine-"):
        world.kill_machine(name)
    else:
        world.components[name].kill()
    return world.components[name].start


def _freeze(fault: Fault, world: World) -> Undo:
    victims = _victims(fault, world)
    for victim in victims:
        with contextlib.suppress(psutil.NoSuchProcess):
            victim.suspend()

    def resume() -> None:
        for victim in reversed(victims):
            with contextlib.suppress(psutil.NoSuchProcess):
                victim.resume()

    return resume


def _network(fault: Fault, world: World) -> Undo:
    way = world.ways[fault.target]
    if fault.kind is Kind.CUT:
        way.cut()
    elif fault.kind is Kind.STALL:
        way.stall()
    else:
        way.slow(DELAYS_SECONDS[int(fault.draw * len(DELAYS_SECONDS))])
    return way.heal


def _crash(fault: Fault, world: World) -> Undo:
    server = world.servers[fault.target]
    server.stop(immediate=True)

    def start() -> None:
        end = time.monotonic() + START_SECONDS_MAX
        while True:
            try:
                return server.start()
            except RuntimeError:
                # What the crash left of its processes still holds its memory: a start is refused until they are gone.
                if time.monotonic() > end:
                    raise
                time.sleep(0.5)

    return start


def _fill(fault: Fault, world: World) -> Undo:
    if fault.target in world.mounted:
        ballast = world.mounted[fault.target] / BALLAST
        with contextlib.suppress(OSError), ballast.open("wb") as file:
            while True:
                file.write(bytes(1 << 20))
        # Fill what the last piece left.
        with contextlib.suppress(OSError), ballast.open("ab", buffering=0) as file:
            while file.write(bytes(512)):
                pass

        def empty() -> None:
            ballast.unlink(missing_ok=True)
            if fault.target == "leaf":
                _begin_again(world, "leaf")

        return empty
    if fault.target == "leaf":
        raise Skipped("a small disk for the leaf needs root")
    limits = []
    for victim in _victims(fault, world):
        before = resource.prlimit(victim.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(victim.pid, resource.RLIMIT_FSIZE, (FILE_BYTES_MAX, before[1]))
        limits.append((victim.pid, before))

    def lift() -> None:
        for pid, before in limits:
            with contextlib.suppress(ProcessLookupError):
                resource.prlimit(pid, resource.RLIMIT_FSIZE, before)

    return lift


def _begin_again(world: World, name: str) -> None:
    """Restart a component that runs, as an operator does: nats-server does not write again to what met a full disk."""
    component = world.components[name]
    if component.process is not None and component.process.is_running():
        component.kill()
        component.start()


def _clock(fault: Fault, world: World) -> Undo:
    if not FAKETIME:
        raise Skipped("libfaketime is not installed")
    file = world.clock(fault.target)
    jump = CLOCK_JUMPS_SECONDS[int(fault.draw * len(CLOCK_JUMPS_SECONDS))]
    _replace(file, f"{jump:+d}\n")
    return lambda: _replace(file, "+0\n")


def _replace(file: Path, text: str) -> None:
    draft = file.with_suffix(".new")
    draft.write_text(text)
    os.replace(draft, file)


def _sink(fault: Fault, world: World) -> psycopg.Connection[tuple[object, ...]]:
    try:
        return psycopg.connect(world.loads[fault.target].sink, connect_timeout=CONNECT_SECONDS)
    except psycopg.OperationalError as error:
        raise Skipped("the destination does not answer") from error


def _lock(fault: Fault, world: World) -> Undo:
    connection = _sink(fault, world)
    tables = ("accounts", "entries", "slips", "pointsman.checkpoints")
    table = tables[int(fault.draw * len(tables))]
    try:
        connection.execute("SET lock_timeout = '3s'")
        connection.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")
    except psycopg.Error as error:
        connection.close()
        raise Skipped("the table could not be locked") from error
    return connection.close


def _drag(fault: Fault, world: World) -> Undo:
    with _reach(fault, world) as connection:
        connection.execute(
            "CREATE OR REPLACE FUNCTION drag() RETURNS trigger LANGUAGE plpgsql AS"
            " 'BEGIN PERFORM pg_sleep(0.3); RETURN NULL; END'"
        )
        connection.execute(
            "CREATE OR REPLACE TRIGGER drag AFTER INSERT OR UPDATE ON heads FOR EACH STATEMENT EXECUTE FUNCTION drag()"
        )

    def lift() -> None:
        end = time.monotonic() + 60
        while time.monotonic() < end:
            with contextlib.suppress(psycopg.Error, Skipped), _reach(fault, world) as connection:
                connection.execute("DROP TRIGGER IF EXISTS drag ON heads")
                return
            time.sleep(0.5)

    return lift


@contextlib.contextmanager
def _reach(fault: Fault, world: World) -> Iterator[psycopg.Connection[tuple[object, ...]]]:
    connection = _sink(fault, world)
    try:
        connection.execute("SET lock_timeout = '5s'")
        yield connection
        connection.commit()
    except psycopg.Error as error:
        raise Skipped("the destination refused") from error
    finally:
        connection.close()


def _command(fault: Fault, world: World) -> Undo:
    verb, _, name = fault.target.partition(" ")
    load = world.loads[name]
    match verb:
        case "pause":
            _ask(world, "pause", "pipeline", name)
            return lambda: _give_back(world, name)
        case "resync":
            _ask(world, "resync", "pipeline", name, "--table", f"public.{load.tables[-1]}")
        case "repair":
            # It must find nothing to mend: what it writes to a ledger would be noticed.
            _ask(world, "reconcile", "pipeline", name, "--repair")
        case "part":
            _ask(world, "resync", "pipeline", name, "--table", f"public.{load.tables[-1]}", "--where", _where(fault))
        case "hold":
            return _hold(world, load)
        case "remove":
            return _remove(fault, world, load)
        case "replay":
            _replay(world, load)
        case "mend":
            _at_sink(load, MEND)
            _replay(world, load)
            return lambda: _break_again(load)
        case "restart":
            _ask(world, "restart", "pipeline", name)
        case "add":
            table = f"added_{fault.number}"
            _at_source(load.source, f"CREATE TABLE {table} (id bigserial PRIMARY KEY, note text)")
            load.added.append(table)
            if world.apply(name):
                raise Skipped("the control plane does not answer; the table is added at the end")
        case "alter":
            _at_source(load.source, f"ALTER TABLE slips ADD COLUMN IF NOT EXISTS extra_{fault.number} int")
            load.large.set()
    return _nothing


def _remove(fault: Fault, world: World, load: Load) -> Undo:
    """Take one of the tables that were added out of the pipeline for a while."""
    there = [table for table in load.added if table not in load.away]
    if not there:
        raise Skipped("no table was added yet")
    table = there[int(fault.draw * len(there))]
    load.away.add(table)
    if world.apply(load.name):
        load.away.discard(table)
        raise Skipped("the control plane does not answer")

    def put_back() -> None:
        load.away.discard(table)
        world.apply(load.name)  # where it does not answer, the end does it again

    return put_back


def _where(fault: Fault) -> str:
    """Return the rows of a part: some by the key, whose range is emptied, and some by another column."""
    if fault.draw < PARTS_BY_ANOTHER_COLUMN:
        return "note != 'new'"
    first = int(fault.draw * PART_ROWS)
    return f"id between {first} and {first + PART_ROWS}"


def _hold(world: World, load: Load) -> Undo:
    """Pause the copying of the table that is copied again, and ask for a copy that then waits."""
    table = load.tables[-1]
    load.held.add(table)
    _ask(world, "pause", "pipeline", load.name, "--table", f"public.{table}")
    world.command("resync", "pipeline", load.name, "--table", f"public.{table}", "--where", "id >= 1")
    return lambda: _give_back(world, load.name, "--table", f"public.{table}")


def _replay(world: World, load: Load) -> None:
    if world.replay(load.name):
        raise Skipped("the destination does not answer, or the pipeline is busy")


def _at_sink(load: Load, statement: str) -> None:
    try:
        with psycopg.connect(load.sink, autocommit=True, connect_timeout=CONNECT_SECONDS) as connection:
            connection.execute("SET lock_timeout = '5s'")
            connection.execute(statement)
    except psycopg.Error as error:
        raise Skipped("the destination refused") from error


def _break_again(load: Load) -> None:
    assert isinstance(load, RefusingLoad)
    if not load.mended:
        with contextlib.suppress(Skipped):
            _at_sink(load, BREAK)


def _at_source(source: str, statement: str) -> None:
    try:
        with psycopg.connect(source, autocommit=True, connect_timeout=CONNECT_SECONDS) as connection:
            connection.execute("SET lock_timeout = '5s'")
            connection.execute(statement)
    except psycopg.Error as error:
        raise Skipped("the source refused") from error


def _ask(world: World, *arguments: str) -> None:
    if world.command(*arguments):
        raise Skipped("the control plane does not answer")


def _give_back(world: World, name: str, *more: str) -> None:
    world.command("resume", "pipeline", name, *more)


_WAYS: dict[Kind, Callable[[Fault, World], Undo]] = {
    Kind.KILL: _kill,
    Kind.FREEZE: _freeze,
    Kind.CUT: _network,
    Kind.STALL: _network,
    Kind.SLOW: _network,
    Kind.CRASH: _crash,
    Kind.FILL: _fill,
    Kind.CLOCK: _clock,
    Kind.LOCK: _lock,
    Kind.DRAG: _drag,
    Kind.COMMAND: _command,
}
