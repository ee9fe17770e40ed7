"""Keeps the processes of one folder running, and takes orders about single ones.

Level-triggered: `tick` looks at what should run and at what does, and does the next thing; nothing that happens in
between can be missed. What should run is everything but the names in `run/orders.json`, which `pointsman stop` and
`start` write. A process that ends unasked is started again, the longer after each time the more often it did. Processes
are recognised by their command, so an `up` that follows a killed one adopts what still runs, with its pid.

Called by `up` alone; it owns the folder's lock.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from signal import SIGTERM, Signals
from typing import Any

import psutil

from pointsman.local import processes
from pointsman.local.layout import Layout, read_json, write_json
from pointsman.local.workers import stop_workers

TICK_SECONDS = 0.1
BACKOFF_SECONDS_MIN = 0.5
BACKOFF_SECONDS_MAX = 30.0
HEALTHY_SECONDS = 30.0
"""A process that lived this long starts the backoff anew."""


class State(Enum):
    """How a component stands."""

    STARTING = "starting"
    RUNNING = "running"
    STOPPED = "stopped"
    """Stopped because somebody asked for it."""
    RESTARTING = "restarting"
    """It ended by itself and is started again after a while."""


@dataclass(frozen=True)
class Component:
    """A long-running process. `identity` are consecutive arguments that only its command line has."""

    name: str
    command: tuple[str, ...]
    identity: tuple[str, ...]
    log: Path
    is_ready: Callable[[], bool]
    rank: int
    """Its place in lists and, from the highest to the lowest, in the order of stops."""
    url: str | None = None
    ask: Signals = SIGTERM
    workers_of: Path | None = None
    """A node's folder: its workers outlive the agent, but not an order to stop it."""
    before_start: Callable[[], object] = lambda: None
    """What has to be seen to before each start."""


@dataclass
class _Watched:
    component: Component
    state: State = State.STARTING
    pid: int | None = None
    started_at: float = 0.0
    restarts: int = 0
    failures: int = 0
    retry_at: float = 0.0
    ready: bool = False
    adopted: bool = False


@dataclass
class Supervisor:
    """Watches components, and at the end stops them from the customer's side upwards."""

    layout: Layout
    on_change: Callable[[], None] = lambda: None
    _watched: dict[str, _Watched] = field(default_factory=dict)
    _orders_seen: int = -1

    def add(self, component: Component) -> None:
        """Watch a component from now on; it is adopted if it runs already, and started if it does not."""
        found = _Watched(component, started_at=time.time())
        self._watched[component.name] = found
        pid = find(component.identity)
        if pid is not None:
            found.pid, found.adopted, found.started_at = pid, True, psutil.Process(pid).create_time()
        elif component.name not in self._stopped():
            self._start(found)
        self._publish()

    @staticmethod
    def runs(component: Component) -> bool:
        """Say whether the component's process is there already, whoever started it."""
        return find(component.identity) is not None

    def is_adopted(self, name: str) -> bool:
        """Say whether the component ran before we came."""
        return self._watched[name].adopted

    def names(self) -> tuple[str, ...]:
        """Return the names of all components, by their rank."""
        return tuple(watched.component.name for watched in self._ranked())

    def _ranked(self) -> list[_Watched]:
        return sorted(self._watched.values(), key=lambda watched: watched.component.rank)

    def is_ready(self, name: str) -> bool:
        """Say whether a component runs and answers."""
        watched = self._watched[name]
        return watched.state is State.RUNNING and watched.ready

    def is_stopped(self, name: str) -> bool:
        """Say whether somebody asked for a component to be stopped, and it is."""
        return self._watched[name].state is State.STOPPED

    def tick(self) -> None:
        """Look once at every component and do what is next for it."""
        orders = read_json(self.layout.run / "orders.json")
        stopped = set(orders.get("stopped", ()))
        changed = [self._look(watched, watched.component.name in stopped) for watched in self._watched.values()]
        seen = int(orders.get("number", 0))
        if any(changed) or seen != self._orders_seen:
            self._orders_seen = seen
            self._publish()

    def _look(self, watched: _Watched, should_stop: bool) -> bool:
        before = (watched.state, watched.pid, watched.ready)
        alive = watched.pid is not None and processes.is_running(watched.pid)
        if should_stop:
            self._end(watched) if alive else self._note_stopped(watched)
        elif not alive and watched.state in (State.RUNNING, State.STARTING) and watched.pid is not None:
            self._note_death(watched)
        elif not alive and time.time() >= watched.retry_at:
            self._start(watched)
        elif alive:
            self._note_life(watched)
        return before != (watched.state, watched.pid, watched.ready)

    def _start(self, watched: _Watched) -> None:
        component = watched.component
        component.before_start()
        log = self.layout.trim_log(component.name)
        process = processes.start(component.command, log=log, folder=Path("/"))
        watched.pid, watched.started_at, watched.adopted = process.pid, time.time(), False
        watched.state, watched.ready = State.STARTING, False
        # Its end is seen and reaped through the pid, as that of an adopted one is; the object would only warn.
        process.returncode = 0

    def _note_life(self, watched: _Watched) -> None:
        if not watched.ready and watched.component.is_ready():
            watched.ready, watched.state = True, State.RUNNING
        if watched.failures and time.time() - watched.started_at > HEALTHY_SECONDS:
            watched.failures = 0

    def _note_death(self, watched: _Watched) -> None:
        # Reaped, or its pid would look alive: PostgreSQL refuses to start beside the lock file of a living server.
        if watched.pid is not None:
            processes.reap(watched.pid)
        watched.failures += 1
        watched.restarts += 1
        delay = min(BACKOFF_SECONDS_MAX, BACKOFF_SECONDS_MIN * 2.0 ** min(watched.failures - 1, 10))
        watched.retry_at = time.time() + delay
        watched.state, watched.pid, watched.ready = State.RESTARTING, None, False

    def _note_stopped(self, watched: _Watched) -> None:
        watched.state, watched.pid, watched.ready = State.STOPPED, None, False
        watched.failures, watched.retry_at = 0, 0.0

    def _end(self, watched: _Watched) -> None:
        if watched.pid is not None:
            processes.stop(watched.pid, ask=watched.component.ask)
        if watched.component.workers_of is not None:
            stop_workers(watched.component.workers_of)
        self._note_stopped(watched)

    def stop_all(self, note: Callable[[str], None]) -> None:
        """Stop everything, the highest rank first. `note` hears each name before it is stopped."""
        for watched in reversed(self._ranked()):
            if watched.pid is not None and processes.is_running(watched.pid):
                note(watched.component.name)
            self._end(watched)
            self._publish()

    def states(self) -> list[dict[str, Any]]:
        """Return what `pointsman.json` and `ps` say of each component."""
        return [
            {
                "name": watched.component.name,
                "pid": watched.pid,
                "log": str(watched.component.log),
                "state": watched.state.value,
                "started_at": watched.started_at if watched.pid is not None else None,
                "restarts": watched.restarts,
                **({"url": watched.component.url} if watched.component.url else {}),
            }
            for watched in self._ranked()
        ]

    def _stopped(self) -> set[str]:
        return set(read_json(self.layout.run / "orders.json").get("stopped", ()))

    def _publish(self) -> None:
        write_json(
            self.layout.run / "state.json",
            {
                "orders_seen": self._orders_seen,
                "components": self.states(),
                "commands": {
                    watched.component.name: {
                        "command": list(watched.component.command),
                        "identity": list(watched.component.identity),
                        "ask": int(watched.component.ask),
                        "workers_of": watched.component.workers_of and str(watched.component.workers_of),
                    }
                    for watched in self._ranked()
                },
            },
        )
        self.on_change()


def find(identity: Sequence[str]) -> int | None:
    """Return the pid of the process whose command line has these arguments in a row; a parent before its children."""
    found = {process.pid: process.ppid() for process in _matching(identity)}
    tops = [pid for pid, parent in found.items() if parent not in found]
    return min(tops) if tops else None


def _matching(identity: Sequence[str]) -> Iterable[psutil.Process]:
    wanted = list(identity)
    for process in psutil.process_iter(["cmdline"]):
        command = process.info["cmdline"] or []
        starts = range(1, len(command) - len(wanted) + 1)
        if any(command[start : start + len(wanted)] == wanted for start in starts):
            try:
                if process.status() != psutil.STATUS_ZOMBIE:
                    yield process
            except psutil.NoSuchProcess:
                continue
