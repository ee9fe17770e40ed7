"""A control plane in memory and a command line that speaks to it, in a user's home of its own."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from tests.pointsman.fake_api import KEY, FakeApi

from pointsman.cli.root import run


class Done(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture(autouse=True)
def home(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test sees or touches the real user's configuration."""
    monkeypatch.setenv("HOME", str(folder))
    for name in ("XDG_CONFIG_HOME", "XDG_STATE_HOME"):
        monkeypatch.setenv(name, str(folder / name))
    for name in (
        "POINTSMAN_DIR",
        "POINTSMAN_API",
        "POINTSMAN_KEY_FILE",
        "POINTSMAN_CONTEXT",
        "NO_COLOR",
        "FORCE_COLOR",
    ):
        monkeypatch.delenv(name, raising=False)
    return folder


@pytest.fixture
def api() -> Iterator[FakeApi]:
    fake = FakeApi()
    yield fake
    fake.close()


@pytest.fixture
def key_file(home: Path) -> Path:
    file = home / "api.key"
    file.write_text(KEY + "\n")
    return file


@pytest.fixture
def pointsman(capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """Run the command line in this process and return its exit code and what it printed."""

    def call(*arguments: str) -> Done:
        capsys.readouterr()
        code = run([str(argument) for argument in arguments])
        sys.stdout.flush()
        out, err = capsys.readouterr()
        return Done(code, out, err)

    return call


@pytest.fixture
def against(
    api: FakeApi, key_file: Path, pointsman: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Done]:
    """The same, with the control plane in memory as its target."""
    monkeypatch.setenv("POINTSMAN_API", api.url)
    monkeypatch.setenv("POINTSMAN_KEY_FILE", str(key_file))
    return pointsman
