"""What the API reads: resources of one tenant, and the telemetry that nodes sent last. Every query names its tenant.

All take a connection and return plain values; nothing is cached, so an answer is as new as the projection.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, TypeVar

import msgspec
import psycopg
from msgspec import Struct

from contracts.v2 import ColumnSeen
from controlplane.conditions import ColumnKnown
from controlplane.domain import Aggregate, ApiKey, Pipeline, Placement, Tenant

COLUMNS_COMPLETE_MAX = 200
"""A node names at least so many columns of a table; of a wider one it may leave some out."""

Connection = psycopg.Connection[tuple[Any, ...]]
SomeAggregate = TypeVar("SomeAggregate", bound=Aggregate)


class Found(Struct, frozen=True):
    """A resource and the id of its newest event."""

    aggregate: Any
    revision: int


class NodeTelemetry(Struct, frozen=True, kw_only=True):
    """What a node's last heartbeat said of itself."""

    data_plane: str
    node: str
    at: datetime
    started_at: datetime
    agent_version: str
    contract: int
    index_digest: str | None


class PipelineTelemetry(Struct, frozen=True, kw_only=True):
    """The numbers of a pipeline, last value only."""

    data_plane: str
    node: str
    at: datetime
    numbers: dict[str, Any]


def get(connection: Connection, form: type[SomeAggregate], tenant: str, name: str) -> Found | None:
    """Return a live resource, None if there is none."""
    row = connection.execute(
        "SELECT state, revision FROM resources WHERE tenant = %s AND kind = %s AND name = %s AND live",
        [tenant, form.KIND, name],
    ).fetchone()
    return _found(row, form) if row else None


def page(connection: Connection, form: type[SomeAggregate], tenant: str, *, after: str, limit: int) -> list[Found]:
    """Return up to `limit` live resources with names above `after`, by name."""
    rows = connection.execute(
        "SELECT state, revision FROM resources WHERE tenant = %s AND kind = %s AND live AND name > %s"
        " ORDER BY name LIMIT %s",
        [tenant, form.KIND, after, limit],
    )
    return [_found(row, form) for row in rows]


def page_of_tenants(connection: Connection, *, after: str, limit: int) -> list[Found]:
    """Return up to `limit` tenants with names above `after`. Only for the vendor's operator."""
    rows = connection.execute(
        "SELECT state, revision FROM resources WHERE kind = 'Tenant' AND live AND name > %s ORDER BY name LIMIT %s",
        [after, limit],
    )
    return [_found(row, Tenant) for row in rows]


def find_api_key(connection: Connection, key_id: str) -> ApiKey | None:
    """Return the key of that id, whosever it is: before a request is authenticated, its tenant is not known."""
    row = connection.execute(
        "SELECT state FROM resources WHERE kind = 'ApiKey' AND name = %s AND live", [key_id]
    ).fetchone()
    return msgspec.json.decode(row[0], type=ApiKey) if row else None


def placements_of(connection: Connection, pipelines: Sequence[Pipeline]) -> dict[str, Placement]:
    """Return, by pipeline's name, what nodes of its own data plane reported last."""
    ids = {
        Placement.of(each.tenant, each.name, each.spec.data_plane).id: each.name
        for each in pipelines
        if each.spec is not None
    }
    rows = connection.execute("SELECT id, state FROM resources WHERE id = ANY(%s)", [list(ids)])
    return {ids[row[0]]: msgspec.json.decode(row[1], type=Placement) for row in rows}


def pipeline_telemetry(connection: Connection, tenant: str, names: Iterable[str]) -> dict[str, PipelineTelemetry]:
    """Return the last numbers of the named pipelines."""
    rows = connection.execute(
        "SELECT pipeline, data_plane, node, at, numbers FROM telemetry_pipelines"
        " WHERE tenant = %s::uuid AND pipeline = ANY(%s)",
        [tenant, list(names)],
    )
    return {row[0]: PipelineTelemetry(data_plane=row[1], node=row[2], at=row[3], numbers=row[4]) for row in rows}


def node_telemetry(connection: Connection, tenant: str, nodes: Iterable[str]) -> dict[str, NodeTelemetry]:
    """Return the last heartbeats of the named nodes."""
    rows = connection.execute(
        "SELECT data_plane, node, at, started_at, agent_version, contract, index_digest FROM telemetry_nodes"
        " WHERE tenant = %s::uuid AND node = ANY(%s)",
        [tenant, list(nodes)],
    )
    found = (NodeTelemetry(**dict(zip(NodeTelemetry.__struct_fields__, row, strict=True))) for row in rows)
    return {each.node: each for each in found}


def columns_of(connection: Connection, tenant: str, pipeline: str, table: str) -> dict[str, ColumnKnown]:
    """Return the columns of a table as a node described them last; none if no node has, or not all of them."""
    row = connection.execute(
        'SELECT columns FROM schemas_seen WHERE tenant = %s::uuid AND pipeline = %s AND "table" = %s',
        [tenant, pipeline, table],
    ).fetchone()
    seen = msgspec.convert(row[0], list[ColumnSeen]) if row else []
    return {each.name: ColumnKnown(each.type, each.key) for each in seen} if len(seen) < COLUMNS_COMPLETE_MAX else {}


def nodes_of(connection: Connection, tenant: str, data_planes: Sequence[str]) -> dict[str, list[str]]:
    """Return the names of the enrolled nodes of each data plane."""
    rows = connection.execute(
        "SELECT state::jsonb ->> 'data_plane', name FROM resources WHERE tenant = %s AND kind = 'Node' AND live"
        " AND state::jsonb ->> 'data_plane' = ANY(%s) ORDER BY name",
        [tenant, list(data_planes)],
    )
    found: dict[str, list[str]] = {name: [] for name in data_planes}
    for data_plane, node in rows:
        found[data_plane].append(node)
    return found


def users_of(connection: Connection, tenant: str, connections: Sequence[str]) -> dict[str, list[str]]:
    """Return the names of the pipelines that name each connection."""
    rows = connection.execute(
        "SELECT name, state::jsonb #>> '{spec,source,connection}', state::jsonb #>> '{spec,sink,connection}'"
        " FROM resources WHERE tenant = %s AND kind = 'Pipeline' AND live ORDER BY name",
        [tenant],
    )
    found: dict[str, list[str]] = {name: [] for name in connections}
    for pipeline, source, sink in rows:
        for name in {source, sink} & found.keys():
            found[name].append(pipeline)
    return found


def last_uses(connection: Connection, tenant: str, key_ids: Sequence[str]) -> dict[str, datetime]:
    """Return when each of a tenant's keys was used last, as far as it is known."""
    rows = connection.execute(
        "SELECT key_id, at FROM telemetry_api_keys WHERE tenant = %s AND key_id = ANY(%s)", [tenant, list(key_ids)]
    )
    return dict(rows.fetchall())


def people(connection: Connection, tenant: str, members: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Return name and address of those of a tenant's members of whom they are known."""
    rows = connection.execute(
        "SELECT member, display_name, email FROM personal_data WHERE tenant = %s AND member = ANY(%s)",
        [tenant, list(members)],
    )
    return {row[0]: (row[1], row[2]) for row in rows}


def is_quarantined(connection: Connection, projection: str, tenant: str) -> bool:
    """Say whether a projection has set a tenant aside."""
    row = connection.execute(
        "SELECT 1 FROM projection_quarantines WHERE projection = %s AND tenant = %s", [projection, tenant]
    ).fetchone()
    return row is not None


def count_connected_nodes(connection: Connection, since: datetime) -> int:
    """Return how many nodes of all tenants have sent a heartbeat after `since`."""
    row = connection.execute("SELECT count(*) FROM telemetry_nodes WHERE at > %s", [since]).fetchone()
    return int(row[0]) if row else 0


def _found(row: Sequence[Any], form: type[SomeAggregate]) -> Found:
    return Found(msgspec.json.decode(row[0], type=form), int(row[1]))
