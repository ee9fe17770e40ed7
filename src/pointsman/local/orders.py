"""What single commands tell `up`, and what it tells them: two files in the folder's `run`, no connection between them.

`stop NAME` and `start NAME` change the list of what should not run and wait until the state shows it. When `up` itself
was killed, its components go on without it; then these commands do what they say themselves.
"""

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path
from signal import SIGTERM, Signals
from typing import Any

from pointsman.local import processes
from pointsman.local.layout import Layout, read_json, write_json
from pointsman.local.supervision import find
from pointsman.local.workers import stop_workers
from pointsman.problems import CODES, Exit, Problem

ORDER_SECONDS_MAX = 90.0
STOP_SECONDS_MAX = 120.0
POLL_SECONDS = 0.05
LOCK_TRIES_MAX = 10


class FolderLock:
    """The lock that `up` holds on its folder. It goes with the process, however that ends."""

    def __init__(self, layout: Layout) -> None:
        self._path = layout.run / "up.lock"
        self._handle: int | None = None

    def take(self) -> None:
        """Take the lock and note our pid.

        Raises:
            Problem: already_running, with the pid of the one that holds it.
        """
        handle = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        if not _locked(handle):
            os.close(handle)
            raise Problem(
                "already_running",
                f"`pointsman up` runs in {self._path.parent.parent} already (pid {self.holder() or 'unknown'}).",
                hint=CODES["already_running"][1],
                next_command=f"pointsman ps --dir {self._path.parent.parent}",
                exit_code=Exit.CONFLICT,
            ) from None
        os.ftruncate(handle, 0)
        os.pwrite(handle, str(os.getpid()).encode(), 0)
        self._handle = handle

    def release(self) -> None:
        """Give the lock back."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def holder(self) -> int | None:
        """Return the pid of the `up` that holds the lock, or None when nobody does."""
        try:
            handle = os.open(self._path, os.O_RDONLY)
        except OSError:
            return None
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            with contextlib.suppress(ValueError):
                return int(os.pread(handle, 32, 0))
            return None
        finally:
            os.close(handle)
        return None


def _locked(handle: int) -> bool:
    """Take the lock. Whoever asks for its holder holds it for an instant, so one refusal says nothing."""
    for _ in range(LOCK_TRIES_MAX):
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            time.sleep(POLL_SECONDS)
        else:
            return True
    return False


def states(layout: Layout) -> list[dict[str, Any]]:
    """Return each component's state as `up` wrote it last, with what has changed since if `up` is dead."""
    components: list[dict[str, Any]] = read_json(layout.run / "state.json").get("components", [])
    if FolderLock(layout).holder() is not None:
        return components
    return [_seen(layout, component) for component in components]


def _seen(layout: Layout, component: dict[str, Any]) -> dict[str, Any]:
    pid = find(_command(layout, str(component["name"]))["identity"])
    return {**component, "pid": pid, "state": "stopped" if pid is None else "running"}


def _command(layout: Layout, name: str) -> dict[str, Any]:
    """Return how a component is started, recognised and stopped.

    Raises:
        Problem: unknown_component, not_running.
    """
    commands: dict[str, dict[str, Any]] = read_json(layout.run / "state.json").get("commands", {})
    if not commands:
        raise Problem(
            "not_running",
            f"Nothing has ever run in {layout.root}.",
            hint=CODES["not_running"][1],
            next_command=f"pointsman up --dir {layout.root}",
            exit_code=Exit.NOT_FOUND,
        )
    if name not in commands:
        raise Problem(
            "unknown_component",
            f"There is no component {name!r} in {layout.root}.",
            hint="There are: " + ", ".join(commands) + ".",
            next_command=f"pointsman ps --dir {layout.root}",
            exit_code=Exit.NOT_FOUND,
        )
    return commands[name]


@contextlib.contextmanager
def _orders(layout: Layout) -> Iterator[dict[str, Any]]:
    handle = os.open(layout.run / "orders.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        orders = {"number": 0, "stopped": [], **read_json(layout.run / "orders.json")}
        yield orders
        orders["number"] += 1
        write_json(layout.run / "orders.json", orders)
    finally:
        os.close(handle)


def forget_orders(layout: Layout) -> None:
    """Let everything run again: what `up` does at its start."""
    with _orders(layout) as orders:
        orders["stopped"] = []


def stop(layout: Layout, name: str) -> dict[str, Any]:
    """Stop one component and keep it stopped until `start`, or until the next `up`. Return its state.

    Raises:
        Problem: unknown_component, not_running, outcome_unknown.
    """
    command = _command(layout, name)
    with _orders(layout) as orders:
        orders["stopped"] = sorted({*orders["stopped"], name})
        number = orders["number"] + 1
    if FolderLock(layout).holder() is None:
        pid = find(command["identity"])
        if pid is not None:
            processes.stop(pid, ask=Signals(command["ask"]))
        if command.get("workers_of"):
            stop_workers(Path(command["workers_of"]))
        return state(layout, name)
    return _await(layout, name, number, {"stopped"})


def start(layout: Layout, name: str) -> dict[str, Any]:
    """Start a component that was stopped, and wait until it answers. Return its state.

    Raises:
        Problem: unknown_component, not_running, component_failed.
    """
    command = _command(layout, name)
    with _orders(layout) as orders:
        orders["stopped"] = sorted({*orders["stopped"]} - {name})
        number = orders["number"] + 1
    if FolderLock(layout).holder() is None:
        if find(command["identity"]) is None:
            processes.start(command["command"], log=layout.trim_log(name), folder=Path("/")).returncode = 0
        return state(layout, name)
    return _await(layout, name, number, {"running"})


def state(layout: Layout, name: str) -> dict[str, Any]:
    """Return one component's state."""
    return next(item for item in states(layout) if item["name"] == name)


def _await(layout: Layout, name: str, number: int, wanted: set[str]) -> dict[str, Any]:
    end = time.monotonic() + ORDER_SECONDS_MAX
    while time.monotonic() < end:
        if read_json(layout.run / "state.json").get("orders_seen", 0) >= number:
            found = state(layout, name)
            if found["state"] in wanted:
                return found
        time.sleep(POLL_SECONDS)
    found = state(layout, name)
    raise Problem(
        "component_failed",
        f"{name} is {found['state']} after {ORDER_SECONDS_MAX:.0f} s.",
        hint=f"Its log: {found['log']}",
        next_command=f"pointsman ps --dir {layout.root}",
        exit_code=Exit.UNKNOWN,
    )


def stop_everything(layout: Layout) -> list[str]:
    """Stop `up` and all it started, or what a killed `up` left behind. Return the names that were stopped.

    Raises:
        Problem: outcome_unknown, if `up` did not end in time.
    """
    running = [str(item["name"]) for item in states(layout) if item["pid"] is not None]
    holder = FolderLock(layout).holder()
    if holder is not None:
        processes.stop(holder, ask=SIGTERM, seconds_max=STOP_SECONDS_MAX)
        return running
    commands = read_json(layout.run / "state.json").get("commands", {})
    for name, command in reversed(commands.items()):
        pid = find(command["identity"])
        if pid is not None:
            processes.stop(pid, ask=Signals(command["ask"]))
        if command.get("workers_of"):
            stop_workers(Path(command["workers_of"]))
        running = [*running, name] if pid is not None and name not in running else running
    layout.state_file.unlink(missing_ok=True)
    return running
