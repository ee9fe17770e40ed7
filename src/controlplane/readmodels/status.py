"""What `status` says of a resource: composed when it is read, from what nodes reported and when they were last heard.

Green means that a node acknowledged, never that the control plane sent. Conditions follow Kubernetes: `Ready`,
`Progressing` and `Degraded`, each with a reason code, a message and the generation that a node has observed. A pipeline
with dead letters is ready, because rows flow, and degraded, because some keys do not. One that is connected and does not
move although there is a backlog is not ready: it only looks alive. Nor is one that was asked for a copy which its node refuses.
Pure.
"""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from msgspec import Struct, structs

from contracts.codes import Code, explain
from contracts.v2 import Phase
from controlplane.domain import (
    AccessGrant,
    ApiKey,
    DataPlane,
    Member,
    Node,
    Pipeline,
    PlacementReported,
    ReconcileReported,
)
from controlplane.readmodels.queries import NodeTelemetry, PipelineTelemetry

NODE_SILENT_SECONDS = 45.0
"""A node that has sent no heartbeat for so long is silent."""
UNSCHEDULED = "unscheduled"

_COUNTED = tuple(name for name in ReconcileReported.__struct_fields__ if name.startswith("rows_"))
_NOT_SHOWN = ("pipeline", "type", "agent_started_at")
_PROGRESSING = frozenset({Phase.PENDING, Phase.SNAPSHOTTING})
_NOT_DONE = frozenset({Code.NO_PROGRESS, Code.BACKFILL_REFUSED})
"""Rows flow, but not what was asked for."""
_DEGRADED = frozenset({Phase.RETRYING, Phase.DEGRADED, Phase.GAP})


class PipelineFacts(Struct, frozen=True, kw_only=True):
    """Everything that a pipeline's status is composed from."""

    pipeline: Pipeline
    report: PlacementReported | None
    reconciles: Mapping[str, ReconcileReported] = {}
    telemetry: PipelineTelemetry | None
    node: NodeTelemetry | None
    """The last heartbeat of the node that reported."""
    now: datetime


class _Ready(Struct, frozen=True):
    ready: bool
    reason: str
    message: str


def is_silent(telemetry: NodeTelemetry | None, now: datetime) -> bool:
    """Say whether a node has not been heard of recently."""
    return telemetry is None or now - telemetry.at > timedelta(seconds=NODE_SILENT_SECONDS)


def pipeline_status(facts: PipelineFacts) -> dict[str, Any]:
    """Return the status of a pipeline."""
    report = facts.report
    telemetry = _numbers(facts)
    code = report.code if report is not None else None
    return {
        "phase": report.phase.value if report is not None else UNSCHEDULED,
        "ready": _ready(facts).ready,
        "run": facts.pipeline.run.value,
        "node": report.node if report is not None else None,
        "observed_generation": report.observed_generation if report is not None else 0,
        "restarts": report.restarts if report is not None else 0,
        "since": report.since if report is not None else None,
        "code": code.value if code is not None else None,
        "hint": explain(code).hint if code is not None else None,
        "sql_state": report.sql_state if report is not None else None,
        "table": report.table if report is not None else None,
        "column": report.column if report is not None else None,
        "tables_total": telemetry.pop("tables_total", report.tables_total if report is not None else 0),
        "tables_copied": telemetry.pop("tables_copied", report.tables_copied if report is not None else 0),
        "position": telemetry.pop("position", None) or _position(report),
        "conditions": _conditions(facts),
        "telemetry": telemetry or None,
        "reconciles": _reconciles(facts),
    }


def data_plane_status(data_plane: DataPlane, nodes: list[NodeTelemetry | None], now: datetime) -> dict[str, Any]:
    """Return the status of a data plane. `nodes`: the last heartbeat of each enrolled node."""
    connected = sum(not is_silent(node, now) for node in nodes)
    phase = "waiting_for_nodes" if not nodes else "connected" if connected else "silent"
    return {
        "phase": phase,
        "ready": connected > 0,
        "nodes_total": len(nodes),
        "nodes_connected": connected,
        "leaves": len(data_plane.leaf_keys),
    }


def node_status(node: Node, telemetry: NodeTelemetry | None, now: datetime) -> dict[str, Any]:
    """Return the status of a node."""
    if telemetry is None or telemetry.data_plane != node.data_plane:
        return {"phase": "never_seen", "ready": False}
    silent = is_silent(telemetry, now)
    return {
        "phase": "silent" if silent else "connected",
        "ready": not silent,
        "at": telemetry.at,
        "started_at": telemetry.started_at,
        "agent_version": telemetry.agent_version,
        "contract": telemetry.contract,
        "index_digest": telemetry.index_digest,
    }


def connection_status(used_by: list[str]) -> dict[str, Any]:
    """Return the status of a connection: who uses it. Whether it can be reached, only a pipeline's node knows."""
    return {"phase": "configured", "ready": True, "used_by": used_by}


def api_key_status(key: ApiKey, last_used_at: datetime | None, now: datetime) -> dict[str, Any]:
    """Return the status of an API key."""
    expired = key.expires_at is not None and key.expires_at <= now
    return {"phase": "expired" if expired else "active", "ready": not expired, "last_used_at": last_used_at}


def member_status(member: Member, person: tuple[str, str] | None) -> dict[str, Any]:
    """Return the status of a member: among it, what the person is called, as far as that is not erased."""
    phase = "erased" if member.erased else "active" if member.exists else "removed"
    name, email = person if person is not None else (None, None)
    return {"phase": phase, "ready": member.exists, "display_name": name, "email": email}


def access_grant_status(grant: AccessGrant, now: datetime) -> dict[str, Any]:
    """Return the status of an access grant."""
    return {"phase": "open" if grant.opens(now) else "expired", "ready": grant.opens(now)}


def _ready(facts: PipelineFacts) -> _Ready:
    report, pipeline = facts.report, facts.pipeline
    if report is None:
        return _Ready(False, UNSCHEDULED, "No node has reported this pipeline yet.")
    if is_silent(facts.node, facts.now):
        return _Ready(
            False, "node_silent", f"Node {report.node} has sent no heartbeat for {NODE_SILENT_SECONDS:.0f} s."
        )
    if report.observed_generation < pipeline.generation:
        return _Ready(
            False,
            "not_observed",
            f"The node acts on generation {report.observed_generation}, not yet on {pipeline.generation}.",
        )
    if report.phase is Phase.STREAMING and _is_outdated(facts, report.node):
        return _Ready(False, "not_acknowledged", f"Node {report.node} has not said lately that it runs the pipeline.")
    if report.phase is Phase.STREAMING and report.code not in _NOT_DONE:
        return _Ready(True, "streaming", "Rows flow.")
    if report.code is not None:
        return _Ready(False, report.code.value, explain(report.code).summary)
    return _Ready(False, report.phase.value, f"The pipeline is {report.phase.value}.")


def _is_outdated(facts: PipelineFacts, node: str) -> bool:
    """Say whether newer heartbeats contradict that `node` runs the pipeline: another node's, or a new life's of its agent."""
    told, spec = facts.telemetry, facts.pipeline.spec
    if told is None or facts.node is None or spec is None or told.data_plane != spec.data_plane:
        return False
    life = told.numbers.get("agent_started_at")
    return told.node != node or (life is not None and datetime.fromisoformat(life) != facts.node.started_at)


def _conditions(facts: PipelineFacts) -> list[dict[str, Any]]:
    report, pipeline = facts.report, facts.pipeline
    ready = _ready(facts)
    behind = report is None or report.observed_generation < pipeline.generation
    waits = report is not None and report.code is Code.COPY_PAUSED
    progressing = behind or (report is not None and report.phase in _PROGRESSING and not waits)
    beside = report is not None and report.code in (Code.DEAD_LETTERS, *_NOT_DONE)
    degraded = report is not None and (report.phase in _DEGRADED or beside)
    code = report.code if report is not None else None
    moved = "not_observed" if behind else report.phase.value if report is not None else UNSCHEDULED
    since = report.since if report is not None else pipeline.updated_at
    observed = report.observed_generation if report is not None else 0
    told = (
        ("Ready", ready.ready, ready.reason, ready.message),
        ("Progressing", progressing, moved, "The node is on its way." if progressing else "Nothing is under way."),
        (
            "Degraded",
            degraded,
            code.value if degraded and code is not None else "none",
            explain(code).summary if degraded and code is not None else "No failure is known.",
        ),
    )
    return [
        {
            "type": type_,
            "status": "True" if holds else "False",
            "reason": reason,
            "message": message,
            "observed_generation": observed,
            "last_transition": since,
        }
        for type_, holds, reason, message in told
    ]


def _numbers(facts: PipelineFacts) -> dict[str, Any]:
    """Return the telemetry of the data plane that the pipeline is on; none if it is of another one."""
    telemetry, spec = facts.telemetry, facts.pipeline.spec
    if telemetry is None or spec is None or telemetry.data_plane != spec.data_plane:
        return {}
    numbers = {name: value for name, value in sorted(telemetry.numbers.items()) if name not in _NOT_SHOWN}
    return {**numbers, "at": telemetry.at}


def _reconciles(facts: PipelineFacts) -> list[dict[str, Any]]:
    """Return how the newest comparison of each table stands that was ever asked to be compared."""
    shown: list[dict[str, Any]] = []
    for table, asked in sorted(facts.pipeline.reconciles.items()):
        said = facts.reconciles.get(table)
        if said is None or said.number < asked.number:
            counts = dict.fromkeys(_COUNTED, 0)
            begun = {"state": "waiting", "at": None, "code": None, "hint": None, "sql_state": None, "seconds": 0.0}
            shown.append({"table": table, "number": asked.number, "repair": asked.repair, **begun, **counts})
            continue
        counts = {name: value for name, value in structs.asdict(said).items() if name in _COUNTED}
        shown.append(
            {
                "table": table,
                "number": said.number,
                "repair": said.repair,
                "state": said.state.value,
                "at": said.at,
                "code": said.code.value if said.code is not None else None,
                "hint": explain(said.code).hint if said.code is not None else None,
                "sql_state": said.sql_state,
                "seconds": said.seconds,
                **counts,
            }
        )
    return shown


def _position(report: PlacementReported | None) -> dict[str, int] | None:
    if report is None or report.position_lsn is None:
        return None
    return {"lsn": report.position_lsn, "ordinal": report.position_ordinal or 0}
