"""`pointsman up`: both planes on one machine, each component a process of its own, watched until it is told to stop.

The folder is all the state there is. The first start makes what is missing; a later one finds it, adopts what a killed
`up` left running, and loses nothing. `pointsman.json` is there exactly while everything is up, and always tells the
pids that hold now.
"""

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import psycopg

from pointsman.client import Client
from pointsman.local import founding
from pointsman.local.components import (
    CONTROL_PLANE,
    DATA_PLANE,
    HUB,
    LEAF,
    POSTGRES,
    Parts,
    node_name,
)
from pointsman.local.layout import Layout, Ports, read_json, write_json
from pointsman.local.orders import FolderLock, forget_orders
from pointsman.local.supervision import TICK_SECONDS, Component, Supervisor
from pointsman.problems import Problem

STATE_VERSION = 1
READY_SECONDS_MAX = 90.0
NODES_MAX = 16
LOG_LINES_SHOWN = 8

Note = Callable[[str, str], None]
"""Hears what happens: a component's name and a word or two, for people."""


class _StopRequested(Exception):
    """Somebody asked us to stop while we were waiting for something."""


class Up:
    """One run of `up` in one folder."""

    def __init__(self, folder: Path, *, nodes: int = 1, note: Note = lambda name, words: None) -> None:
        self.layout = Layout(folder.resolve())
        self._nodes = nodes
        self._note = note
        self._stop = False
        self._ready = False
        self._noted: set[str] = set()
        self._lock = FolderLock(self.layout)

    def run(self, *, when_ready: Callable[[dict[str, Any]], None] = lambda state: None) -> None:
        """Start everything, call `when_ready` with what `pointsman.json` says, and watch until SIGINT or SIGTERM.

        Raises:
            Problem: already_running, component_failed. Whatever had been started is stopped again.
        """
        os.umask(0o077)
        self.layout.prepare()
        self._lock.take()
        supervisor = Supervisor(self.layout, on_change=self._publish)
        self._supervisor = supervisor
        try:
            with self._signals():
                try:
                    self._begin()
                    when_ready(self.state())
                    self._watch()
                except _StopRequested:
                    pass
                except (RuntimeError, psycopg.Error) as error:
                    raise Problem(
                        "component_failed", f"{error}".strip(), hint=f"Logs: {self.layout.root / 'logs'}"
                    ) from error
                finally:
                    self._end()
        finally:
            self._lock.release()

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        def ask(_number: int, _frame: FrameType | None) -> None:
            self._stop = True

        before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    # ---- Beginning ----

    def _begin(self) -> None:
        layout = self.layout
        layout.state_file.unlink(missing_ok=True)
        forget_orders(layout)
        founding.make_keys(layout)
        ports = Ports(layout)
        parts = self._parts = Parts(layout, ports)
        founding.make_postgres(parts)
        self._add(POSTGRES, parts.postgres, POSTGRES)
        for name, folder in self._extra_servers():
            self._add(name, lambda name=name, folder=folder: parts.extra_server(name, folder), name)  # type: ignore[misc]
        self._add(HUB, parts.hub, HUB, "hub-leaf")
        self._add_known_nodes()
        self._until(POSTGRES)
        founding.make_database(parts)
        self._add(CONTROL_PLANE, parts.control_plane, "api")
        self._until(CONTROL_PLANE)
        founding.make_tenant(parts)
        founding.make_data_plane(parts)
        for number in range(1, self._nodes + 1):
            self._join(node_name(number))
        for name in self._supervisor.names():
            self._until(name)
        self._until_linked()
        self._ready = True
        self._publish()

    def _extra_servers(self) -> list[tuple[str, Path]]:
        found = read_json(self.layout.run / "servers.json")
        return [(name, self.layout.root / str(folder)) for name, folder in found.items()]

    def _add(self, name: str, make: Callable[[], Component], *ports: str) -> None:
        """Watch a component. A port that somebody else has taken is replaced before the component is made."""
        if not self._supervisor.runs(make()):
            taken = [port for port in ports if self._parts.ports.replace_if_taken(port)]
            if taken:
                self._note(name, "its port is taken by another program; using a new one")
        self._supervisor.add(make())
        self._note(name, "found running" if self._supervisor.is_adopted(name) else "starting")

    def _add_known_nodes(self) -> None:
        """Start the customer's side at once if it exists: it needs nothing of what is above it."""
        from dataplane.link.leaf import CTL_SEED

        joined = sorted(
            (
                path.name
                for path in (self.layout.root / "nodes").iterdir()
                if founding.has_joined(self.layout, path.name)
            ),
            key=lambda name: int(name.rpartition("-")[2]) if name.rpartition("-")[2].isdecimal() else 0,
        )
        if joined and (self.layout.root / LEAF / CTL_SEED).exists():
            self._add(LEAF, self._parts.leaf, LEAF)
            for name in joined:
                self._add(name, lambda name=name: self._parts.node(name), f"{name}-metrics")  # type: ignore[misc]

    def _join(self, name: str) -> None:
        founding.join(self._parts, name)
        if LEAF not in self._supervisor.names():
            self._add(LEAF, self._parts.leaf, LEAF)
        if name not in self._supervisor.names():
            self._add(name, lambda: self._parts.node(name), f"{name}-metrics")

    # ---- Waiting and watching ----

    def _until(self, name: str) -> None:
        self._wait(name, lambda: self._supervisor.is_ready(name) or self._supervisor.is_stopped(name))
        if name not in self._noted:
            self._noted.add(name)
            self._note(name, "ready")

    def _until_linked(self) -> None:
        """Wait until the control plane is ready and has heard from every node that runs here."""
        with Client(self._parts.api_url, founding.read_secret(self.layout.api_key_file), attempts_max=1) as client:
            self._wait(CONTROL_PLANE, client.is_ready)
            for name in self._supervisor.names():
                if founding.has_joined(self.layout, name):
                    self._wait(name, lambda name=name: _has_reported(client, name), pause=0.3)  # type: ignore[misc]

    def _wait(self, name: str, holds: Callable[[], bool], *, pause: float = TICK_SECONDS) -> None:
        end = time.monotonic() + READY_SECONDS_MAX
        while not holds():
            if time.monotonic() > end:
                raise self._failed(name)
            self._step(pause)

    def _step(self, pause: float) -> None:
        self._supervisor.tick()
        if self._stop:
            raise _StopRequested
        time.sleep(pause)

    def _watch(self) -> None:
        while True:
            self._step(TICK_SECONDS)

    def _failed(self, name: str) -> Problem:
        log = self.layout.log(name)
        return Problem(
            "component_failed",
            f"{name} is not ready after {READY_SECONDS_MAX:.0f} s.",
            hint=f"Its log: {log}",
            details=_last_lines(log),
        )

    def _end(self) -> None:
        self._ready = False
        self.layout.state_file.unlink(missing_ok=True)
        self._supervisor.stop_all(lambda name: self._note(name, "stopping"))

    # ---- What is told ----

    def state(self) -> dict[str, Any]:
        """Return what `pointsman.json` says."""
        layout, parts = self.layout, self._parts
        return {
            "version": STATE_VERSION,
            "pid": os.getpid(),
            "api": {"url": parts.api_url},
            "api_key_file": str(layout.api_key_file),
            "operator_key_file": str(layout.operator_key_file),
            "hub": {"url": f"nats://127.0.0.1:{parts.ports.get(HUB)}", "leaf_url": parts.hub_leaf_url},
            "leaf": {"url": parts.leaf_url},
            "secrets_folder": str(layout.secrets),
            "data_plane": DATA_PLANE,
            "components": self._supervisor.states(),
        }

    def _publish(self) -> None:
        if self._ready:
            write_json(self.layout.state_file, self.state())


def _has_reported(client: Client, node: str) -> bool:
    try:
        return bool((client.get("nodes", node).get("status") or {}).get("ready"))
    except Problem:
        return False


def _last_lines(log: Path) -> list[str]:
    try:
        with log.open("rb") as stream:
            stream.seek(max(0, log.stat().st_size - 8_192))
            return stream.read().decode(errors="replace").splitlines()[-LOG_LINES_SHOWN:]
    except OSError:
        return []
