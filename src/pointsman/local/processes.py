"""Start and stop child processes: what they print goes to a file, and they end when asked, or are killed.

Callers keep the pid: a process is only ever ended by the id that was handed out here, never by its name.
"""

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

STOP_SECONDS_MAX = 20.0


def free_port() -> int:
    """Return a TCP port of 127.0.0.1 that nobody listens on right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def start(
    command: Sequence[str], *, log: Path, environment: Mapping[str, str] | None = None, folder: Path | None = None
) -> subprocess.Popen[bytes]:
    """Start `command` in a session of its own, its output appended to `log`.

    A session of its own keeps a Ctrl-C in the terminal from reaching it, so that the caller decides the order of stops.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        return subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            cwd=folder,
            env={**os.environ, **(environment or {})},
        )


def is_running(pid: int) -> bool:
    """Say whether the process exists and is not a zombie."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def stop(pid: int, *, ask: signal.Signals = signal.SIGTERM, seconds_max: float = STOP_SECONDS_MAX) -> None:
    """Ask the process to end, and kill it when it has not after `seconds_max` seconds."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, ask)
        if not wait_until_gone(pid, seconds_max=seconds_max):
            os.kill(pid, signal.SIGKILL)
            wait_until_gone(pid, seconds_max=seconds_max)


def reap(pid: int) -> None:
    """Take note of the end of a child of ours, if it has ended, so that nothing of it is left in the process table."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


def wait_until_gone(pid: int, *, seconds_max: float) -> bool:
    """Wait for the process to end, whoever its parent is. Return whether it did."""
    end = time.monotonic() + seconds_max
    while time.monotonic() < end:
        reap(pid)
        if not is_running(pid):
            return True
        time.sleep(0.02)
    return False
