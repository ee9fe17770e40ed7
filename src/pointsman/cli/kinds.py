"""The kinds that commands act on: their names in every spelling, their path in the API, and the columns of their tables.

One table for all commands: a kind that is added here can be got, described, deleted and completed at once.
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pointsman.cli.render import Column, age, field, size
from pointsman.problems import CODES, Exit, Problem


@dataclass(frozen=True)
class Kind:
    """One kind of resource. `name` is what manifests write, `path` the API's noun; `spellings` are what people type."""

    name: str
    singular: str
    path: str
    short: str
    columns: tuple[Column, ...]

    @property
    def spellings(self) -> tuple[str, ...]:
        """Every way to type this kind, in lower case."""
        solid = self.singular.replace("-", "")
        return (self.singular, self.path, self.short, solid, solid + "s")


def _ready(resource: Mapping[str, Any]) -> str:
    ready = field(resource, "status.ready")
    return "-" if ready is None else ("yes" if ready else "no")


def _nodes(resource: Mapping[str, Any]) -> str:
    connected, total = field(resource, "status.nodes_connected"), field(resource, "status.nodes_total")
    return "-" if total is None else f"{connected or 0}/{total}"


def _route(resource: Mapping[str, Any]) -> str:
    return f"{field(resource, 'source.connection') or '?'} → {field(resource, 'sink.connection') or '?'}"


def _number(path: str) -> Any:
    def read(resource: Mapping[str, Any]) -> str:
        value = field(resource, path)
        return "-" if value is None else f"{value:,}"

    return read


def _seconds(path: str) -> Any:
    def read(resource: Mapping[str, Any]) -> str:
        value = field(resource, path)
        if value is None:
            return "-"
        return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.1f} s"

    return read


def _bytes(path: str) -> Any:
    def read(resource: Mapping[str, Any]) -> str:
        value = field(resource, path)
        return "-" if value is None else size(value)

    return read


def _rate(path: str) -> Any:
    def read(resource: Mapping[str, Any]) -> str:
        value = field(resource, path)
        return "-" if not value else f"{size(value)}/s"

    return read


def _duration(path: str) -> Any:
    def read(resource: Mapping[str, Any]) -> str:
        value = field(resource, path)
        return "-" if value is None else age(value)

    return read


def _age(path: str) -> Any:
    def read(resource: Mapping[str, Any]) -> str:
        value = field(resource, path)
        if not value:
            return "-"
        moment = value if isinstance(value, datetime) else datetime.fromisoformat(str(value))
        return age((datetime.now(UTC) - moment).total_seconds())

    return read


def _alive(resource: Mapping[str, Any]) -> str:
    nodes = field(resource, "nodes") or ()
    return f"{sum(bool(each.get('connected')) for each in nodes)}/{len(nodes)}"


def _counts(path: str) -> Any:
    def read(resource: Mapping[str, Any]) -> str:
        return ", ".join(f"{count} {name}" for name, count in (field(resource, path) or {}).items()) or "-"

    return read


def _hosts(resource: Mapping[str, Any]) -> str:
    config = resource.get("config", {})
    return str(config.get("host") or ", ".join(config.get("brokers", ())))


_NAME = Column("NAME", "name")

CONNECTION = Kind(
    "Connection",
    "connection",
    "connections",
    "conn",
    (
        _NAME,
        Column("TYPE", "type"),
        Column("HOST", _hosts),
        Column("PORT", "config.port", right=True),
        Column("DATABASE", "config.database"),
        Column("GENERATION", "generation", right=True),
        Column("AGE", _age("created_at")),
    ),
)
PIPELINE = Kind(
    "Pipeline",
    "pipeline",
    "pipelines",
    "pl",
    (
        _NAME,
        Column("PHASE", "status.phase", traffic_light=True),
        Column("READY", _ready),
        Column("ROUTE", _route),
        Column("ROWS", _number("status.telemetry.rows_total"), right=True),
        Column("LAG", _bytes("status.telemetry.lag_bytes"), right=True),
        Column("LATENCY", _seconds("status.telemetry.latency_seconds"), right=True),
        Column("KEPT", _bytes("status.telemetry.slot_retained_bytes"), right=True),
        Column("GROWTH", _rate("status.telemetry.slot.growth_bytes_per_second"), right=True),
        Column("LEFT", _duration("status.telemetry.slot.seconds_left"), right=True),
        Column("NODE", "status.node"),
        Column("CODE", "status.code"),
        Column("AGE", _age("created_at")),
    ),
)
DATA_PLANE = Kind(
    "DataPlane",
    "data-plane",
    "data-planes",
    "dp",
    (
        _NAME,
        Column("MODEL", "model"),
        Column("READY", _ready),
        Column("NODES", _nodes),
        Column("GENERATION", "generation", right=True),
        Column("AGE", _age("created_at")),
    ),
)
NODE = Kind(
    "Node",
    "node",
    "nodes",
    "no",
    (
        _NAME,
        Column("DATA PLANE", "data_plane"),
        Column("READY", _ready),
        Column("CONTRACT", "contract", right=True),
        Column("VERSION", "status.agent_version"),
        Column("SEEN", _age("status.at")),
        Column("AGE", _age("created_at")),
    ),
)
API_KEY = Kind(
    "ApiKey",
    "api-key",
    "api-keys",
    "key",
    (
        _NAME,
        Column("ID", "id"),
        Column("ROLE", "role"),
        Column("MEMBER", "member"),
        Column("EXPIRES", "expires_at"),
        Column("USED", _age("status.last_used_at")),
        Column("AGE", _age("created_at")),
    ),
)
MEMBER = Kind(
    "Member",
    "member",
    "members",
    "mb",
    (
        Column("ID", "name"),
        Column("NAME", "status.display_name"),
        Column("EMAIL", "status.email"),
        Column("ROLE", "role"),
        Column("AGE", _age("created_at")),
    ),
)
ACCESS_GRANT = Kind(
    "AccessGrant",
    "access-grant",
    "access-grants",
    "ag",
    (
        _NAME,
        Column("PHASE", "status.phase"),
        Column("EXPIRES", "expires_at"),
        Column("USES", "uses", right=True),
        Column("AGE", _age("created_at")),
    ),
)

TENANT = Kind(
    "Tenant",
    "tenant",
    "tenants",
    "tn",
    (_NAME, Column("ID", "tenant"), Column("AGE", _age("created_at"))),
)

OPERATOR = Kind(
    "Operator",
    "operator",
    "operators",
    "op",
    (
        _NAME,
        Column("ID", "id"),
        Column("EXPIRES", "expires_at"),
        Column("USED", _age("status.last_used_at")),
        Column("AGE", _age("created_at")),
    ),
)
FLEET = Kind(
    "Fleet",
    "fleet",
    "fleet",
    "fl",
    (
        Column("TENANT", "name"),
        Column("ID", "tenant"),
        Column("NODES", _alive),
        Column("PIPELINES", _counts("phases")),
        Column("CODES", _counts("codes")),
    ),
)

KINDS = (PIPELINE, CONNECTION, DATA_PLANE, NODE, MEMBER, API_KEY, ACCESS_GRANT, TENANT, OPERATOR, FLEET)
"""In the order in which help texts list them."""

APPLIED_IN_ORDER = (DATA_PLANE, CONNECTION, PIPELINE)
"""What manifests may hold, in the order that lets each document name the ones before it."""


def find(typed: str) -> Kind:
    """Return the kind that `typed` means: singular, plural or short, in any case.

    Raises:
        Problem: unknown_kind, with the nearest spelling as its hint.
    """
    wanted = typed.lower().replace("_", "-")
    for kind in KINDS:
        if wanted in kind.spellings:
            return kind
    near = difflib.get_close_matches(wanted, [s for kind in KINDS for s in kind.spellings], n=1, cutoff=0.6)
    hint = f"Did you mean {near[0]!r}?" if near else "Known kinds: " + ", ".join(k.path for k in KINDS) + "."
    raise Problem("unknown_kind", f"{CODES['unknown_kind'][0][:-1]}: {typed!r}.", hint=hint, exit_code=Exit.USAGE)
