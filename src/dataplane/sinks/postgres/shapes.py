"""What this session knows of the destination's tables: which shapes were checked, and which have a staging table.

Asked by the delivery before it writes a batch; answers with the batch's statements, after it has made, widened or
refused the table. Where new columns are to be ignored, the statements are those of the columns that are carried. What was learned inside a transaction that is rolled back is forgotten.
"""

import hashlib

from psycopg import sql

from contracts.codes import Code
from dataplane.batch import TableSchema
from dataplane.checkpoint import SourceIdentity
from dataplane.failures import Permanent
from dataplane.sinks.postgres import tables
from dataplane.sinks.postgres.session import Session, Statement
from dataplane.sinks.postgres.statements import TableStatements


class Shapes:
    """The tables as this session has found or made them. `system` and `database` are the destination's own identity."""

    def __init__(self, session: Session, *, system: str, database: str, ignores: bool = False) -> None:
        self._session = session
        self._system = system
        self._database = database
        self._ignores = ignores
        self._ignored: dict[str, int] = {}
        self._known: dict[str, TableStatements] = {}
        self._seen: dict[str, TableSchema] = {}
        """The shapes of the source that `_known` was made for: where columns are left out, that has fewer."""
        self._staged: dict[str, TableSchema] = {}
        self._filled: set[str] = set()

    def known(self, table: TableSchema) -> TableStatements | None:
        """Return the statements of this shape of a table; None when it must be learned first."""
        seen = self._seen.get(table.table)
        return self._known[table.table] if seen is not None and (seen is table or seen == table) else None

    @property
    def ignored_count(self) -> int:
        """How many columns of the tables that were learned are left out."""
        return sum(self._ignored.values())

    def forget(self) -> None:
        """Forget everything: a transaction in which something may have been made was rolled back."""
        self._known.clear()
        self._seen.clear()
        self._staged.clear()
        self._filled.clear()

    def committed(self) -> None:
        """Note that the transaction has ended: the server has emptied the staging tables."""
        self._filled.clear()

    async def learn(self, table: TableSchema, source: SourceIdentity | None) -> TableStatements:
        """Check the table, and give it the columns that it lacks.

        Raises:
            Permanent: it does not exist, does not fit, or is the source's own.
        """
        self._refuse_source(table, source)
        found = await tables.read(self._session.connection, table)
        if found is None:
            raise Permanent(Code.SINK_TABLE_MISMATCH, "the table is gone from the destination", table=table.table)
        return await self._fit(table, found)

    async def make(self, table: TableSchema, source: SourceIdentity | None, *, owned: bool) -> None:
        """Make the table that a snapshot is to fill, or check the one that is there.

        Raises:
            Permanent: it holds rows that are not ours, does not fit, or is the source's own.
        """
        self._refuse_source(table, source)
        found = await tables.read(self._session.connection, table)
        if found is None:
            await tables.check_types(self._session.connection, table, table.columns)
            if not table.key:
                raise Permanent(Code.SINK_TABLE_MISMATCH, "the table has no key", table=table.table)
            schema = await self._session.execute("SELECT to_regnamespace(quote_ident(%s)) IS NULL", (table.schema,))
            if schema[0][0]:
                await self._run(sql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(sql.Identifier(table.schema)))
            await self._run(tables.creation(table))
            found = await tables.read(self._session.connection, table)
            assert found is not None
            await self._fit(table, found)
        else:
            await self._fit(table, found)
            name = sql.Identifier(table.schema, table.name)
            if not owned and await self._run(sql.SQL("SELECT 1 FROM {} LIMIT 1").format(name)):
                raise Permanent(
                    Code.SINK_TABLE_NOT_EMPTY, "the destination's table has rows already", table=table.table
                )

    async def stage(self, table: TableSchema) -> None:
        """Have an empty staging table of the table's shape: made once a session, emptied only if it was filled."""
        statements = self._known[table.table]
        if self._staged.get(table.table) != table:
            await self._session.execute(statements.drop_stage.decode())
            await self._session.execute(statements.make_stage.decode())
            self._staged[table.table] = table
        elif table.table in self._filled:
            await self._session.run([Statement(statements.clear_stage)])
        self._filled.add(table.table)

    async def _fit(self, table: TableSchema, found: tables.Found) -> TableStatements:
        """Give the destination the columns that it lacks, or leave them out; then remember how the table is written."""
        missing = tables.missing_columns(table, found)
        carried = table
        if missing and self._ignores:
            carried = TableSchema(table.schema, table.name, tuple(c for c in table.columns if c not in missing))
        elif missing:
            await tables.check_types(self._session.connection, table, missing)
            for statement in tables.additions(table, missing):
                await self._run(statement)
        self._ignored[table.table] = len(table.columns) - len(carried.columns)
        # Names may be as long as PostgreSQL allows, so the staging table's is a digest.
        digest = hashlib.blake2b(table.table.encode(), digest_size=12).hexdigest()
        self._known[table.table] = statements = TableStatements(
            carried, f"pm${digest}", found.uniques[frozenset(table.key)]
        )
        self._seen[table.table] = table
        return statements

    def _refuse_source(self, table: TableSchema, source: SourceIdentity | None) -> None:
        if source is not None and (source.system_identifier, source.database) == (self._system, self._database):
            raise Permanent(Code.SINK_SAME_AS_SOURCE, "source and destination are one database", table=table.table)

    async def _run(self, statement: sql.Composed) -> list[tuple[object, ...]]:
        return await self._session.execute(statement.as_bytes(None).decode())
