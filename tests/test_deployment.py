"""What deploy/ holds can be used as it is."""

import json
import re
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml
from prometheus_client import CollectorRegistry, generate_latest

from contracts import v2
from controlplane.channel.metrics import ChannelMetrics
from controlplane.metrics import Metrics
from dataplane.node.metrics import NodeCollector, PipelineReading, Readings
from dataplane.worker.protocol import Half, WorkerStatus, WorkerTelemetry
from pointsman.local.nats import nats_server

DEPLOY = Path(__file__).parent.parent / "deploy"
PROMETHEUS = sorted((DEPLOY / "prometheus").glob("*.rules.yaml"))
DASHBOARDS = sorted((DEPLOY / "grafana").glob("*.json"))
AT = datetime(2026, 1, 1, tzinfo=UTC)
_POSITION = v2.Position(lsn=1, ordinal=0)
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
    assert settings["hub"]["leaf_certificates"] is True
    assert "verify: true" in (folder / "etc" / "hub.conf").read_text()
    # A folder of before there were certificates goes on without until somebody asks for them.
    file = folder / "etc" / "settings.json"
    del settings["hub"]["leaf_certificates"]
    file.write_text(json.dumps(settings))
    subprocess.run(command, capture_output=True, check=True)
    assert "verify" not in (folder / "etc" / "hub.conf").read_text()
    subprocess.run([*command, "--leaf-certificates"], capture_output=True, check=True)
    assert json.loads(file.read_bytes())["hub"]["leaf_certificates"] is True


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


def _exposed() -> set[str]:
    """Return every name that the two planes' /metrics give, with one pipeline at work."""
    metrics = Metrics()
    ChannelMetrics(metrics.registry)
    status = v2.PipelineStatus(
        pipeline="p", epoch=1, observed_generation=1, phase=v2.Phase.STREAMING, since=AT, position=_POSITION
    )
    worker = WorkerStatus(
        pipeline="p",
        half=Half.WHOLE,
        pid=1,
        epoch=1,
        generation=1,
        restarts=0,
        phase=v2.Phase.STREAMING,
        since_seconds=0.0,
        telemetry=WorkerTelemetry(latency_buckets={"0.1": 1, "+Inf": 1}, latency_seconds_sum=0.05),
    )
    reading = PipelineReading(
        status=status, workers=[worker], desired_generation=1, buffer_capacity_bytes=1, worker_restarts_total=0
    )
    readings = Readings(
        node="n",
        data_plane="d",
        version="0",
        pipelines={"p": reading},
        errors_total={("p", "internal"): 1},
        control_plane_connected=True,
        leaf_connected=True,
        documents_held=1,
        documents_refused_total={"document_refused": 1},
        facts_waiting=0,
        nodes_seen=1,
        names_withheld_total=0,
    )
    node = CollectorRegistry()
    node.register(NodeCollector(lambda: readings))
    text = (generate_latest(metrics.registry) + generate_latest(node)).decode()
    named = set(re.findall(r"^# TYPE (\S+) (?!histogram)", text, re.MULTILINE)) | set(
        re.findall(r"^(\w+)[ {]", text, re.MULTILINE)
    )
    for histogram in re.findall(r"^# TYPE (\S+) histogram", text, re.MULTILINE):
        named |= {f"{histogram}_{part}" for part in ("bucket", "count", "sum")}
    return named


@pytest.mark.parametrize("file", [*PROMETHEUS, *DASHBOARDS], ids=lambda file: file.name)
def test_alerts_and_dashboards_ask_for_metrics_that_exist(file: Path) -> None:
    """A renamed metric would leave an alert that can never fire and a panel that stays empty."""
    asked = set(re.findall(r"\bpointsman_[a-z_]+\b", file.read_text()))
    assert asked
    assert asked - _exposed() == set()


def test_the_alerts_fire_as_promised() -> None:
    """promtool, where it is installed, runs the rules' own tests; everywhere they are at least well-formed."""
    for file in PROMETHEUS:
        for group in yaml.safe_load(file.read_text())["groups"]:
            for rule in group["rules"]:
                assert {"alert", "expr", "labels", "annotations"} <= set(rule)
                assert {"summary", "description"} == set(rule["annotations"])
    promtool = shutil.which("promtool")
    if promtool is not None:
        tests = [promtool, "test", "rules", str(DEPLOY / "prometheus" / "tests.yaml")]
        done = subprocess.run(tests, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
