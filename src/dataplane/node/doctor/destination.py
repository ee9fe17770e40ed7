"""Examine a destination: may the user write there, and is what it would write into free?

In flow the pipelines that deliver there; out flow findings. Called by `examination`.
"""

from collections.abc import Iterable, Sequence

import psycopg
from psycopg import sql

from contracts.checks import Check, Outcome
from contracts.v2 import Finding
from dataplane.node.doctor.reading import Reader, Row
from dataplane.node.questions import Use

_OK, _BAD, _UNKNOWN = Outcome.OK, Outcome.PROBLEM, Outcome.UNKNOWN

IDENTITY = "SELECT system_identifier::text, current_database()::text FROM pg_control_system()"

_SERVER = (
    """SELECT current_setting('transaction_read_only') = 'off', has_database_privilege(current_database(), 'CREATE')"""
)

_SCHEMAS = """SELECT nspname::text, has_schema_privilege(oid, 'CREATE') AND has_schema_privilege(oid, 'USAGE')
    FROM pg_namespace WHERE nspname = ANY(%s)"""

_TABLES = """SELECT n.nspname || '.' || c.relname,
    has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT') AND has_table_privilege(c.oid, 'INSERT')
    AND has_table_privilege(c.oid, 'UPDATE') AND has_table_privilege(c.oid, 'DELETE')
    AND has_table_privilege(c.oid, 'TRUNCATE')
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname || '.' || c.relname = ANY(%s) AND c.relkind IN ('r', 'p')"""

_OWNED = "SELECT pipeline_id, tables_owned FROM pointsman.checkpoints WHERE pipeline_id = ANY(%s)"
_HAS_CHECKPOINTS = "SELECT to_regclass('pointsman.checkpoints') IS NOT NULL"


def examine(reader: Reader, uses: Sequence[Use]) -> Iterable[Finding]:
    """Yield what there is to say of the destination of the pipelines `uses`."""
    tables = [(use, table) for use in uses for table in use.tables]
    names = sorted({table for _, table in tables})
    wanted = sorted({"pointsman", *(name.partition(".")[0] for name in names)})
    server, schemas = reader.row(_SERVER), reader.rows(_SCHEMAS, wanted)
    found = reader.rows(_TABLES, names)
    yield Finding(check=Check.WRITABLE, outcome=_UNKNOWN if server is None else _OK if server[0] else _BAD)
    if server is None or schemas is None or found is None:
        checks = (Check.DATABASE_RIGHT, Check.SCHEMA_RIGHT, Check.TABLE_WRITABLE, Check.TABLE_EMPTY)
        yield from (Finding(check=check, outcome=_UNKNOWN) for check in checks)
        return
    existing: dict[str, bool] = dict(found)
    yield from judge_rights(names, existing, dict(schemas), missing_allowed=server[1], wanted=wanted)
    yield from _contents(reader, tables, existing)


def judge_rights(
    names: Sequence[str],
    existing: dict[str, bool],
    schemas: dict[str, bool],
    *,
    missing_allowed: bool,
    wanted: Sequence[str],
) -> Iterable[Finding]:
    """Judge what the user may make and write. `schemas` and `existing` say of those that exist whether it may."""
    missing = [schema for schema in wanted if schema not in schemas]
    yield Finding(
        check=Check.DATABASE_RIGHT, outcome=_OK if missing_allowed or not missing else _BAD, count=len(missing)
    )
    refused: dict[str, str] = {}
    for name in names:
        schema = name.partition(".")[0]
        if name not in existing and not schemas.get(schema, True):
            refused.setdefault(schema, name)
    yield from (Finding(check=Check.SCHEMA_RIGHT, outcome=_BAD, table=name) for name in refused.values())
    if not refused:
        yield Finding(check=Check.SCHEMA_RIGHT, outcome=_OK)
    unwritable = [name for name in names if not existing.get(name, True)]
    yield from (Finding(check=Check.TABLE_WRITABLE, outcome=_BAD, table=name) for name in unwritable)
    if len(unwritable) < len(existing) or not existing:
        yield Finding(check=Check.TABLE_WRITABLE, outcome=_OK, count=len(existing) - len(unwritable))


def _contents(reader: Reader, tables: Sequence[tuple[Use, str]], existing: dict[str, bool]) -> Iterable[Finding]:
    owned = _owned(reader, sorted({use.pipeline_id for use, _ in tables}))
    well = 0
    for use, name in tables:
        if name not in existing or name in owned.get(use.pipeline_id, ()):
            well += 1
            continue
        # An index or the table's first page answers; a table of dead rows is given up after the statement's time.
        statement = sql.SQL("SELECT EXISTS (SELECT FROM {})").format(sql.Identifier(*name.split(".", 1)))
        row = reader.row(statement)
        if row is not None and not row[0]:
            well += 1
            continue
        outcome = _UNKNOWN if row is None else _BAD
        yield Finding(check=Check.TABLE_EMPTY, outcome=outcome, table=name, pipeline=use.pipeline)
    if well or not tables:
        yield Finding(check=Check.TABLE_EMPTY, outcome=_OK, count=well)


def _owned(reader: Reader, pipeline_ids: Sequence[str]) -> dict[str, list[str]]:
    exists = reader.row(_HAS_CHECKPOINTS)
    if exists is None or not exists[0]:
        return {}
    return dict(reader.rows(_OWNED, list(pipeline_ids)) or [])


def judge_identity(pipeline: str, here: Row | None, there: Row | None) -> Finding:
    """Judge whether the source of a pipeline (`there`) is the destination's own database."""
    outcome = _UNKNOWN if here is None or there is None else _BAD if here == there else _OK
    return Finding(check=Check.OTHER_DATABASE, outcome=outcome, pipeline=pipeline)


def identity(conninfo: str) -> Row | None:
    """Return system identifier and database of a server, or None when it does not answer."""
    try:
        with psycopg.connect(conninfo, autocommit=True) as connection:
            return connection.execute(IDENTITY).fetchone()
    except psycopg.Error:
        return None
