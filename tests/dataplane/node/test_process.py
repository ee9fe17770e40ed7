"""A worker's files: locks that say who lives, logs that stay bounded, sockets with short paths."""

import os
import signal
import stat
import sys
from pathlib import Path

import pytest
from tests.dataplane.node.documents import key

from dataplane.node import process
from dataplane.node.process import SOCKET_PATH_BYTES_MAX, RunFolder


def test_a_lock_is_free_exactly_when_its_holder_is_gone(folder: Path) -> None:
    """The lock says who lives, and taking it twice is refused."""
    held = process.take_lock(folder / "lock")
    assert held is not None
    assert process.take_lock(folder / "lock") is None
    assert process.is_alive(folder / "lock")
    os.close(held)
    assert not process.is_alive(folder / "lock")


def test_a_second_process_of_one_key_is_refused(folder: Path) -> None:
    """One worker of a key at most, also against a second agent."""
    files = RunFolder(folder).files(key())
    pid = process.start((sys.executable, "-S", "-c", "import time; time.sleep(60)"), files)
    try:
        with pytest.raises(BlockingIOError):
            process.start((sys.executable, "-S", "-c", "pass"), files)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert not process.is_alive(files.lock)


def test_a_signal_never_reaches_a_process_that_took_over_the_pid(folder: Path) -> None:
    """With the lock free, the noted pid is a stranger's: here it is this test's own."""
    files = RunFolder(folder).files(key())
    files.lock.touch()
    files.pid.write_text(str(os.getpid()))
    assert not process.send_signal(files, signal.SIGKILL)


@pytest.mark.parametrize("noted", ["", "nonsense", "0", "1", "-1"])
def test_a_pid_file_that_makes_no_sense_signals_nobody(folder: Path, noted: str) -> None:
    """An empty or broken pid file is no pid, and 0, 1 and -1 are never a worker's."""
    files = RunFolder(folder).files(key())
    held = process.take_lock(files.lock)
    assert held is not None
    files.pid.write_text(noted)
    assert not process.send_signal(files, signal.SIGTERM)
    os.close(held)


def test_a_log_is_cut_when_it_has_grown(folder: Path) -> None:
    """The newest part lies aside, and the file that the worker appends to starts empty."""
    log = folder / "orders-whole.log"
    with log.open("ab") as worker:
        worker.write(b"old" + b"x" * 100 + b"new")
        worker.flush()
        process.bound_log(log, bytes_max=50)
        assert log.stat().st_size == 0
        worker.write(b"next")
    assert log.read_bytes() == b"next"
    aside = folder / "orders-whole.log.1"
    assert aside.read_bytes() == b"x" * 47 + b"new"
    assert stat.S_IMODE(aside.stat().st_mode) == 0o600


def test_a_small_or_missing_log_is_left_alone(folder: Path) -> None:
    """Nothing is done below the bound."""
    (folder / "a.log").write_bytes(b"x")
    process.bound_log(folder / "a.log")
    process.bound_log(folder / "none.log")
    assert [path.name for path in folder.iterdir()] == ["a.log"]


def test_socket_paths_stay_short_in_a_deep_folder(folder: Path) -> None:
    """However deep the node's folder lies, a socket can be bound, in a folder that is ours alone."""
    deep = folder.joinpath(*["a-rather-long-name"] * 8)
    socket = RunFolder(deep).files(key("p" * 63)).socket
    assert len(os.fsencode(socket)) <= SOCKET_PATH_BYTES_MAX
    assert stat.S_IMODE(socket.parent.stat().st_mode) == 0o700
    assert RunFolder(deep).files(key("p" * 63)).socket == socket
    assert RunFolder(folder / "run").files(key()).socket.parent == folder / "run"
    socket.parent.chmod(0o755)
    with pytest.raises(PermissionError):
        RunFolder(deep)
    socket.parent.rmdir()


def test_a_pipeline_may_be_named_like_a_half(folder: Path) -> None:
    """Keys and files map to each other, whatever the name."""
    run = RunFolder(folder)
    names = [run.files(each).lock for each in (key("a-source"), key("a"), key("source"))]
    held = [process.take_lock(each) for each in names]
    assert list(run.living()) == [key("a-source"), key("a"), key("source")]
    for each in held:
        assert each is not None
        os.close(each)
