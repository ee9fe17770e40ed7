"""The process: it waits for its database, serves without the hub, and ends when it is asked."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import psycopg
import pytest
from tests.controlplane.conftest import OPERATOR_KEY, bearer, make_settings

from controlplane.__main__ import main
from controlplane.settings import DatabaseSettings
from pointsman.local import postgres, processes

Start = Callable[..., "subprocess.Popen[bytes]"]


def _until(holds: Callable[[], bool], seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "the state did not come"
        time.sleep(0.02)


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz").status_code == 200
    except httpx.TransportError:
        return False


@pytest.fixture
def start(folder: Path) -> Iterator[Start]:
    """Return a function that starts the process with settings; its log is `folder/log`."""
    running: list[subprocess.Popen[bytes]] = []

    def run(settings: Any, *arguments: str) -> subprocess.Popen[bytes]:
        file = folder / "settings.json"
        file.write_bytes(msgspec.json.encode(settings))
        with (folder / "log").open("ab") as log:
            command = [sys.executable, "-m", "controlplane", "--settings", str(file), *arguments]
            running.append(subprocess.Popen(command, stdout=log, stderr=log))
        return running[-1]

    yield run
    for process in running:
        if process.poll() is None:
            process.kill()
        process.wait()


def _with_port(settings: Any, port: int) -> Any:
    return msgspec.structs.replace(settings, api=msgspec.structs.replace(settings.api, port=port))


def test_it_serves_until_it_is_asked_to_end_and_starts_again_with_everything(
    database: Any, folder: Path, start: Start
) -> None:
    """SIGTERM ends it within seconds and with code 0, and the next start finds what was written."""
    port = processes.free_port()
    settings = _with_port(make_settings(database.server, database.name, folder / "keys"), port)
    url = f"http://127.0.0.1:{port}"
    first = start(settings)
    _until(lambda: _answers(url))
    made = httpx.post(f"{url}/v1/tenants", json={"name": "acme"}, headers=bearer(OPERATOR_KEY)).json()
    command_line = Path(f"/proc/{first.pid}/cmdline").read_bytes() if os.path.exists("/proc") else b""
    assert OPERATOR_KEY.encode() not in command_line
    asked = time.monotonic()
    first.send_signal(signal.SIGTERM)
    assert first.wait(10) == 0
    assert time.monotonic() - asked < 5
    second = start(settings)
    _until(lambda: _answers(url))
    listed = httpx.get(f"{url}/v1/api-keys", headers=bearer(made["api_key"]))
    assert listed.status_code == 200
    second.send_signal(signal.SIGINT)
    assert second.wait(10) == 0
    log = (folder / "log").read_text()
    assert made["api_key"] not in log
    assert "Traceback" not in log


def test_everything_can_be_rebuilt_by_a_command(database: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--rebuild` derives all tables from the log and ends."""
    file = folder / "settings.json"
    file.write_bytes(msgspec.json.encode(make_settings(database.server, database.name, folder / "keys")))
    monkeypatch.setattr(sys, "argv", ["controlplane", "--settings", str(file), "--rebuild"])
    assert main() == 0


def test_it_waits_for_a_database_that_is_not_there_yet(folder: Path, start: Start) -> None:
    """It neither ends nor spins; it serves once the database answers, goes on after it was away, and can be ended."""
    server = postgres.PostgresServer(folder / "pg", processes.free_port(), settings={"fsync": "off"})
    server.create()
    port = processes.free_port()
    settings = _with_port(make_settings(server, "postgres", folder / "keys"), port)
    settings = msgspec.structs.replace(settings, log_level="warning")
    url = f"http://127.0.0.1:{port}"
    process = start(settings)
    _until(lambda: "waiting for the database" in (folder / "log").read_text())
    server.start()
    try:
        _until(lambda: _answers(url))
        server.stop(immediate=True)
        away = httpx.get(f"{url}/readyz", timeout=30)
        assert (away.status_code, away.json()["checks"]["database"]) == (503, "unreachable")
        refused = httpx.post(f"{url}/v1/tenants", json={"name": "acme"}, headers=bearer(OPERATOR_KEY), timeout=60)
        assert refused.json()["code"] == "database_unavailable"
        server.start()
        _until(lambda: _answers(url))
        made = httpx.post(f"{url}/v1/tenants", json={"name": "acme"}, headers=bearer(OPERATOR_KEY), timeout=30)
        assert made.status_code == 201
    finally:
        process.send_signal(signal.SIGTERM)
        ended = process.wait(10)
        server.stop(immediate=True)
    assert ended == 0


@pytest.mark.parametrize(
    ("content", "told"),
    [("{", "truncated"), ('{"api": {}}', "database"), ('{"surprise": 1}', "surprise"), (None, "No such file")],
)
def test_settings_that_cannot_be_read_are_named(
    folder: Path,
    content: str | None,
    told: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The process ends with code 64 and one line that says what is wrong."""
    file = folder / "settings.json"
    if content is not None:
        file.write_text(content)
    monkeypatch.setattr(sys, "argv", ["controlplane", "--settings", str(file)])
    assert main() == 64
    printed = capsys.readouterr().err
    assert told in printed
    assert printed.count("\n") == 1


def test_a_password_is_read_from_its_file_and_shown_nowhere(folder: Path) -> None:
    """Settings name the file; only the connection string holds the value."""
    (folder / "secret").write_text("hunter2\n")
    settings = DatabaseSettings(host="h", password_file=str(folder / "secret"))
    assert "hunter2" not in repr(settings)
    assert psycopg.conninfo.conninfo_to_dict(settings.conninfo())["password"] == "hunter2"
    assert "hunter2" not in json.dumps(msgspec.to_builtins(settings))
