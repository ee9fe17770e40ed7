"""What the vendor's operator sees of all tenants: which nodes live, and how many pipelines stand how.

No name of a table, a connection or a pipeline, and nothing of any configuration.
"""

from collections import Counter
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from controlplane.domain import Tenant
from controlplane.readmodels.queries import Connection, Found
from controlplane.readmodels.status import NODE_SILENT_SECONDS


def read(connection: Connection, tenants: Sequence[Found], now: datetime) -> list[dict[str, Any]]:
    """Return the health of each of `tenants`. The connection sees what an operator may."""
    ids = [each.aggregate.tenant for each in tenants]
    since = now - timedelta(seconds=NODE_SILENT_SECONDS)
    nodes: dict[str, list[dict[str, Any]]] = {each: [] for each in ids}
    for tenant, data_plane, node, at, version, contract in connection.execute(
        "SELECT tenant::text, data_plane, node, at, agent_version, contract FROM telemetry_nodes"
        " WHERE tenant = ANY(%s::uuid[]) ORDER BY tenant, data_plane, node",
        [ids],
    ):
        told = {"data_plane": data_plane, "node": node, "at": at, "connected": at > since}
        nodes[tenant].append({**told, "agent_version": version, "contract": contract})
    phases: dict[str, Counter[str]] = {each: Counter() for each in ids}
    codes: dict[str, Counter[str]] = {each: Counter() for each in ids}
    for tenant, phase, code in connection.execute(
        "SELECT tenant, state::jsonb #>> '{last,phase}', state::jsonb #>> '{last,code}' FROM resources"
        " WHERE kind = 'Placement' AND live AND tenant = ANY(%s)",
        [ids],
    ):
        phases[tenant][phase or "unscheduled"] += 1
        if code is not None:
            codes[tenant][code] += 1
    return [
        {
            "tenant": each.tenant,
            "name": each.name,
            "nodes": nodes[each.tenant],
            "phases": dict(sorted(phases[each.tenant].items())),
            "codes": dict(sorted(codes[each.tenant].items())),
        }
        for each in (found.aggregate for found in tenants)
        if isinstance(each, Tenant)
    ]
