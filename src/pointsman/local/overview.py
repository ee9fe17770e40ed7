"""What runs in a folder: components and workers, with uptime and memory. For `ps` and the demo."""

import contextlib
import time
from typing import Any

import psutil

from pointsman.local.layout import Layout
from pointsman.local.orders import FolderLock, states
from pointsman.local.workers import worker_pids

Row = dict[str, Any]


def rows(layout: Layout) -> list[Row]:
    """Return a row for `up` itself, for each component and for each worker, in the order of their start."""
    up = FolderLock(layout).holder()
    listed: list[Row] = [
        _measured({"name": "up", "kind": "up", "state": "stopped" if up is None else "running", "pid": up})
    ]
    for component in states(layout):
        listed.append(_measured({**component, "kind": "component"}))
        node = layout.node(str(component["name"]))
        if (node / "run").exists():
            for name, pid in sorted(worker_pids(node).items()):
                worker = {"name": name, "kind": "worker", "node": component["name"], "state": "running", "pid": pid}
                listed.append(_measured({**worker, "log": str(node / "run" / f"{name.replace('/', '-')}.log")}))
    return listed


def _measured(row: Row) -> Row:
    uptime = memory = None
    pid = row.get("pid")
    if pid is not None:
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            process = psutil.Process(pid)
            uptime = max(0.0, time.time() - process.create_time())
            memory = sum(_memory(each) for each in (process, *_children(row, process)))
    measured = {**row, "uptime_seconds": uptime and round(uptime, 1), "memory_bytes": memory}
    measured.pop("started_at", None)
    return measured


def _children(row: Row, process: psutil.Process) -> list[psutil.Process]:
    # PostgreSQL is many processes; everything else that has children lists them by itself.
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.children() if str(row.get("url", "")).startswith("postgresql:") else []
    return []


def _memory(process: psutil.Process) -> int:
    """Return the memory that would come back if the process ended: shared pages count by their share, if known."""
    with contextlib.suppress(psutil.Error, AttributeError):
        full = process.memory_full_info()
        return int(getattr(full, "pss", full.uss))
    with contextlib.suppress(psutil.Error):
        return int(process.memory_info().rss)
    return 0
