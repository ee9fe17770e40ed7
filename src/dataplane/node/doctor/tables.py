"""Examine a source's tables: can each be published, read and followed?

In flow table names; out flow findings: one for each trouble of a table, and one for each check that says how many tables
are well. `judge` decides and does no I/O. Called by `examination`.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from contracts.checks import Check, Outcome, State
from contracts.v2 import Finding
from dataplane.node.doctor.reading import Reader

GENERATED_IDENTITY_REFUSED_VERSION = 180000
"""From here on an update is refused when the replica identity holds a generated column that is not published."""

CHECKS = (
    Check.TABLE_EXISTS,
    Check.TABLE_LOGGED,
    Check.TABLE_READABLE,
    Check.TABLE_OWNED,
    Check.TABLE_IDENTITY,
    Check.PARTITION_IDENTITY,
    Check.GENERATED_COLUMNS,
    Check.COLUMN_NAMES,
)

_TABLES = """
SELECT n.nspname || '.' || c.relname, c.relkind::text, c.relpersistence::text, c.relreplident::text,
    EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisprimary
        AND (i.indimmediate OR c.relreplident = 'f')),
    EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisreplident),
    has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT'),
    pg_has_role(c.relowner, 'USAGE'), parts.total, parts.bad, columns.generated, columns.odd
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
CROSS JOIN LATERAL (
    SELECT count(*) AS total, count(*) FILTER (WHERE NOT CASE l.relreplident
        WHEN 'i' THEN EXISTS (SELECT FROM pg_index i WHERE i.indrelid = l.oid AND i.indisreplident)
        WHEN 'n' THEN false
        ELSE EXISTS (SELECT FROM pg_index i WHERE i.indrelid = l.oid AND i.indisprimary
            AND (i.indimmediate OR l.relreplident = 'f')) END) AS bad
    FROM pg_partition_tree(c.oid) t JOIN pg_class l ON l.oid = t.relid WHERE l.oid <> c.oid) AS parts
CROSS JOIN LATERAL (
    SELECT count(*) FILTER (WHERE a.attgenerated <> '') AS generated,
        count(*) FILTER (WHERE a.attgenerated = '' AND a.attname !~ '^[A-Za-z0-9_$]+$') AS odd
    FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped) AS columns
WHERE n.nspname || '.' || c.relname = ANY(%s) AND c.relkind <> 'i'
"""


class Table(NamedTuple):
    """A table as the catalog has it."""

    name: str
    kind: str
    persistence: str
    identity: str
    has_key: bool
    has_identity_index: bool
    readable: bool
    owned: bool
    partitions: int
    partitions_without_key: int
    columns_generated: int
    columns_odd: int


def examine(reader: Reader, names: Sequence[str]) -> list[Finding]:
    """Return what there is to say of the tables."""
    rows = reader.rows(_TABLES, list(names))
    if rows is None:
        return [Finding(check=check, outcome=Outcome.UNKNOWN) for check in CHECKS]
    found = {row[0]: Table(*row) for row in rows}
    troubles = [each for name in names for each in judge(name, found.get(name), reader.version)]
    missing = len(names) - len(found)
    well = []
    for check in CHECKS:
        bad = {each.table for each in troubles if each.check is check}
        looked_at = len(names) if check is Check.TABLE_EXISTS else len(names) - missing
        if looked_at > len(bad):
            well.append(Finding(check=check, outcome=Outcome.OK, count=looked_at - len(bad)))
    return [*troubles, *well]


def judge(name: str, table: Table | None, server_version: int) -> Iterable[Finding]:
    """Yield the troubles of one table."""
    if table is None:
        yield Finding(check=Check.TABLE_EXISTS, outcome=Outcome.PROBLEM, table=name)
        return
    if table.kind not in ("r", "p") or table.persistence != "p":
        state = State.NO_TABLE if table.kind not in ("r", "p") else State.UNLOGGED
        yield Finding(check=Check.TABLE_LOGGED, outcome=Outcome.PROBLEM, table=name, state=state)
        if state is State.NO_TABLE:
            return
    if not table.readable:
        yield Finding(check=Check.TABLE_READABLE, outcome=Outcome.PROBLEM, table=name)
    if not table.owned:
        yield Finding(check=Check.TABLE_OWNED, outcome=Outcome.PROBLEM, table=name)
    yield from _identity(table)
    if table.partitions_without_key:
        yield Finding(
            check=Check.PARTITION_IDENTITY,
            outcome=Outcome.PROBLEM,
            table=name,
            count=table.partitions_without_key,
            count_max=table.partitions,
        )
    if table.columns_generated:
        refused = table.identity == "f" and server_version >= GENERATED_IDENTITY_REFUSED_VERSION
        outcome = Outcome.PROBLEM if refused else Outcome.WARNING
        yield Finding(check=Check.GENERATED_COLUMNS, outcome=outcome, table=name, count=table.columns_generated)
    if table.columns_odd:
        yield Finding(check=Check.COLUMN_NAMES, outcome=Outcome.PROBLEM, table=name, count=table.columns_odd)


def _identity(table: Table) -> Iterable[Finding]:
    outcome, state = Outcome.PROBLEM, None
    if table.identity == "i" and table.has_identity_index:
        return
    if not table.has_key:
        state = State.IDENTITY_DEFAULT
    elif table.identity == "f":
        outcome, state = Outcome.WARNING, State.IDENTITY_FULL
    elif table.identity == "n":
        state = State.IDENTITY_NOTHING
    elif table.identity == "i":
        state = State.IDENTITY_INDEX
    if state is not None:
        yield Finding(check=Check.TABLE_IDENTITY, outcome=outcome, table=table.name, state=state)
