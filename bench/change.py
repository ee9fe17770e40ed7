"""How long a change of configuration takes until its node acts on it, and what an idle node weighs.

`uv run python -m bench.change [--changes N]`: `pointsman up` in a folder of its own, two fresh PostgreSQL servers, one
pipeline with buffer `direct`. Each change is one HTTP request; the time runs from its sending until the API says that
the node has observed the new generation, asked every 2 ms. Prints medians and 95th percentiles in milliseconds, and
the memory of the node's processes once they are idle.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import psycopg
from bench.summary import tell

from pointsman.local import postgres, processes

ASK_SECONDS = 0.002
WAIT_SECONDS_MAX = 60.0
IDLE_SECONDS = 15.0


@contextmanager
def databases(folder: Path) -> Iterator[tuple[postgres.PostgresServer, postgres.PostgresServer]]:
    """A source with one table of 1,000 rows, and an empty destination."""
    source = postgres.PostgresServer(folder / "source", processes.free_port(), settings=postgres.LOGICAL)
    sink = postgres.PostgresServer(folder / "sink", processes.free_port())
    started = []
    try:
        for server in (source, sink):
            server.create()
            server.start()
            started.append(server)
        with psycopg.connect(source.conninfo(), autocommit=True) as connection:
            connection.execute("CREATE TABLE items AS SELECT n AS id, 'x' AS name FROM generate_series(1, 1000) n")
            connection.execute("ALTER TABLE items ADD PRIMARY KEY (id)")
        yield source, sink
    finally:
        for server in started:
            server.stop(immediate=True)


@contextmanager
def planes(folder: Path) -> Iterator[dict[str, Any]]:
    """Both planes, and what `pointsman.json` says of them."""
    up = processes.start([sys.executable, "-m", "pointsman", "up", "--dir", str(folder)], log=folder.parent / "up.log")
    try:
        end = time.monotonic() + WAIT_SECONDS_MAX
        while not (folder / "pointsman.json").exists():
            if up.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"the planes did not start; see {folder.parent / 'up.log'}")
            time.sleep(0.05)
        yield json.loads((folder / "pointsman.json").read_text())
    finally:
        processes.stop(up.pid)
        up.wait()


class Pipeline:
    """One pipeline, changed through the API."""

    PATH = "/v1/pipelines/bench"

    def __init__(self, api: httpx.Client) -> None:
        self.api = api

    def create(self, source: postgres.PostgresServer, sink: postgres.PostgresServer) -> None:
        for name, server in (("source", source), ("sink", sink)):
            config = {"host": "127.0.0.1", "port": server.port, "database": "postgres", "user": "postgres"}
            self.api.put(f"/v1/connections/{name}", json={"type": "postgres", "config": config}).raise_for_status()
        self.timed(lambda: self.api.put(self.PATH, json=self.document([])), "streaming")

    def document(self, transforms: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "data_plane": "local",
            "source": {"connection": "source", "tables": ["public.items"]},
            "sink": {"connection": "sink"},
            "transforms": transforms,
        }

    def timed(self, change: Callable[[], httpx.Response], phase: str) -> float:
        """Make one change; return the milliseconds until the node acts on it in `phase`."""
        begin = time.perf_counter()
        answer = change()
        answer.raise_for_status()
        generation = answer.json()["generation"]
        while time.perf_counter() - begin < WAIT_SECONDS_MAX:
            status = self.api.get(self.PATH).json()["status"]
            if status.get("observed_generation") == generation and status["phase"] == phase:
                return 1000 * (time.perf_counter() - begin)
            time.sleep(ASK_SECONDS)
        raise RuntimeError(f"generation {generation} was not {phase} after {WAIT_SECONDS_MAX:.0f} s")


def measure(pipeline: Pipeline, changes: int) -> dict[str, list[float]]:
    """Pause, resume and configure in turn."""
    taken: dict[str, list[float]] = {"pause": [], "resume": [], "configure": []}
    post = pipeline.api.post
    for number in range(changes):
        taken["pause"].append(pipeline.timed(lambda: post(f"{pipeline.PATH}/pause"), "paused"))
        taken["resume"].append(pipeline.timed(lambda: post(f"{pipeline.PATH}/resume"), "streaming"))
        mask = {"type": "mask", "table": "public.items", "columns": ["name"]}
        document = pipeline.document([mask] if number % 2 == 0 else [])
        put = lambda document=document: pipeline.api.put(pipeline.PATH, json=document)  # noqa: E731
        taken["configure"].append(pipeline.timed(put, "streaming"))
    return taken


def weigh(folder: Path) -> list[tuple[str, float, float]]:
    """Return resident and proportional MiB of the node's agent and worker."""
    weights = []
    for process in psutil.process_iter(["cmdline"]):
        line = " ".join(process.info["cmdline"] or ())
        if str(folder) in line and ("dataplane.node" in line or "dataplane.worker" in line):
            memory = process.memory_full_info()
            name = "agent" if "dataplane.node" in line else "worker"
            weights.append((name, memory.rss / 2**20, memory.pss / 2**20))
    return sorted(weights)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--changes", type=int, default=20)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="pm-bench-") as scratch:
        folder = Path(scratch) / "up"
        with databases(Path(scratch)) as (source, sink), planes(folder) as here:
            key = Path(here["api_key_file"]).read_text().strip()
            headers = {"Authorization": f"Bearer {key}"}
            with httpx.Client(base_url=here["api"]["url"], headers=headers, timeout=10) as api:
                pipeline = Pipeline(api)
                pipeline.create(source, sink)
                for name, milliseconds in measure(pipeline, arguments.changes).items():
                    high = statistics.quantiles(milliseconds, n=20)[-1]
                    tell(f"change, {name}: ms", milliseconds)
                    print(f"{name:10} p50 {statistics.median(milliseconds):6.1f} ms   p95 {high:6.1f} ms")
            time.sleep(IDLE_SECONDS)
            weights = weigh(folder)
            for name, resident, proportional in weights:
                print(f"{name:10} resident {resident:6.1f} MiB   proportional {proportional:6.1f} MiB")
            tell("change: memory of an idle node, MiB", [sum(weight[1] for weight in weights)])
            print(f"{'all':10} resident {sum(weight[1] for weight in weights):6.1f} MiB")


if __name__ == "__main__":
    main()
