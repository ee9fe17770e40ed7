"""What deploy/ holds can be used as it is."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pointsman.local.nats import nats_server

DEPLOY = Path(__file__).parent.parent / "deploy"
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))


def test_the_vendors_side_is_prepared_once_and_keeps_its_keys(folder: Path) -> None:
    """nats-server accepts the hub's configuration, and a second run changes no key."""
    command = [sys.executable, str(DEPLOY / "prepare.py"), "--folder", str(folder / "etc")]
    command += ["--hub-folder", str(folder / "hub"), "--leaf-url", "tls://hub.example.com:7422"]
    first = subprocess.run(command, capture_output=True, text=True, check=True)
    keys = {path: path.read_bytes() for path in (folder / "etc" / "keys").iterdir()}
    subprocess.run(command, capture_output=True, text=True, check=True)
    assert {path: path.read_bytes() for path in (folder / "etc" / "keys").iterdir()} == keys
    assert first.stdout == ""
    assert [path for path in (folder / "etc").rglob("*") if path.is_file() and path.stat().st_mode & 0o077] == []
    check = subprocess.run(
        [nats_server(), "-t", "-c", str(folder / "etc" / "hub.conf")], capture_output=True, check=False
    )
    assert check.returncode == 0, check.stderr
    settings = json.loads((folder / "etc" / "settings.json").read_bytes())
    assert settings["hub"]["leaf_url"] == "tls://hub.example.com:7422"


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_a_unit_runs_without_more_rights_than_it_needs(unit: Path) -> None:
    """Each runs as a user of its own, may gain no rights, comes back after a failure, and is well-formed."""
    text = unit.read_text()
    for line in ("User=pointsman", "NoNewPrivileges=yes", "ProtectSystem=strict", "Restart=always"):
        assert line in text
    analyze = shutil.which("systemd-analyze")
    if analyze is not None:
        said = subprocess.run([analyze, "verify", str(unit)], capture_output=True, text=True, check=False).stderr
        wrong = [line for line in said.splitlines() if unit.name in line and "is not executable" not in line]
        assert wrong == []


def test_the_nodes_unit_lets_workers_outlive_their_agent() -> None:
    """systemd's default would kill every worker with each restart of the agent."""
    assert "KillMode=process" in (DEPLOY / "systemd" / "pointsman-node.service").read_text()


def test_the_compose_file_names_what_exists() -> None:
    """Its build file is there, and the data outlives the container."""
    service = yaml.safe_load((DEPLOY / "compose" / "compose.yaml").read_text())["services"]["pointsman"]
    assert (DEPLOY.parent / service["build"]["dockerfile"]).exists()
    assert service["volumes"] == ["data:/data"]
