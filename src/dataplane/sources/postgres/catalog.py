"""What the source asks PostgreSQL's catalog: is the server fit, how are the tables made, how do the slots stand.

In flow table names and Relation messages; out flow schemas, slots and failures with a code. Called by the source, on one
plain connection that is made when it is first needed and made again when it was lost.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import psycopg
from psycopg import sql
from psycopg.rows import TupleRow

from contracts.codes import Code
from contracts.names import SQL_NAME_PATTERN, matches
from dataplane.batch import Column, TableSchema
from dataplane.failures import Permanent, RetryLater
from dataplane.sources.postgres.messages import Relation, lsn_number
from dataplane.sources.postgres.opening import SlotSeen
from dataplane.sources.postgres.publication import PublicationSeen

SERVER_VERSION_MIN = 140000
FILTERS_VERSION = 150000
FAILOVER_VERSION = 170000
"""From here on the server says why it invalidated a slot, and slots may follow to a standby."""
PUBLISHED = "insert, update, delete, truncate"

# A key that is deferrable is no replica identity, and one with a generated column is not sent whole: once such a table was
# published, the server would refuse its owner's updates, or we could not tell its rows apart. The same from PostgreSQL 18
# on for a full identity with any generated column.
_TABLES = """
SELECT c.oid, n.nspname || '.' || c.relname, c.relkind, c.relpersistence, has_table_privilege(c.oid, 'SELECT'),
       leaf.bad, greatest(c.reltuples, 0)::int8
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
CROSS JOIN LATERAL (
    SELECT count(*) FILTER (WHERE NOT CASE l.relreplident
        WHEN 'd' THEN EXISTS (SELECT FROM pg_index i WHERE i.indrelid = l.oid AND i.indisprimary AND i.indimmediate)
        WHEN 'i' THEN EXISTS (SELECT FROM pg_index i WHERE i.indrelid = l.oid AND i.indisreplident)
        WHEN 'f' THEN EXISTS (SELECT FROM pg_index i WHERE i.indrelid = l.oid AND i.indisprimary)
        ELSE false END
        OR EXISTS (SELECT FROM pg_attribute a LEFT JOIN pg_index i ON i.indrelid = a.attrelid AND a.attnum = ANY (i.indkey)
            WHERE a.attrelid = l.oid AND a.attgenerated <> ''
            AND (CASE WHEN l.relreplident = 'i' THEN i.indisreplident ELSE i.indisprimary END
                OR l.relreplident = 'f' AND current_setting('server_version_num')::int >= 180000))) AS bad
    FROM (SELECT c.oid UNION SELECT t.relid FROM pg_partition_tree(c.oid) t) AS part
    JOIN pg_class l ON l.oid = part.oid) AS leaf
WHERE n.nspname || '.' || c.relname = ANY(%s)
"""

_COLUMNS = """
SELECT a.attname, format_type(a.atttypid, a.atttypmod), a.atttypid::int8, NOT a.attnotnull,
       CASE WHEN c.relreplident = 'i'
            THEN COALESCE((SELECT a.attnum = ANY(i.indkey) FROM pg_index i
                           WHERE i.indrelid = c.oid AND i.indisreplident), false)
            ELSE COALESCE((SELECT a.attnum = ANY(i.indkey) FROM pg_index i
                           WHERE i.indrelid = c.oid AND i.indisprimary), false) END,
       (a.attmissingval::text::text[])[1]
FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
WHERE a.attrelid = %s AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
ORDER BY a.attnum
"""


@dataclass(frozen=True, slots=True)
class TableSeen:
    """A table that is to be captured. `only` says that its children, if any, are tables of their own.

    `rows_estimated` is what the server knows of its size, 0 when it was never analysed.
    """

    oid: int
    name: str
    only: bool
    rows_estimated: int = 0

    @property
    def identifier(self) -> sql.Composed:
        """The table's name for an SQL statement, without its children."""
        name = sql.Identifier(*self.name.split(".", 1))
        return sql.SQL("ONLY {}").format(name) if self.only else sql.SQL("{}").format(name)


class Catalog:
    """Asks one database. Every method may raise RetryLater when the server does not answer."""

    def __init__(self, conninfo: str) -> None:
        self._conninfo = conninfo
        self._connection: psycopg.AsyncConnection[TupleRow] | None = None
        self._types: dict[tuple[int, int], str] = {}

    async def rows(self, query: str | sql.Composable, *parameters: object) -> list[TupleRow]:
        """Run one statement in a transaction of its own.

        Raises:
            psycopg.Error: the server refused it.
        """
        connection = await self._connected()
        cursor = await connection.execute(query, parameters or None)  # type: ignore[arg-type]
        return await cursor.fetchall() if cursor.description else []

    async def rows_within(self, lock_seconds: int, query: sql.Composed) -> list[TupleRow]:
        """Run one statement that waits for no lock longer than `lock_seconds`.

        Raises:
            psycopg.Error: the server refused it, or a lock could not be had.
        """
        connection = await self._connected()
        async with connection.transaction():
            await connection.execute(sql.SQL("SET LOCAL lock_timeout = {}").format(sql.Literal(f"{lock_seconds}s")))
            return await (await connection.execute(query)).fetchall()

    async def _connected(self) -> psycopg.AsyncConnection[TupleRow]:
        if self._connection is None or self._connection.closed:
            self._connection = await psycopg.AsyncConnection.connect(self._conninfo, autocommit=True)
            # Prepared statements would pile up behind a pooler, and nothing here is asked often.
            self._connection.prepare_threshold = None
        return self._connection

    async def version(self) -> int:
        """Return the server's version as a number (180003)."""
        return (await self._connected()).info.server_version

    async def close(self) -> None:
        """Close the connection, if there is one."""
        if self._connection is not None:
            await self._connection.close()
            self._connection = None

    async def check_server(self) -> None:
        """Check that the server can be captured from.

        Raises:
            Permanent: it is too old, or not set up for logical decoding, or our user may not replicate.
            RetryLater: it is a standby, which may be promoted at any time.
        """
        version = await self.version()
        if version < SERVER_VERSION_MIN:
            raise Permanent(Code.SOURCE_TOO_OLD, f"the server's version is {version}")
        ((level, standby, may_replicate),) = await self.rows(
            "SELECT current_setting('wal_level'), pg_is_in_recovery(), rolreplication OR rolsuper"
            " OR EXISTS (SELECT FROM pg_roles r WHERE r.rolname IN ('rds_replication', 'azure_pg_admin')"
            " AND pg_has_role(r.oid, 'MEMBER')) FROM pg_roles WHERE rolname = current_user"
        )
        if level != "logical":
            raise Permanent(Code.SOURCE_NOT_LOGICAL, f"wal_level is {level}")
        if not may_replicate:
            raise Permanent(Code.SOURCE_RIGHTS_MISSING, "the user has not the REPLICATION attribute")
        if standby:
            raise RetryLater(Code.SOURCE_STANDBY, "the server is a standby; publications are made on the primary")

    async def tables(self, names: Sequence[str]) -> list[TableSeen]:
        """Find the tables, in the order of `names`, and check that each can be captured.

        Raises:
            Permanent: one is missing, cannot be read, has no key, or has a column with an odd name.
        """
        found = {row[1]: row for row in await self.rows(_TABLES, list(names))}
        seen = []
        for name in names:
            if name not in found:
                raise Permanent(Code.SOURCE_TABLE_MISSING, "the table does not exist", table=name)
            oid, _, kind, persistence, readable, without_key, rows = found[name]
            if kind not in ("r", "p") or persistence != "p":
                raise Permanent(
                    Code.SOURCE_TABLE_MISSING, "it is not a table that the server writes to its log", table=name
                )
            if not readable:
                raise Permanent(Code.SOURCE_RIGHTS_MISSING, "the user may not SELECT", table=name)
            if without_key:
                raise Permanent(Code.SOURCE_TABLE_WITHOUT_KEY, "updates could not name their row", table=name)
            seen.append(TableSeen(oid, name, kind == "r", int(rows)))
        return seen

    async def schema(self, table: TableSeen) -> TableSchema:
        """Return the table's columns as they are now, without generated ones, which are not in the stream."""
        rows = await self.rows(_COLUMNS, table.oid)
        columns = tuple(
            Column(name, type_text, type_oid, bool(key), bool(nullable), missing)
            for name, type_text, type_oid, nullable, key, missing in rows
        )
        _check_names(table.name, [column.name for column in columns])
        if not any(column.key for column in columns):
            raise Permanent(Code.SOURCE_TABLE_WITHOUT_KEY, "updates could not name their row", table=table.name)
        schema, name = table.name.split(".", 1)
        return TableSchema(schema, name, columns)

    async def describe(self, relation: Relation) -> TableSchema:
        """Return the schema of a Relation message: its own columns, and from the catalog what it does not say.

        Raises:
            Permanent: a column has an odd name, or no column is a key.
        """
        table = f"{relation.schema}.{relation.name}"
        _check_names(table, [column.name for column in relation.columns])
        now = {row[0]: row for row in await self.rows(_COLUMNS, relation.id)}
        types = await self._type_texts([(column.type_oid, column.type_modifier) for column in relation.columns])
        columns = []
        for column, text in zip(relation.columns, types, strict=True):
            # With a full identity every column is flagged: the key is then the primary key, which the catalog knows.
            known = now.get(column.name)
            key = bool(known and known[4]) if relation.identity == "f" else column.key
            nullable, missing = (bool(known[3]), known[5]) if known else (True, None)
            columns.append(Column(column.name, text, column.type_oid, key, nullable, missing))
        if not any(column.key for column in columns):
            raise Permanent(Code.SOURCE_TABLE_WITHOUT_KEY, "updates could not name their row", table=table)
        return TableSchema(relation.schema, relation.name, tuple(columns))

    async def _type_texts(self, types: Sequence[tuple[int, int]]) -> list[str]:
        missing = [pair for pair in dict.fromkeys(types) if pair not in self._types]
        if missing:
            rows = await self.rows(
                "SELECT o::int8, m, CASE WHEN EXISTS (SELECT FROM pg_type t WHERE t.oid = o::oid)"
                " THEN format_type(o::oid, m) ELSE 'text' END FROM unnest(%s::int8[], %s::int4[]) AS u(o, m)",
                [oid for oid, _ in missing],
                [modifier for _, modifier in missing],
            )
            self._types.update({(oid, modifier): text for oid, modifier, text in rows})
        return [self._types[pair] for pair in types]

    async def slots(self, prefix: str) -> list[SlotSeen]:
        """Return the slots whose names begin with `prefix` and an underscore, in any database."""
        newer = await self.version() >= FAILOVER_VERSION
        more = "invalidation_reason, failover" if newer else "NULL, false"
        rows = await self.rows(
            "SELECT slot_name, plugin, database, slot_type = 'logical', active_pid,"  # noqa: S608 - from two constants
            f" confirmed_flush_lsn::text, wal_status = 'lost', {more}"
            " FROM pg_replication_slots WHERE starts_with(slot_name, %s) AND NOT temporary ORDER BY slot_name",
            f"{prefix}_",
        )
        return [
            SlotSeen(
                name=name,
                plugin=plugin,
                database=database,
                logical=logical,
                active_pid=pid,
                confirmed_flush=lsn_number(flush) if flush else 0,
                lost=bool(lost) or reason_text is not None,
                reason=reason_text,
                failover=failover,
            )
            for name, plugin, database, logical, pid, flush, lost, reason_text, failover in rows
        ]

    async def drop_slot(self, name: str) -> None:
        """Drop a slot if it exists."""
        await self.rows(
            "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = %s", name
        )

    async def end_session(self, pid: int, slot: str) -> None:
        """End the walsender that holds the slot, if it still does."""
        await self.rows(
            "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = %s AND active_pid = %s",
            slot,
            pid,
        )

    async def slot_holder(self, name: str) -> int | None:
        """Return the process of the server that holds the slot, or None when nobody does."""
        rows = await self.rows("SELECT active_pid FROM pg_replication_slots WHERE slot_name = %s", name)
        return rows[0][0] if rows else None

    async def writers(self, oid: int) -> frozenset[str]:
        """Return the transactions that have written to a table, or to a partition of it, and have not ended."""
        rows = await self.rows(
            "SELECT DISTINCT virtualtransaction FROM pg_locks WHERE locktype = 'relation' AND granted"
            " AND mode IN ('RowExclusiveLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')"
            " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
            " AND relation IN (SELECT %s::oid UNION SELECT relid FROM pg_partition_tree(%s))",
            oid,
            oid,
        )
        return frozenset(str(transaction) for (transaction,) in rows)

    async def moment(self) -> str:
        """Return a snapshot of now, as the server writes it."""
        ((text,),) = await self.rows("SELECT pg_current_snapshot()::text")
        return str(text)

    async def waiting_for_standbys(self) -> list[int]:
        """Return the transactions whose commit waits for a standby: in the log, and not visible to others."""
        rows = await self.rows(
            "SELECT backend_xid::text::int8 FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND backend_xid IS NOT NULL"
        )
        return [int(number) & 0xFFFFFFFF for (number,) in rows]

    async def published(self, publication: str) -> PublicationSeen | None:
        """Return a publication as it is, or None when it does not exist."""
        found = await self.rows(
            "SELECT oid, obj_description(oid, 'pg_publication'), NOT puballtables AND pubinsert AND pubupdate"
            " AND pubdelete AND pubtruncate AND pubviaroot FROM pg_publication WHERE pubname = %s",
            publication,
        )
        if not found:
            return None
        oid, comment, intact = found[0]
        whole = "prqual IS NULL AND prattrs IS NULL" if await self.version() >= FILTERS_VERSION else "true"
        rows = await self.rows(
            f"SELECT n.nspname || '.' || c.relname, {whole} FROM pg_publication_rel r"  # noqa: S608 - from constants
            " JOIN pg_class c ON c.oid = r.prrelid JOIN pg_namespace n ON n.oid = c.relnamespace WHERE r.prpubid = %s",
            oid,
        )
        return PublicationSeen(
            frozenset(name for name, _ in rows), comment, bool(intact) and all(plain for _, plain in rows)
        )

    async def members(self, publication: str) -> dict[str, int]:
        """Return the tables that a publication names, each with the id of its entry: a table made or added anew has another."""
        rows = await self.rows(
            "SELECT n.nspname || '.' || c.relname, r.oid::int8 FROM pg_publication p JOIN pg_publication_rel r"
            " ON r.prpubid = p.oid JOIN pg_class c ON c.oid = r.prrelid JOIN pg_namespace n ON n.oid = c.relnamespace"
            " WHERE p.pubname = %s",
            publication,
        )
        return dict(rows)

    async def unpublish(self, publication: str, table: str) -> None:
        """Take a table out of a publication.

        Raises:
            psycopg.Error: the server refused.
        """
        statement = sql.SQL("ALTER PUBLICATION {} DROP TABLE {}")
        identifiers = sql.Identifier(publication), sql.Identifier(*table.split(".", 1))
        await (await self._connected()).execute(statement.format(*identifiers))

    async def comment_of(self, publication: str) -> str | None:
        """Return a publication's comment; None without one, or without the publication."""
        rows = await self.rows(
            "SELECT obj_description(oid, 'pg_publication') FROM pg_publication WHERE pubname = %s", publication
        )
        return rows[0][0] if rows else None

    async def publish(self, publication: str, tables: Sequence[TableSeen], *, exists: bool, comment: str) -> None:
        """Make the publication publish exactly these tables, all their changes, partitions as their root.

        The comment changes in the same transaction.

        Raises:
            psycopg.Error: the server refused, for example because the user does not own a table.
        """
        name = sql.Identifier(publication)
        listed = sql.SQL(", ").join(table.identifier for table in tables)
        statement = "ALTER PUBLICATION {} SET TABLE {}" if exists else "CREATE PUBLICATION {} FOR TABLE {}"
        options = sql.SQL("(publish = {}, publish_via_partition_root = true)").format(sql.Literal(PUBLISHED))
        connection = await self._connected()
        async with connection.transaction():
            await connection.execute(sql.SQL(statement).format(name, listed))
            await connection.execute(sql.SQL("ALTER PUBLICATION {} SET {}").format(name, options))
            await connection.execute(sql.SQL("COMMENT ON PUBLICATION {} IS {}").format(name, sql.Literal(comment)))

    async def note(self, publication: str, comment: str) -> None:
        """Change the publication's comment."""
        await self.rows(
            sql.SQL("COMMENT ON PUBLICATION {} IS {}").format(sql.Identifier(publication), sql.Literal(comment))
        )

    async def drop_publication(self, publication: str) -> None:
        """Drop a publication if it exists."""
        await self.rows(sql.SQL("DROP PUBLICATION IF EXISTS {}").format(sql.Identifier(publication)))

    async def wal_sender_timeout_seconds(self) -> float:
        """Return after how much silence the server cuts a stream; 0 when it never does."""
        ((milliseconds,),) = await self.rows("SELECT setting::float8 FROM pg_settings WHERE name='wal_sender_timeout'")
        return float(milliseconds) / 1000


def _check_names(table: str, names: Sequence[str]) -> None:
    for name in names:
        if not matches(SQL_NAME_PATTERN, name):
            raise Permanent(Code.SOURCE_NAME_UNSUPPORTED, f"the name {name!r} is not plain", table=table)
