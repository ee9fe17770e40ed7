"""`pointsman up` when its surroundings are not kind: killed while it begins, ports taken, odd folders, other users."""

import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from pointsman.local import orders
from pointsman.local.layout import Layout, read_json

pytestmark = [pytest.mark.system, pytest.mark.timeout(240)]

COMPONENTS = ["postgres", "hub", "control-plane", "leaf", "node-1"]


class Running:
    """`pointsman up` as a process of its own in a folder with an odd name."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "pointsman", "up", "--dir", str(self.root)]
        log = self.root.with_name("up.log").open("ab")
        with log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def wait(self) -> dict[str, Any]:
        """Return what pointsman.json says once it is this process's; that of a killed one may still lie there."""
        assert self.process is not None
        end = time.monotonic() + 90
        while True:
            state: dict[str, Any] = read_json(self.root / "pointsman.json")
            if state.get("pid") == self.process.pid:
                return state
            said = self.root.with_name("up.log").read_text()
            assert self.process.poll() is None, said
            assert time.monotonic() < end, said
            time.sleep(0.1)

    def end(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            orders.stop_everything(Layout(self.root))
        if self.process is not None:
            self.process.wait(timeout=60)

    def cli(self, *arguments: str) -> str:
        command = [sys.executable, "-m", "pointsman", *arguments, "--dir", str(self.root)]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout

    def left(self) -> list[list[str]]:
        """Return the command lines of processes that belong to the folder."""
        found = []
        for process in psutil.process_iter(["cmdline"]):
            words = process.info["cmdline"] or []
            if any(str(self.root) in word for word in words):
                found.append(words)
        return found


@pytest.fixture
def running(folder: Path) -> Iterator[Running]:
    made = Running(folder / "a folder, with 'odd' characters")
    yield made
    made.end()


def test_a_first_start_that_is_killed_at_any_moment_is_simply_started_again(running: Running) -> None:
    """After kills at several moments the next start comes up whole, with one of each component and one tenant."""
    chance = random.Random(7)
    for delay in (0.7, 1.5, 2.5, 3.5, 5.0):
        running.start()
        with contextlib.suppress(subprocess.TimeoutExpired):
            assert running.process is not None
            running.process.wait(timeout=delay * chance.uniform(0.8, 1.2))
        running.kill()
    running.start()
    state = running.wait()
    assert [component["name"] for component in state["components"]] == COMPONENTS
    assert all(component["state"] == "running" for component in state["components"])
    assert len(json.loads(running.cli("get", "tenants", "-o", "json"))["items"]) == 1
    assert [node["status"]["ready"] for node in json.loads(running.cli("get", "nodes", "-o", "json"))["items"]] == [
        True
    ]


def test_a_stop_leaves_no_process_and_no_state_that_claims_otherwise(running: Running) -> None:
    """After SIGTERM there is no process of the folder, and no pointsman.json."""
    running.start()
    running.wait()
    assert running.process is not None
    running.process.send_signal(signal.SIGTERM)
    assert running.process.wait(timeout=60) == 0
    assert running.left() == []
    assert not (running.root / "pointsman.json").exists()


def test_ports_that_others_took_meanwhile_are_replaced(running: Running) -> None:
    """Everything finds everything again: hub, leaf, node and control plane are ready on their new ports."""
    running.start()
    before = running.wait()
    running.end()
    ports = json.loads((running.root / "run" / "ports.json").read_text())
    with contextlib.ExitStack() as taken:
        for port in ports.values():
            taken.enter_context(socket.create_server(("127.0.0.1", port)))
        running.start()
        after = running.wait()
    assert not {item["url"] for item in before["components"]} & {item["url"] for item in after["components"]}
    assert json.loads(running.cli("get", "nodes", "-o", "json"))["items"][0]["status"]["ready"] is True


def test_keys_are_for_their_owner_alone_and_never_printed(running: Running) -> None:
    """No file below the folder can be read by others, and no secret is in a log, an output or a command line."""
    running.start()
    running.wait()
    keys = [path for path in (running.root / "keys").iterdir() if path.suffix in (".key", ".password", ".nk")]
    assert len(keys) >= 6
    assert [path for path in running.root.rglob("*") if path.is_file() and path.stat().st_mode & 0o077] == []
    secrets = [path.read_text().strip() for path in keys]
    shown = [running.root.with_name("up.log").read_text(), running.cli("ps", "-o", "json"), str(running.left())]
    shown += [path.read_text(errors="replace") for path in (running.root / "logs").iterdir()]
    for process in psutil.process_iter(["cmdline", "environ"]):
        shown.append(f"{process.info['cmdline']} {process.info['environ']}")
    assert [
        path.name for path, secret in zip(keys, secrets, strict=True) if any(secret in text for text in shown)
    ] == []


if os.geteuid() == 0 and shutil.which("setpriv"):  # only root changes to another user

    def test_an_ordinary_user_runs_it_as_well(folder: Path) -> None:
        """Without any right of root's, with a home of their own."""
        python = next((p for p in ("/usr/bin/python3", sys.executable) if _others_may_run(p)), None)
        assert python is not None
        home = folder / "home"
        home.mkdir()
        folder.chmod(0o755)
        shutil.chown(home, "nobody", "nogroup")
        path = os.pathsep.join(["src", *(entry for entry in sys.path if entry)])
        environment = {
            "HOME": str(home),
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "PYTHONPATH": path,
        }
        command = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", "--no-new-privs", python]
        command += ["-m", "pointsman", "up", "--dir", str(home / "dir")]
        log = folder / "log"
        with log.open("wb") as output:
            process = subprocess.Popen(command, stdout=output, stderr=output, env=environment, start_new_session=True)
        try:
            end = time.monotonic() + 90
            while not (home / "dir" / "pointsman.json").exists():
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < end, log.read_text()
                time.sleep(0.1)
        finally:
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=60) == 0


def _others_may_run(program: str) -> bool:
    try:
        real = Path(program).resolve()
        return all(parent.stat().st_mode & 0o001 for parent in (real, *real.parents))
    except OSError:
        return False
