"""The projection of resources: each row is the aggregate as its own events fold, the same fold that commands decide by.

A page of events is folded in memory: the touched rows are read once and written once.
"""

from collections.abc import Sequence
from typing import Any
from uuid import UUID

import msgspec
import psycopg

from controlplane.domain import (
    AccessGrant,
    Aggregate,
    ApiKey,
    Connection,
    DataPlane,
    Member,
    Node,
    Pipeline,
    Placement,
    Tenant,
)
from controlplane.log import LoggedEvent

NAME = "resources"
KINDS: dict[str, type[Aggregate]] = {
    each.KIND: each for each in (AccessGrant, Tenant, ApiKey, DataPlane, Member, Node, Connection, Pipeline, Placement)
}


class Resources:
    """Keeps the `resources` table."""

    name = NAME
    tables: Sequence[str] = ("resources",)

    def apply(self, cursor: psycopg.Cursor[Any], events: Sequence[LoggedEvent]) -> None:
        """Fold `events` into the rows that they touch."""
        ids = sorted({event.aggregate_id for event in events})
        cursor.execute("SELECT id, kind, state FROM resources WHERE id = ANY(%s)", [ids])
        known: dict[UUID, Aggregate] = {
            row[0]: msgspec.json.decode(row[2], type=KINDS[row[1]]) for row in cursor.fetchall()
        }
        revisions: dict[UUID, int] = {}
        for event in events:
            aggregate = known.get(event.aggregate_id) or KINDS[event.kind].new(event.tenant, event.name)
            known[event.aggregate_id] = aggregate.after(event.event)
            revisions[event.aggregate_id] = event.id
        cursor.executemany(
            "INSERT INTO resources (id, tenant, kind, name, live, revision, state) VALUES (%s, %s, %s, %s, %s, %s, %s)"
            " ON CONFLICT (id) DO UPDATE SET live = excluded.live, revision = excluded.revision, state = excluded.state",
            [_row(known[each], revisions[each]) for each in ids],
        )

    def after_commit(self, events: Sequence[LoggedEvent]) -> None:
        """Nothing follows: readers wait for the runner's position."""


def _row(aggregate: Aggregate, revision: int) -> tuple[Any, ...]:
    state = msgspec.json.encode(aggregate, order="deterministic").decode()
    return (aggregate.id, aggregate.tenant, aggregate.KIND, aggregate.name, aggregate.exists, revision, state)
