"""Who of this process may touch which row, enforced by PostgreSQL: a filter that somebody forgets leaks nothing.

The user that the settings name owns the tables and runs `schema.migrate`; after that no connection acts as it. Each pool
acts as a role that owns nothing and is made here: the API's reads, the write path, and what derives tables from the log.
Every table with a column `tenant` is under FORCE ROW LEVEL SECURITY. The API and the write path see the rows of the
tenant that their transaction names, and without one they see none; the name ends with the transaction, so a pool cannot
carry it over. Whatever derives tables, works for all tenants at once. A table that nobody has listed is closed to the API.

`secure` is repeatable and compares before it changes, so that a process that starts takes no lock that others wait for.
"""

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from enum import Enum
from typing import Any, LiteralString

import psycopg
from msgspec import Struct
from psycopg import sql

Connection = psycopg.Connection[tuple[Any, ...]]

_NAME_BYTES_MAX = 63
_PREFIX = "pointsman_"
"""Policies of this name are ours: others are left alone."""


class DatabaseRole(Enum):
    """What a connection is for. None of these logs in; the settings' user takes the role as it connects."""

    API = "api"
    """Reads what the API shows, one tenant at a time."""
    WRITER = "writer"
    """Reads and appends to the log, and keeps what belongs to a write, one tenant at a time. Changes no event."""
    PROJECTOR = "projector"
    """Derives tables from the log and takes telemetry, for all tenants."""
    BACKUP = "backup"
    """Reads everything, for `pg_dump`: the tables' owner itself sees nothing."""


class RightsMissingError(Exception):
    """The database's user may not make the roles; the text is the SQL that somebody else has to run once."""


def role_name(database: str, role: DatabaseRole) -> str:
    """Return the role's name in the server: roles belong to all of its databases, so the database is part of it."""
    plain = re.sub(r"[^a-z0-9_]", "_", database.lower())
    if plain != database or len(plain) > _NAME_BYTES_MAX - 10:
        plain = f"{plain[:40]}_{hashlib.sha256(database.encode()).hexdigest()[:8]}"
    return f"{plain}_{role.value}"


class Scope(Struct, frozen=True, kw_only=True):
    """Whose rows a transaction may see. Nothing given: nobody's."""

    tenant: str = ""
    key_id: str = ""
    """An API key that is presented: its row is visible, whosever it is, because its tenant is not known before."""
    operator: bool = False
    """The vendor's operator: that tenants exist, whether nodes are alive, and how what they run stands."""


@contextmanager
def scoped(connection: Connection, scope: Scope, *, read_only: bool = False) -> Iterator[None]:
    """Run a transaction in which only the rows of `scope` are there. One round trip more than a bare transaction.

    Raises:
        psycopg.Error: the database's own.
    """
    settings = {
        "tenant": scope.tenant,
        "key_id": scope.key_id,
        "realm": "operator" if scope.operator else "",
    }
    begin: list[sql.Composable] = [sql.SQL("BEGIN READ ONLY" if read_only else "BEGIN")]
    begin += [set_local(name, value) for name, value in settings.items() if value]
    connection.execute(sql.SQL("; ").join(begin), prepare=False)
    try:
        yield
    except BaseException:
        with suppress(psycopg.Error):  # what broke the transaction is the news
            connection.rollback()
        raise
    connection.commit()


def set_local(name: str, value: str) -> sql.Composed:
    """Return the statement that says for the rest of a transaction who it is for."""
    return sql.SQL("SET LOCAL {} = {}").format(sql.Identifier("pointsman", name), sql.Literal(value))


# ---- What is wanted -------------------------------------------------------------------------------------------------

_READ_BY_API = (
    "audit_entries",
    "audit_heads",
    "personal_data",
    "projection_quarantines",
    "resources",
    "schemas_seen",
    "telemetry_api_keys",
    "telemetry_nodes",
    "telemetry_pipelines",
)
_ALL = ("SELECT", "INSERT", "UPDATE", "DELETE")
_WRITTEN: dict[str, tuple[str, ...]] = {
    "catalogue": _ALL,
    "catalogue_guards": _ALL,
    "idempotency_records": _ALL,
    "personal_data": _ALL,
    "telemetry_api_keys": _ALL,
    # Locking the log against other writers takes the right to update. There is no policy for an update, so none finds a row.
    "stored_events": ("SELECT", "INSERT", "UPDATE"),
    "snapshots": ("SELECT", "INSERT"),
}
_NOT_DERIVED = ("stored_events", "snapshots", "idempotency_records", "personal_data", "telemetry_api_keys")
_LOG = ("stored_events", "snapshots")
"""Without a tenant's column: the library's own. Append-only all the same."""
_SEQUENCE = "stored_events_notification_id_seq"

_OF_TENANT = "tenant::text = (SELECT current_setting('pointsman.tenant', true))"
_OF_OPERATOR = "(SELECT current_setting('pointsman.realm', true)) = 'operator'"
_EVERYTHING = "true"


class _Policy(Struct, frozen=True):
    table: str
    purpose: str
    command: LiteralString
    role: DatabaseRole
    using: LiteralString

    @property
    def name(self) -> str:
        """The name says what the policy is, so that comparing names is comparing policies."""
        told = f"{self.command} {self.role.value} {self.using}"
        return f"{_PREFIX}{self.purpose}_{hashlib.sha256(told.encode()).hexdigest()[:8]}"


_SPECIAL = (
    _Policy(
        "resources",
        "presented_key",
        "SELECT",
        DatabaseRole.API,
        "kind = 'ApiKey' AND name = (SELECT current_setting('pointsman.key_id', true))",
    ),
    _Policy("resources", "operator", "SELECT", DatabaseRole.API, f"kind IN ('Tenant', 'Placement') AND {_OF_OPERATOR}"),
    _Policy("telemetry_nodes", "operator", "SELECT", DatabaseRole.API, _OF_OPERATOR),
    *(
        # Forgotten after a day by whoever comes by, without seeing what is younger.
        _Policy(
            "idempotency_records",
            f"expired_{command.lower()}",
            command,
            DatabaseRole.WRITER,
            "at <= now() - interval '24 hours'",
        )
        for command in ("SELECT", "DELETE")
    ),
    *(_Policy(table, "log", command, DatabaseRole.WRITER, _EVERYTHING) for table in _LOG for command in _ALL[:2]),
)


def _policies(tables: dict[str, bool]) -> set[_Policy]:
    """Return the policies of every guarded table."""
    wanted = {each for each in _SPECIAL if each.table in tables}
    for table, of_tenants in tables.items():
        if not of_tenants and table not in _LOG:
            continue
        wanted.add(_Policy(table, "backup", "SELECT", DatabaseRole.BACKUP, _EVERYTHING))
        if table in _READ_BY_API:
            wanted.add(_Policy(table, "tenant_read", "SELECT", DatabaseRole.API, _OF_TENANT))
        if table in _WRITTEN and of_tenants:
            wanted.add(_Policy(table, "tenant_write", "ALL", DatabaseRole.WRITER, _OF_TENANT))
        if table not in _NOT_DERIVED:
            wanted.add(_Policy(table, "derive", "ALL", DatabaseRole.PROJECTOR, _EVERYTHING))
    return wanted


def _grants(tables: dict[str, bool]) -> set[tuple[str, DatabaseRole, str]]:
    """Return relation, role and right of all that is granted."""
    wanted = {(table, DatabaseRole.BACKUP, "SELECT") for table in tables}
    wanted |= {(table, DatabaseRole.API, "SELECT") for table in _READ_BY_API if table in tables}
    wanted |= {(table, DatabaseRole.WRITER, right) for table, rights in _WRITTEN.items() for right in rights}
    derived = [table for table in tables if table not in _NOT_DERIVED]
    wanted |= {(table, DatabaseRole.PROJECTOR, right) for table in derived for right in (*_ALL, "TRUNCATE")}
    return wanted | {(_SEQUENCE, DatabaseRole.WRITER, "USAGE"), (_SEQUENCE, DatabaseRole.BACKUP, "SELECT")}


# ---- Making it so ---------------------------------------------------------------------------------------------------


def secure(connection: Connection) -> None:
    """Make the roles, their rights and the policies, in the transaction of the migration, as the tables' owner.

    Raises:
        RightsMissingError: the roles are missing and the user may not make them.
        psycopg.Error: the database refuses something else.
    """
    roles = _make_roles(connection)
    tables = {
        str(name): bool(of_tenants)
        for name, of_tenants in connection.execute(
            "SELECT c.relname, EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attname = 'tenant'"
            " AND NOT a.attisdropped) FROM pg_class c WHERE c.relnamespace = current_schema()::regnamespace"
            " AND c.relkind IN ('r', 'p') AND pg_has_role(c.relowner, 'USAGE')"
        )
    }
    _grant(connection, roles, _grants(tables))
    _guard(connection, [table for table, of_tenants in tables.items() if of_tenants or table in _LOG])
    _write_policies(connection, roles, _policies(tables))


def _make_roles(connection: Connection) -> dict[DatabaseRole, str]:
    """Make the roles that are missing and let the present user take each of them; return their names."""
    row = connection.execute(
        "SELECT current_database(), current_user, current_setting('server_version_num')::int,"
        " rolsuper OR rolcreaterole FROM pg_roles WHERE rolname = current_user"
    ).fetchone()
    assert row is not None
    database, user, server, may_create = row
    names = {role: role_name(database, role) for role in DatabaseRole}
    asked = "SET" if server >= 160_000 else "MEMBER"
    rows = connection.execute(
        "SELECT rolname, pg_has_role(current_user, oid, %s) FROM pg_roles WHERE rolname = ANY(%s)",
        [asked, list(names.values())],
    )
    known: dict[str, bool] = dict(rows.fetchall())
    # Taking a role is not having its rights all the time: the owner stays as blind as it is.
    options = sql.SQL(" WITH INHERIT FALSE, SET TRUE" if server >= 160_000 else "")
    statements: list[sql.Composed] = []
    for name in names.values():
        if name not in known:
            statements.append(sql.SQL("CREATE ROLE {} NOLOGIN").format(sql.Identifier(name)))
        if not known.get(name, False):
            grant = sql.SQL("GRANT {} TO {}").format(sql.Identifier(name), sql.Identifier(user))
            statements.append(grant + options)
    if statements and not may_create:
        raise RightsMissingError("; ".join(each.as_string(connection) for each in statements) + ";")
    for statement in statements:
        connection.execute(statement)
    return names


def _grant(connection: Connection, roles: dict[DatabaseRole, str], wanted: set[tuple[str, DatabaseRole, str]]) -> None:
    by_name = {name: role for role, name in roles.items()}
    present = {
        (str(relation), by_name[role], str(right))
        for relation, role, right in connection.execute(
            "SELECT c.relname, r.rolname, a.privilege_type FROM pg_class c CROSS JOIN aclexplode(c.relacl) a"
            " JOIN pg_roles r ON r.oid = a.grantee WHERE c.relnamespace = current_schema()::regnamespace"
            " AND r.rolname = ANY(%s)",
            [list(by_name)],
        )
    }
    for verb, preposition, changes in (("REVOKE", "FROM", present - wanted), ("GRANT", "TO", wanted - present)):
        for relation, role, right in sorted(changes, key=lambda each: (each[0], each[1].value, each[2])):
            kind = "SEQUENCE" if relation == _SEQUENCE else "TABLE"
            connection.execute(
                sql.SQL(f"{verb} {right} ON {kind} {{}} {preposition} {{}}").format(
                    sql.Identifier(relation), sql.Identifier(roles[role])
                )
            )
    for name in roles.values():
        row = connection.execute("SELECT current_schema(), has_schema_privilege(%s, current_schema(), 'USAGE')", [name])
        schema, usable = row.fetchone() or ("public", False)
        if not usable:
            grant = sql.SQL("GRANT USAGE ON SCHEMA {} TO {}")
            connection.execute(grant.format(sql.Identifier(schema), sql.Identifier(name)))


def _guard(connection: Connection, tables: list[str]) -> None:
    open_ones = connection.execute(
        "SELECT relname FROM pg_class WHERE relnamespace = current_schema()::regnamespace AND relname = ANY(%s)"
        " AND NOT (relrowsecurity AND relforcerowsecurity) ORDER BY relname",
        [tables],
    ).fetchall()
    for (table,) in open_ones:
        statement = sql.SQL("ALTER TABLE {} ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY")
        connection.execute(statement.format(sql.Identifier(table)))


def _write_policies(connection: Connection, roles: dict[DatabaseRole, str], wanted: set[_Policy]) -> None:
    present = {
        (str(table), str(name))
        for table, name in connection.execute(
            "SELECT tablename, policyname FROM pg_policies WHERE schemaname = current_schema()"
            " AND starts_with(policyname, %s)",
            [_PREFIX],
        )
    }
    named = {(each.table, each.name): each for each in wanted}
    for table, name in sorted(present - named.keys()):
        connection.execute(sql.SQL("DROP POLICY {} ON {}").format(sql.Identifier(name), sql.Identifier(table)))
    for key in sorted(named.keys() - present):
        policy = named[key]
        clause = "WITH CHECK" if policy.command == "INSERT" else "USING"
        connection.execute(
            sql.SQL("CREATE POLICY {} ON {} FOR {} TO {} {} ({})").format(
                sql.Identifier(policy.name),
                sql.Identifier(policy.table),
                sql.SQL(policy.command),
                sql.Identifier(roles[policy.role]),
                sql.SQL(clause),
                sql.SQL(policy.using),
            )
        )
