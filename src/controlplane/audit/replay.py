"""The whole configuration of a tenant as it was at a moment: what was asked for, and what each node had acknowledged.

In flow the audit chain's entries up to the moment; out flow resources as the API shows them. Nothing else is read, so what
`audit verify` vouches for is what this shows. Called by the API. Entries are folded by the domain's own code, page by page.
"""

from collections.abc import Iterator
from datetime import datetime
from typing import Any
from uuid import UUID

import psycopg

from contracts.audit import AuditEntry
from controlplane import manifests
from controlplane.audit.chain import read_entries
from controlplane.domain import Aggregate, Placement
from controlplane.domain.event import decode_entry
from controlplane.readmodels.resources import KINDS

PAGE_ENTRIES = 1_000
ENTRIES_MAX = 500_000
"""About half a minute of folding. Past it an auditor replays from an export."""

_PLURALS = {
    "Connection": "connections",
    "Pipeline": "pipelines",
    "DataPlane": "data_planes",
    "Node": "nodes",
    "ApiKey": "api_keys",
}


class TooLong(Exception):
    """The tenant's history up to the moment has more than ENTRIES_MAX entries."""


def replay(connection: psycopg.Connection[tuple[Any, ...]], tenant: str, at: datetime) -> dict[str, Any] | None:
    """Return the configuration at the moment `at`; None if the tenant had no entry yet.

    Raises:
        TooLong: as it says.
        controlplane.domain.HistoryUnreadableError: today's code cannot read an event.
    """
    last = _last_sequence(connection, tenant, at)
    if last == 0:
        return None
    if last > ENTRIES_MAX:
        raise TooLong(f"{last} entries")
    states: dict[UUID, Aggregate] = {}
    revisions: dict[UUID, int] = {}
    newest: AuditEntry | None = None
    for entry in entries_to(connection, tenant, last):
        form = KINDS[entry.kind]
        key = form.address(tenant, entry.name)
        before = states.get(key) or form.new(tenant, entry.name)
        event = decode_entry(entry.type, entry.payload.encode(), key, before.version + 1)
        states[key], revisions[key], newest = before.after(event), entry.event_id, entry
    assert newest is not None
    return {
        "at": at,
        "entry": {"sequence": newest.sequence, "event_id": newest.event_id, "at": newest.at, "hash": newest.hash},
        **_shown(states, revisions),
    }


def _last_sequence(connection: psycopg.Connection[tuple[Any, ...]], tenant: str, at: datetime) -> int:
    row = connection.execute(
        "SELECT max(sequence) FROM audit_entries WHERE tenant = %s AND at::timestamptz <= %s", [tenant, at]
    ).fetchone()
    return int(row[0]) if row is not None and row[0] is not None else 0


def entries_to(connection: psycopg.Connection[tuple[Any, ...]], tenant: str, last: int) -> Iterator[AuditEntry]:
    """Yield a tenant's entries from the first to `last`, page by page."""
    after = 0
    while after < last:
        for entry in read_entries(connection, tenant, after=after, limit=min(PAGE_ENTRIES, last - after)):
            yield entry
            after = entry.sequence


def _shown(states: dict[UUID, Aggregate], revisions: dict[UUID, int]) -> dict[str, list[dict[str, Any]]]:
    """Return the resources that existed, by kind and name; each pipeline with what every data plane had acknowledged."""
    placements: dict[str, list[dict[str, Any]]] = {}
    for state in sorted(states.values(), key=lambda each: each.name):
        if isinstance(state, Placement) and state.last is not None:
            placements.setdefault(state.last.pipeline, []).append(_acknowledged(state))
    shown: dict[str, list[dict[str, Any]]] = {plural: [] for plural in _PLURALS.values()}
    for key, state in sorted(states.items(), key=lambda each: each[1].name):
        plural = _PLURALS.get(state.KIND)
        if plural is None or not state.exists:
            continue
        item = manifests.resource(state, revisions[key])
        if state.KIND == "Pipeline":
            item["acknowledged"] = placements.get(state.name, [])
        shown[plural].append(item)
    return shown


def _acknowledged(placement: Placement) -> dict[str, Any]:
    last = placement.last
    assert last is not None
    return {
        "data_plane": last.data_plane,
        "node": last.node,
        "observed_generation": last.observed_generation,
        "phase": last.phase.value,
        "code": last.code.value if last.code is not None else None,
        "since": last.since,
        "reported_at": last.at,
    }
