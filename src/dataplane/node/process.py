"""Worker processes as the system knows them: started in sessions of their own, found again after the agent's death.

Each worker inherits a lock on its lock file and holds it until it ends, however it ends. So whether a worker lives is
asked of the kernel and of nothing that could be stale: the lock is free or it is not. The worker's pid is written by
the process that becomes the worker, before it does, so an agent that is killed between starting a worker and noting
its pid loses nothing; and while the lock is held, the pid in the file is that of its holder.

All files of a worker lie in the node's `run` folder under the pipeline's name and half; only sockets may lie elsewhere,
because the system limits the length of their paths. Called by the supervisor and by `stop-workers`.
"""

import contextlib
import fcntl
import hashlib
import os
import shutil
import signal
import stat
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from dataplane.worker.protocol import Half

SOCKET_PATH_BYTES_MAX = 103
"""The shortest limit of the systems we run on, without its closing zero."""
LOG_BYTES_MAX = 16 << 20
"""A worker's log is moved aside when it is larger; one older piece is kept."""

# The shell notes its own pid and becomes the worker: `$0` is the pid file, `$@` the worker's command.
_NOTE_PID_AND_BECOME = 'echo $$ >"$0"; exec "$@"'

_LEAN_ENVIRONMENT = {
    # Fewer malloc arenas and no thread pool of numpy's: a worker has few threads and should be small.
    "MALLOC_ARENA_MAX": "2",
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
}


class WorkerKey(NamedTuple):
    """Which worker of the node: each key has one process at most."""

    pipeline: str
    half: Half

    def __str__(self) -> str:
        return f"{self.pipeline}-{self.half.value}"


class WorkerFiles(NamedTuple):
    """Where a worker's files lie."""

    assignment: Path
    lock: Path
    pid: Path
    log: Path
    socket: Path


class RunFolder:
    """The node's `run` folder and the names in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._sockets = _socket_folder(folder)

    def files(self, key: WorkerKey) -> WorkerFiles:
        """Return the paths of one worker's files."""
        stem = str(key)
        socket = hashlib.sha256(stem.encode()).hexdigest()[:16]
        return WorkerFiles(
            assignment=self.folder / f"{stem}.assignment.json",
            lock=self.folder / f"{stem}.lock",
            pid=self.folder / f"{stem}.pid",
            log=self.folder / f"{stem}.log",
            socket=self._sockets / f"{socket}.sock",
        )

    def living(self) -> Iterator[WorkerKey]:
        """Give the workers that live now, whoever started them."""
        for lock in sorted(self.folder.glob("*.lock")):
            pipeline, _, half = lock.stem.rpartition("-")
            if pipeline and half in {each.value for each in Half} and is_alive(lock):
                yield WorkerKey(pipeline, Half(half))

    def forget(self, key: WorkerKey) -> None:
        """Delete the files of a worker that has ended and is not wanted any more; its log stays."""
        files = self.files(key)
        for path in (files.assignment, files.lock, files.pid, files.socket):
            path.unlink(missing_ok=True)


def _socket_folder(run: Path) -> Path:
    if len(os.fsencode(run / f"{'0' * 16}.sock")) <= SOCKET_PATH_BYTES_MAX:
        return run
    name = hashlib.sha256(os.fsencode(run.resolve())).hexdigest()[:12]
    short = Path(tempfile.gettempdir()) / f"pointsman-{os.geteuid()}-{name}"
    with contextlib.suppress(FileExistsError):
        short.mkdir(mode=0o700)
    status = short.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
        raise PermissionError(f"{short}, the folder for sockets, is not ours alone; remove it")
    return short


def take_lock(path: Path) -> int | None:
    """Take the lock of `path` and return the descriptor that holds it; None when another process does."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def is_alive(lock: Path) -> bool:
    """Say whether the process that the lock was handed to lives."""
    descriptor = take_lock(lock)
    if descriptor is None:
        return True
    os.close(descriptor)
    return False


def start(command: Sequence[str], files: WorkerFiles) -> int:
    """Start a worker in a session of its own and return its pid. It inherits the lock and appends to its log.

    The environment is the agent's: `env:` secrets are looked up in it. Nothing is added that is secret.

    Raises:
        BlockingIOError: a worker of this key lives.
        OSError: the system could not start it.
    """
    lock = take_lock(files.lock)
    if lock is None:
        raise BlockingIOError(f"{files.lock} is held: a worker lives")
    try:
        files.pid.unlink(missing_ok=True)
        files.socket.unlink(missing_ok=True)
        os.set_inheritable(lock, True)
        return os.posix_spawn(
            "/bin/sh",
            ["sh", "-c", _NOTE_PID_AND_BECOME, str(files.pid), *command],
            _environment(os.environ),
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, str(files.log), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600),
                (os.POSIX_SPAWN_DUP2, 1, 2),
            ],
            setsid=True,
            setsigmask=[],
            setsigdef=[signal.SIGINT, signal.SIGTERM, signal.SIGPIPE, signal.SIGHUP],
        )
    finally:
        os.close(lock)


def _environment(inherited: Mapping[str, str]) -> dict[str, str]:
    return {**_LEAN_ENVIRONMENT, **inherited}


def pid_of(files: WorkerFiles) -> int | None:
    """Return the pid that the worker noted; None in the instant before it has."""
    try:
        return int(files.pid.read_text())
    except (FileNotFoundError, ValueError):
        return None


def send_signal(files: WorkerFiles, number: signal.Signals) -> bool:
    """Send a signal to the living worker. Return whether it was sent; never hits a process that took over its pid."""
    pid = pid_of(files)
    if pid is None or pid <= 1:
        return False
    try:
        if not hasattr(os, "pidfd_open"):
            if not is_alive(files.lock):
                return False
            os.kill(pid, number)
            return True
        handle = os.pidfd_open(pid)
        try:
            # The handle was taken first: if the worker lives now, the handle is the worker's.
            if not is_alive(files.lock):
                return False
            signal.pidfd_send_signal(handle, number)
            return True
        finally:
            os.close(handle)
    except ProcessLookupError:
        return False


def reap(pid: int) -> bool:
    """Collect the exit of a child. Return whether it has ended, or is no child of ours."""
    try:
        return os.waitpid(pid, os.WNOHANG)[0] != 0
    except ChildProcessError:
        return True


def bound_log(log: Path, bytes_max: int = LOG_BYTES_MAX) -> None:
    """Copy a log that has grown over `bytes_max` aside and empty it.

    The worker keeps its open file, which appends. What it writes between copy and cut is lost: a log may be cut.
    """
    try:
        if log.stat().st_size <= bytes_max:
            return
    except FileNotFoundError:
        return
    aside = log.with_suffix(".log.1")
    with log.open("rb") as whole, aside.open("wb") as kept:
        os.fchmod(kept.fileno(), 0o600)
        whole.seek(-bytes_max, os.SEEK_END)
        shutil.copyfileobj(whole, kept)
    os.truncate(log, 0)
