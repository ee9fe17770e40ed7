"""The live documents of a tenant as the write path sees them: read before a decision, changed with its events.

The rows are in the same transaction as the events, so unlike a read model they are never behind. A guard number per
tenant makes decisions that looked at the catalogue serial: of two that saw the same state only one commits.
"""

from typing import Any
from uuid import UUID

import msgspec
from msgspec import structs

from controlplane.commit_rows import CatalogueChange, Guard
from controlplane.domain import Aggregate, Connection, DataPlane, Node, Pipeline, Undecodable
from controlplane.log import EventLog
from controlplane.projection import Pool
from controlplane.row_security import Scope, scoped

KINDS: dict[str, type[Aggregate]] = {
    "Connection": Connection,
    "DataPlane": DataPlane,
    "Node": Node,
    "Pipeline": Pipeline,
}
"""What the catalogue holds: the kinds whose documents refer to each other."""


class Catalogue(msgspec.Struct, frozen=True, kw_only=True):
    """One tenant's live documents at a moment."""

    guard: Guard
    connections: dict[str, Connection]
    data_planes: dict[str, DataPlane]
    nodes: dict[str, Node]
    pipelines: dict[str, Pipeline]


def read(pool: Pool, tenant: str) -> Catalogue:
    """Read a tenant's catalogue and its guard, in one statement and so as of one moment."""
    with pool.connection() as connection, scoped(connection, Scope(tenant=tenant)):
        rows = connection.execute(
            "SELECT kind, name, state, 0::bigint FROM catalogue WHERE tenant = %(tenant)s UNION ALL"
            " SELECT NULL, NULL, NULL, version FROM catalogue_guards WHERE tenant = %(tenant)s",
            {"tenant": tenant},
        ).fetchall()
    version = sum(row[3] for row in rows)
    found: dict[str, dict[str, Any]] = {kind: {} for kind in KINDS}
    for kind, name, state, _ in rows:
        if kind is not None:
            found[kind][name] = msgspec.json.decode(state, type=KINDS[kind])
    return Catalogue(
        guard=Guard(tenant, int(version)),
        connections=found["Connection"],
        data_planes=found["DataPlane"],
        nodes=found["Node"],
        pipelines=found["Pipeline"],
    )


def read_pipelines(pool: Pool, tenant: str, names: list[str]) -> dict[str, Pipeline]:
    """Read those of the named pipelines that exist."""
    with pool.connection() as connection, scoped(connection, Scope(tenant=tenant)):
        rows = connection.execute(
            "SELECT name, state FROM catalogue WHERE tenant = %s AND kind = 'Pipeline' AND name = ANY(%s)",
            [tenant, names],
        ).fetchall()
    return {name: msgspec.json.decode(state, type=Pipeline) for name, state in rows}


def change(before: Aggregate, after: Aggregate) -> CatalogueChange | None:
    """Return how the catalogue follows an aggregate from one state to the next; None if it need not."""
    if after.KIND not in KINDS:
        return None
    old, new = _row(before), _row(after)
    if old == new:
        return None
    return CatalogueChange(after.tenant, after.KIND, after.name, new)


def rebuild(log: EventLog, pool: Pool) -> None:
    """Write the catalogue again from the log, in one transaction that lets no other write pass meanwhile.

    `pool` acts as the projector: this is for all tenants.
    """
    aggregates: dict[UUID, Aggregate] = {}
    with pool.connection() as connection, connection.transaction():
        connection.execute("LOCK TABLE catalogue, catalogue_guards IN EXCLUSIVE MODE")
        position = 0
        while events := log.read(position):
            position = events[-1].id
            for event in events:
                form = KINDS.get(event.kind)
                if form is not None and not isinstance(event.event, Undecodable):
                    known = aggregates.get(event.aggregate_id) or form.new(event.tenant, event.name)
                    aggregates[event.aggregate_id] = known.after(event.event)
        connection.execute("DELETE FROM catalogue")
        rows = [(each.tenant, each.KIND, each.name, _row(each)) for each in aggregates.values() if each.exists]
        with connection.cursor() as cursor:
            cursor.executemany("INSERT INTO catalogue (tenant, kind, name, state) VALUES (%s, %s, %s, %s)", rows)


def _row(aggregate: Aggregate) -> str | None:
    """Return what the catalogue keeps of an aggregate: nothing of what joins and goes without touching a document."""
    if not aggregate.exists:
        return None
    slim = structs.replace(aggregate, version=0, updated_at=None)
    if isinstance(slim, DataPlane):
        slim = structs.replace(slim, tokens={}, leaf_keys=())
    return msgspec.json.encode(slim, order="deterministic").decode()
