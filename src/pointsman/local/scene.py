"""What the demo watches: how far the destination is, whether the control plane answers, which workers live.

One thread looks a few times a second and keeps the newest of everything; the stage draws it and the acts wait for it.
"""

import contextlib
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import psycopg

from pointsman.client import Client
from pointsman.local.layout import Layout
from pointsman.local.orders import states
from pointsman.local.stage import Light
from pointsman.local.workers import worker_pids
from pointsman.local.workload import Writer, arrived
from pointsman.problems import Problem

LOOK_SECONDS = 0.05
STATE_SECONDS = 0.25
API_SECONDS = 0.5
SAMPLES_MAX = 4_000


@dataclass
class Seen:
    """The newest of everything. Only the watching thread writes it."""

    arrived: int = 0
    control_plane: bool = False
    hub: bool = False
    customer: bool = False
    """The leaf and every node run."""
    workers: dict[str, int] = field(default_factory=dict)
    pipeline: dict[str, Any] = field(default_factory=dict)
    """The resource as the API gave it last."""


class Scene:
    """Watches until it is closed."""

    def __init__(self, layout: Layout, client: Client, warehouse: str, writer: Writer, pipeline: str) -> None:
        self.seen = Seen()
        self._layout, self._client, self._warehouse = layout, client, warehouse
        self._writer, self._pipeline = writer, pipeline
        self._written: deque[tuple[float, int]] = deque(maxlen=SAMPLES_MAX)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="scene", daemon=True)

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def close(self) -> None:
        """Stop watching."""
        self._stop.set()
        self._thread.join(timeout=10)

    @property
    def behind(self) -> int:
        """How many transactions the destination lacks."""
        return max(0, self._writer.transactions - self.seen.arrived)

    @property
    def behind_seconds(self) -> float:
        """How old the oldest transaction is that the destination lacks."""
        if not self.behind:
            return 0.0
        oldest = next((at for at, number in self._written if number > self.seen.arrived), None)
        return 0.0 if oldest is None else time.monotonic() - oldest

    def _run(self) -> None:
        state_at = api_at = 0.0
        connection: psycopg.Connection[tuple[object, ...]] | None = None
        while not self._stop.wait(LOOK_SECONDS):
            now = time.monotonic()
            self._written.append((now, self._writer.transactions))
            connection = self._look_at_warehouse(connection)
            if now >= state_at + STATE_SECONDS:
                state_at = now
                self._look_at_parts()
            if now >= api_at + API_SECONDS:
                api_at = now
                self._look_at_api()
        if connection is not None:
            connection.close()

    def _look_at_warehouse(
        self, connection: psycopg.Connection[tuple[object, ...]] | None
    ) -> psycopg.Connection[tuple[object, ...]] | None:
        try:
            if connection is None or connection.closed:
                connection = psycopg.connect(self._warehouse, autocommit=True, connect_timeout=2)
            self.seen.arrived = arrived(connection)
        except psycopg.OperationalError:
            return None
        return connection

    def _look_at_parts(self) -> None:
        running = {item["name"]: item["state"] == "running" for item in states(self._layout)}
        self.seen.hub = running.get("hub", False)
        self.seen.customer = all(on for name, on in running.items() if name == "leaf" or name.startswith("node-"))
        self.seen.workers = worker_pids(self._layout.node("node-1"))

    def _look_at_api(self) -> None:
        self.seen.control_plane = self._client.is_alive()
        if self.seen.control_plane:
            with contextlib.suppress(Problem):
                self.seen.pipeline = self._client.get("pipelines", self._pipeline)

    def lights(self) -> list[Light]:
        """Return the picture's lines."""
        seen, writer = self.seen, self._writer
        phase = (seen.pipeline.get("status") or {}).get("phase", "not seen yet")
        workers = ", ".join(f"{name.rpartition('/')[2]} {pid}" for name, pid in seen.workers.items())
        behind = f"{self.behind:,} behind" if self.behind else "nothing behind"
        age = f", {self.behind_seconds:.1f} s" if self.behind_seconds >= 1 else ""
        return [
            Light("shop", writer.failure is None, f"{writer.transactions:,} transactions, {writer.rows:,} rows"),
            Light("control plane", seen.control_plane, f"pipeline {phase}" if seen.control_plane else "away"),
            Light("hub", seen.hub, "routing" if seen.hub else "away"),
            Light("leaf and node", seen.customer, "running" if seen.customer else "away"),
            Light("workers", bool(seen.workers), workers or "none"),
            Light("warehouse", self.behind < 500, f"{seen.arrived:,} transactions, {behind}{age}"),
        ]
