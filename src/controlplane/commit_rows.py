"""The rows that commit in the same transaction as events: catalogue and guard, a person's data, an Idempotency-Key's answer.

Commands decide on them, the store's recorder writes them here. Each is of the tenant that the transaction names; the
database refuses any other.
"""

from datetime import datetime
from typing import Any

import msgspec
import psycopg
from msgspec import Struct

Cursor = psycopg.Cursor[Any]


class CatalogueChange(Struct, frozen=True):
    """A row of the catalogue as it is after the commit; `state` None removes it."""

    tenant: str
    kind: str
    name: str
    state: str | None


class IdempotencyRecord(Struct, frozen=True, kw_only=True):
    """What is answered to a repeated request. `nonce` makes secrets that are shown once come out the same again."""

    tenant: str
    key: str
    request_digest: str
    nonce: str
    status: int
    body: str
    revision: int = 0
    """For a request that changed nothing: the revision that it saw. Otherwise the id of its last event."""
    at: datetime


class PersonalData(Struct, frozen=True):
    """What is known of a member as a person after the commit; no name forgets it. Never printed."""

    tenant: str
    member: str
    display_name: str | None
    email: str | None

    def __repr__(self) -> str:
        return f"PersonalData({self.member})"


class Guard(Struct, frozen=True):
    """The version of a tenant's catalogue that a decision was made from."""

    tenant: str
    version: int


def raise_guard(cursor: Cursor, guard: Guard) -> None:
    """Raise a tenant's guard, if it is still the one that was seen.

    Raises:
        psycopg.IntegrityError: it is not. A stale version gives NULL, which the column refuses: the whole transaction fails
            in the same round trip.
    """
    cursor.execute(
        "INSERT INTO catalogue_guards AS g (tenant, version) VALUES (%(tenant)s, %(seen)s::bigint + 1)"
        " ON CONFLICT (tenant) DO UPDATE"
        " SET version = CASE WHEN g.version = %(seen)s::bigint THEN g.version + 1 END",
        {"tenant": guard.tenant, "seen": guard.version},
    )


def change_catalogue(cursor: Cursor, change: CatalogueChange) -> None:
    """Write one row of the catalogue, or remove it."""
    if change.state is None:
        cursor.execute(
            "DELETE FROM catalogue WHERE tenant = %s AND kind = %s AND name = %s",
            [change.tenant, change.kind, change.name],
        )
        return
    cursor.execute(
        "INSERT INTO catalogue (tenant, kind, name, state) VALUES (%s, %s, %s, %s)"
        " ON CONFLICT (tenant, kind, name) DO UPDATE SET state = excluded.state",
        [change.tenant, change.kind, change.name, change.state],
    )


def write_person(cursor: Cursor, person: PersonalData) -> None:
    """Keep what is known of a person, or forget it."""
    if person.display_name is None:
        cursor.execute("DELETE FROM personal_data WHERE tenant = %s AND member = %s", [person.tenant, person.member])
        return
    cursor.execute(
        "INSERT INTO personal_data (tenant, member, display_name, email) VALUES (%s, %s, %s, %s)",
        [person.tenant, person.member, person.display_name, person.email],
    )


def write_idempotency(cursor: Cursor, record: IdempotencyRecord, revision: int | None) -> None:
    """Keep an answer. `revision` is the id of the last event, if there was one."""
    cursor.execute(
        "INSERT INTO idempotency_records (tenant, key, request_digest, nonce, status, body, revision, at)"
        " VALUES (%(tenant)s, %(key)s, %(request_digest)s, %(nonce)s, %(status)s, %(body)s, %(revision)s, %(at)s)",
        msgspec.structs.asdict(record) | ({"revision": revision} if revision is not None else {}),
    )
