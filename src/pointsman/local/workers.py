"""The workers of a node on this machine: they outlive their agent, so whoever ends a node has to end them too."""

import time
from pathlib import Path
from signal import SIGKILL, SIGTERM

from dataplane.node import process
from dataplane.node.process import RunFolder

STOP_SECONDS_MAX = 15.0
POLL_SECONDS = 0.05


def worker_pids(node_folder: Path) -> dict[str, int]:
    """Return the living workers of a node: pipeline and half, as `orders/whole`, → pid."""
    run = RunFolder(node_folder / "run")
    pids = {f"{key.pipeline}/{key.half.value}": process.pid_of(run.files(key)) for key in run.living()}
    return {name: pid for name, pid in pids.items() if pid is not None}


def stop_workers(node_folder: Path) -> None:
    """End the workers of a node whose agent is gone: at a transaction's end, or by force when that takes too long."""
    if not (node_folder / "run").exists():
        return
    run = RunFolder(node_folder / "run")
    end = time.monotonic() + STOP_SECONDS_MAX
    asked: set[object] = set()
    while living := list(run.living()):
        late = time.monotonic() > end
        for key in living:
            if late or key not in asked:
                process.send_signal(run.files(key), SIGKILL if late else SIGTERM)
                asked.add(key)
        time.sleep(POLL_SECONDS)
        if late and time.monotonic() > end + STOP_SECONDS_MAX:
            return
