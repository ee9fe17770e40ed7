"""`python -m dataplane.node --dir FOLDER`: run the agent of the node that joined into FOLDER.

How it ends:

- SIGTERM ends the agent and leaves the workers running; the agent that starts next finds them. Restarting or upgrading
  the agent therefore moves no data about. Under systemd this needs `KillMode=process`.
- SIGINT (Ctrl-C) ends everything: the workers, each at a transaction's end, and the leases, so that another node takes
  over at once.
- `python -m dataplane.node stop-workers --dir FOLDER` ends everything too, whether an agent runs or not, and returns
  when nothing runs any more. It is what a service's ExecStop should be.

Exit codes: 0 as asked, 1 after a fault of the program, 64 when nobody has joined into FOLDER, 75 when an agent already
runs from it.
"""

import argparse
import asyncio
import contextlib
import logging
import os
import signal
import sys
import time
from pathlib import Path

import msgspec

from dataplane import config
from dataplane.node import log, process
from dataplane.node.process import RunFolder

EXIT_FAULT = 1
EXIT_USAGE = 64
EXIT_RUNS_ALREADY = 75
STOP_SECONDS_MAX = 20.0
KILL_AFTER_SECONDS = 10.0
POLL_SECONDS = 0.05

_log = logging.getLogger("dataplane.node")


def main() -> int:
    """Read the command line and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m dataplane.node", description="Run a node's agent.")
    parser.add_argument("command", nargs="?", choices=["run", "stop-workers"], default="run", help="default: run")
    parser.add_argument("--dir", required=True, type=Path, metavar="FOLDER", help="the node's folder")
    parser.add_argument("--log-level", default="info", choices=["debug", "info", "warning", "error"])
    arguments = parser.parse_args()
    log.configure(arguments.log_level)
    folder = arguments.dir.resolve()
    if arguments.command == "stop-workers":
        return stop_workers(folder)
    try:
        node = config.read(folder)
    except (FileNotFoundError, msgspec.DecodeError) as error:
        _log.error("not_joined", extra={"reason": str(error), "hint": "run `pointsman node join` first"})
        return EXIT_USAGE
    run_folder = folder / "run"
    run_folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    lock = run_folder / "agent"
    before = lock.stat().st_mtime if lock.exists() else None
    held = process.take_lock(lock)
    if held is None:
        _log.error("agent_runs_already", extra={"folder": str(folder)})
        return EXIT_RUNS_ALREADY
    os.ftruncate(held, 0)
    os.write(held, b"%d\n" % os.getpid())
    return asyncio.run(_run(folder, node, before))


async def _run(folder: Path, node: config.NodeConfig, before: float | None) -> int:
    from dataplane.node.agent import RESTART_REPORT_SECONDS, Agent

    stop, end_workers = asyncio.Event(), asyncio.Event()

    def end_all() -> None:
        end_workers.set()
        stop.set()

    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    loop.add_signal_handler(signal.SIGINT, end_all)
    restarted = before is not None and time.time() - before > RESTART_REPORT_SECONDS
    try:
        await Agent(folder, node).run(stop, end_workers=end_workers, restarted=restarted)
    except Exception:  # noqa: BLE001 - it is logged as all else is, and answered by the exit code
        _log.exception("agent_failed")
        return EXIT_FAULT
    return 0


def stop_workers(folder: Path) -> int:
    """End the agent and all workers of a node, and return when none lives."""
    run = RunFolder(folder / "run")
    agent = folder / "run" / "agent"
    end = time.monotonic() + STOP_SECONDS_MAX
    if process.is_alive(agent):
        with contextlib.suppress(ValueError, ProcessLookupError):
            os.kill(int(agent.read_text()), signal.SIGINT)
        while process.is_alive(agent) and time.monotonic() < end:
            time.sleep(POLL_SECONDS)
    kill_at = time.monotonic() + KILL_AFTER_SECONDS
    asked = set()
    while living := list(run.living()):
        late = time.monotonic() >= kill_at
        if late and time.monotonic() >= kill_at + KILL_AFTER_SECONDS:
            _log.error("workers_left", extra={"workers": [str(key) for key in living]})
            return EXIT_FAULT
        for key in living:
            if late or key not in asked:
                process.send_signal(run.files(key), signal.SIGKILL if late else signal.SIGTERM)
                asked.add(key)
        time.sleep(POLL_SECONDS)
    return 0


if __name__ == "__main__":
    sys.exit(main())
