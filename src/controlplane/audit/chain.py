"""The projection that chains every event of a tenant to the one before it, and what reads the chain.

The entries also serve `GET /v1/events`: they are the one place where events lie by tenant and resource.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import msgspec
import psycopg
from msgspec import structs

from contracts import envelope
from contracts.audit import GENESIS, AuditEntry, Checkpoint, entry_hash
from contracts.envelope import Purpose
from contracts.keys import KeyPair
from controlplane.log import LoggedEvent

NAME = "audit"
_COLUMNS = "sequence, event_id, at, kind, name, type, actor, payload, previous, hash"


class AuditChain:
    """Folds events into entries. The heads of the tenants in a page are read once and written once."""

    name = NAME
    tables: Sequence[str] = ("audit_entries", "audit_heads")

    def apply(self, cursor: psycopg.Cursor[Any], events: Sequence[LoggedEvent]) -> None:
        """Append one entry for each event."""
        tenants = sorted({event.tenant for event in events})
        cursor.execute("SELECT tenant, sequence, hash FROM audit_heads WHERE tenant = ANY(%s)", [tenants])
        heads = {tenant: (int(sequence), str(hash_)) for tenant, sequence, hash_ in cursor.fetchall()}
        rows = []
        last: dict[str, AuditEntry] = {}
        for event in events:
            sequence, previous = heads.get(event.tenant, (0, GENESIS))
            entry = _entry(event, sequence + 1, previous)
            heads[event.tenant] = (entry.sequence, entry.hash)
            last[event.tenant] = entry
            rows.append((event.tenant, *structs.astuple(entry)))
        if rows:
            # One statement with an array for each column: PostgreSQL refuses COPY into a table under row-level security.
            cursor.execute(
                f"INSERT INTO audit_entries (tenant, {_COLUMNS}) SELECT * FROM unnest(%s::text[], %s::bigint[], %s::bigint[],"  # noqa: S608 - a constant
                " %s::text[], %s::text[], %s::text[], %s::text[], %s::text[], %s::text[], %s::text[], %s::text[])",
                [list(column) for column in zip(*rows, strict=True)],
            )
        cursor.executemany(
            "INSERT INTO audit_heads (tenant, sequence, event_id, at, hash) VALUES (%s, %s, %s, %s, %s)"
            " ON CONFLICT (tenant) DO UPDATE SET sequence = excluded.sequence, event_id = excluded.event_id,"
            " at = excluded.at, hash = excluded.hash",
            [(tenant, entry.sequence, entry.event_id, entry.at, entry.hash) for tenant, entry in sorted(last.items())],
        )

    def after_commit(self, events: Sequence[LoggedEvent]) -> None:
        """Nothing follows: the chain is read when somebody asks."""


def read_entries(
    connection: psycopg.Connection[tuple[Any, ...]], tenant: str, *, after: int, limit: int
) -> list[AuditEntry]:
    """Return a tenant's entries with sequences above `after`, in order."""
    rows = connection.execute(
        f"SELECT {_COLUMNS} FROM audit_entries WHERE tenant = %s AND sequence > %s ORDER BY sequence LIMIT %s",  # noqa: S608 - a constant
        [tenant, after, limit],
    )
    return [AuditEntry(**dict(zip(AuditEntry.__struct_fields__, row, strict=True))) for row in rows]


def read_events(
    connection: psycopg.Connection[tuple[Any, ...]],
    tenant: str,
    *,
    kinds: Sequence[str],
    names: Sequence[str],
    after: int,
    limit: int,
) -> list[AuditEntry]:
    """Return a tenant's events with ids above `after`, in order; of some kinds and names only, if any are given.

    A placement, whose name is `<pipeline>@<data plane>`, is found by its pipeline's name.
    """
    rows = connection.execute(
        f"SELECT {_COLUMNS} FROM audit_entries WHERE tenant = %(tenant)s AND event_id > %(after)s"  # noqa: S608 - a constant
        " AND (%(kinds)s::text[] = '{}' OR kind = ANY(%(kinds)s::text[]))"
        " AND (%(names)s::text[] = '{}' OR resource = ANY(%(names)s::text[])) ORDER BY event_id LIMIT %(limit)s",
        {"tenant": tenant, "after": after, "kinds": list(kinds), "names": list(names), "limit": limit},
    )
    return [AuditEntry(**dict(zip(AuditEntry.__struct_fields__, row, strict=True))) for row in rows]


def read_checkpoint(connection: psycopg.Connection[tuple[Any, ...]], tenant: str) -> Checkpoint | None:
    """Return the checkpoint of a tenant's newest entry; None if it has no entry yet."""
    row = connection.execute("SELECT sequence, hash, at FROM audit_heads WHERE tenant = %s", [tenant]).fetchone()
    if row is None:
        return None
    sequence, hash_, at = row
    return Checkpoint(tenant=tenant, sequence=sequence, hash=hash_, at=msgspec.convert(at, datetime))


def sign_checkpoint(checkpoint: Checkpoint, key_pair: KeyPair) -> str:
    """Return the checkpoint, signed."""
    return envelope.sign(checkpoint, key_pair, contract=2, purpose=Purpose.CHECKPOINT).decode()


def _entry(event: LoggedEvent, sequence: int, previous: str) -> AuditEntry:
    at: str = msgspec.to_builtins(event.at)
    entry = AuditEntry(
        sequence=sequence,
        event_id=event.id,
        at=at,
        kind=event.kind,
        name=event.name,
        type=event.type,
        actor=event.event.actor,
        payload=event.payload.decode(),
        previous=previous,
    )
    return structs.replace(entry, hash=entry_hash(event.tenant, entry))
