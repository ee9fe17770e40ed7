"""One machine's processes: kept running, adopted, stopped in order, and acted on one by one."""

import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from pointsman.local import orders, processes
from pointsman.local.layout import Layout, Ports, write_whole
from pointsman.local.supervision import Component, Supervisor, find
from pointsman.problems import Problem


@pytest.fixture
def layout(folder: Path) -> Iterator[Layout]:
    made = Layout(folder / "dir")
    made.prepare()
    yield made
    for name in ("one", "two"):
        while (pid := find(("-f", str(made.run / name)))) is not None:
            processes.stop(pid, ask=signal.SIGKILL)


def component(layout: Layout, name: str, rank: int) -> Component:
    """A process that does nothing until it is told to end."""
    file = layout.run / name
    file.touch()
    return Component(name, ("tail", "-f", str(file)), ("-f", str(file)), layout.log(name), lambda: True, rank)


def until(holds: Callable[[], object], supervisor: Supervisor | None = None) -> None:
    end = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < end
        if supervisor is not None:
            supervisor.tick()
        time.sleep(0.02)


@pytest.fixture
def supervisor(layout: Layout) -> Supervisor:
    made = Supervisor(layout)
    made.add(component(layout, "two", 2))
    made.add(component(layout, "one", 1))
    return made


def pids(supervisor: Supervisor) -> dict[str, int]:
    return {item["name"]: item["pid"] for item in supervisor.states()}


def test_a_process_that_ends_is_started_again_and_counted(supervisor: Supervisor) -> None:
    """With another pid, while the others go on; nothing of the first is left, for its pid would look alive to others."""
    before = pids(supervisor)
    os.kill(before["one"], signal.SIGKILL)
    until(lambda: pids(supervisor)["one"] not in (None, before["one"]), supervisor)
    assert pids(supervisor)["two"] == before["two"]
    assert [item["restarts"] for item in supervisor.states()] == [1, 0]
    assert not psutil.pid_exists(before["one"])


def test_whoever_follows_a_killed_supervisor_adopts_what_runs(layout: Layout, supervisor: Supervisor) -> None:
    """Nothing is started twice, and pids stay."""
    before = pids(supervisor)
    follower = Supervisor(layout)
    for name, rank in (("one", 1), ("two", 2)):
        follower.add(component(layout, name, rank))
        assert follower.is_adopted(name)
    assert pids(follower) == before


def test_everything_is_stopped_from_the_highest_rank_down(supervisor: Supervisor) -> None:
    """However it was added."""
    running = pids(supervisor).values()
    order: list[str] = []
    supervisor.stop_all(order.append)
    assert order == ["two", "one"]
    assert not any(psutil.pid_exists(pid) and processes.is_running(pid) for pid in running)


def test_a_component_that_was_ordered_to_stop_stays_stopped(layout: Layout, supervisor: Supervisor) -> None:
    """Until it is ordered to start; `up` obeys within a moment."""
    lock = orders.FolderLock(layout)
    lock.take()
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            supervisor.tick()

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        assert orders.stop(layout, "one")["state"] == "stopped"
        assert find(("-f", str(layout.run / "one"))) is None
        assert orders.start(layout, "one")["state"] == "running"
    finally:
        done.set()
        thread.join()
        lock.release()


def test_orders_are_carried_out_without_up_as_well(layout: Layout, supervisor: Supervisor) -> None:
    """When `up` was killed, its components can still be stopped and started one by one, and all together."""
    before = pids(supervisor)["one"]
    assert orders.stop(layout, "one")["pid"] is None
    assert orders.start(layout, "one")["pid"] not in (None, before)
    assert sorted(orders.stop_everything(layout)) == ["one", "two"]
    assert find(("-f", str(layout.run / "two"))) is None


def test_a_component_that_does_not_exist_is_refused_with_the_names_that_do(
    layout: Layout, supervisor: Supervisor
) -> None:
    """A stable code and a hint."""
    with pytest.raises(Problem, match="There is no component") as raised:
        orders.stop(layout, "three")
    assert raised.value.code == "unknown_component"
    assert raised.value.hint == "There are: one, two."


def test_a_folder_has_one_up_at_most(layout: Layout) -> None:
    """The second is told the first one's pid."""
    first, second = orders.FolderLock(layout), orders.FolderLock(layout)
    first.take()
    with pytest.raises(Problem, match=str(os.getpid())) as raised:
        second.take()
    assert raised.value.code == "already_running"
    first.release()
    assert second.holder() is None
    second.take()
    second.release()


def test_ports_are_kept_and_replaced_only_when_taken(layout: Layout) -> None:
    """A port that another program listens on is chosen again; and none lies where outgoing connections get theirs."""
    first = Ports(layout).get("hub")
    assert Ports(layout).get("hub") == first
    assert not Ports(layout).replace_if_taken("hub")
    with socket.create_server(("127.0.0.1", first)):
        ports = Ports(layout)
        assert ports.replace_if_taken("hub")
        assert ports.get("hub") != first
    assert first < 32_000


def test_a_file_is_written_whole_and_for_its_owner_alone(layout: Layout) -> None:
    """Readers see the old text or the new one; nobody else sees either."""
    file = layout.run / "x.json"
    write_whole(file, "old")
    write_whole(file, "new")
    assert file.read_text() == "new"
    assert file.stat().st_mode & 0o077 == 0
    assert [path.name for path in layout.run.iterdir()] == ["x.json"]


def test_ps_lists_what_runs_with_uptime_and_memory(layout: Layout, supervisor: Supervisor) -> None:
    """Also what a killed `up` left behind."""
    import sys

    done = subprocess.run(
        [sys.executable, "-m", "pointsman", "ps", "--dir", str(layout.root), "-o", "json"],
        capture_output=True,
        text=True,
        check=True,
    )
    listed = {item["name"]: item for item in json.loads(done.stdout)["items"]}
    assert listed["up"]["state"] == "stopped"
    assert listed["one"]["state"] == "running"
    assert listed["one"]["pid"] == pids(supervisor)["one"]
    assert listed["one"]["memory_bytes"] > 0
