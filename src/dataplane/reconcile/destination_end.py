"""The destination's end of a comparison: one connection that stages the source's rows and lets the server compare.

The source's text is put into a staging table of the destination's own types, so a value compares as the destination
would store it; only the places of rows that differ come back. Rows are written by the sink's own statements, while the
checkpoint's row is locked: every transaction of the pipeline takes that lock first, so it stands still meanwhile. So does
each of its lanes, where it writes over several: one may have a key's changes beyond the checkpoint then, as it may have them
an instant before the source shows them, and a row is judged by its own versions at both ends in any case.

Two rows are equal if their binary images are, or else if their texts are: `1.0` and `1.00` are two values of a numeric,
an empty string is not NULL, and what two types of one text hold does not matter. Called by `comparison`, on its thread.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import NamedTuple

import psycopg
import pyarrow as pa
from psycopg import sql

from contracts.codes import Code
from contracts.v2 import ConnectionDocument
from dataplane import postgres
from dataplane.batch import ChangeBatch, TableSchema
from dataplane.checkpoint import Checkpoint
from dataplane.failures import Permanent
from dataplane.postgres import Revealable
from dataplane.reconcile import walking
from dataplane.reconcile.proof import DestinationRow
from dataplane.reconcile.walking import Key, Walk
from dataplane.sinks.postgres import careful, checkpoints, copy_text
from dataplane.sinks.postgres.delivery import failure
from dataplane.sinks.postgres.statements import DELETE_STEP, STEP, UPSERT_STEP, TableStatements

STATEMENT_SECONDS_MAX = 60
LOCK_MILLISECONDS_MAX = 300
"""A repair waits no longer for a lock than this, and then lets go of what it has."""

SETTINGS: Mapping[str, str] = {
    **postgres.SESSION_SETTINGS,
    "synchronous_commit": "on",
    "statement_timeout": f"{STATEMENT_SECONDS_MAX}s",
    "lock_timeout": f"{LOCK_MILLISECONDS_MAX}ms",
    "idle_in_transaction_session_timeout": f"{STATEMENT_SECONDS_MAX}s",
    "client_min_messages": "warning",
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "jit": "off",
}

NUMBER = "pm$n"
_VERSION = "t.tableoid::text || t.ctid::text || t.xmin::text"
_LOCK = "SELECT epoch FROM pointsman.checkpoints WHERE pipeline_id = %s FOR UPDATE"


class Standing(NamedTuple):
    """How far the pipeline has come at the destination: what was committed before `lsn` is there."""

    epoch: int
    slot: str
    lsn: int


class DestinationEnd:
    """One table at the destination. The constructor does no I/O."""

    def __init__(self, conninfo: str, *, pipeline_id: str, table: str) -> None:
        self.table = table
        self._conninfo = conninfo
        self._pipeline_id = pipeline_id
        self._connection: psycopg.Connection[tuple[object, ...]] | None = None
        self._walk: Walk | None = None
        self._schema: TableSchema | None = None
        self._statements: TableStatements | None = None
        self._stage = sql.Identifier("pg_temp", "pm$none")
        self._differ: sql.Composable = sql.SQL("false")

    @property
    def connection(self) -> psycopg.Connection[tuple[object, ...]]:
        """The session, for what is written in the same transactions."""
        assert self._connection is not None
        return self._connection

    def open(self) -> None:
        """Connect."""
        with self.asking():
            self._connection = psycopg.connect(self._conninfo, autocommit=True, prepare_threshold=None)

    def close(self) -> None:
        """End the session; the server rolls back what is open. May be called twice."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def checkpoint(self) -> Checkpoint:
        """Return the pipeline's checkpoint.

        Raises:
            Permanent: the table has no whole copy.
        """
        with self.asking():
            row = self.connection.execute(checkpoints.LOAD, (self._pipeline_id,)).fetchone()
        found = checkpoints.checkpoint(row) if row is not None else None
        if (
            found is None
            or found.source is None
            or self.table not in found.tables_copied
            or (self.table in found.unsettled)
        ):
            raise Permanent(Code.RECONCILE_NOT_COPIED, "there is no whole copy of the table", table=self.table)
        return found

    def standing(self) -> Standing:
        """Return how far the pipeline has come.

        Raises:
            Permanent: the table has no whole copy any more.
        """
        held = self.checkpoint()
        assert held.source is not None
        return Standing(held.epoch, held.source.slot, max(held.position.lsn, held.confirmed_through))

    def prepare(self, schema: TableSchema) -> None:
        """Learn the table, and make the staging table. `schema` is the source's, as the transforms leave it.

        Columns that only one end has are left out.

        Raises:
            Permanent: it is not there, or has another key.
        """
        with self.asking():
            mismatch = Code.SINK_TABLE_MISMATCH
            walk = walking.read(self.connection, schema, missing=mismatch, mismatch=mismatch)
            common = tuple(column for column in schema.columns if column.name in walk.types)
            self._walk, self._schema = walk, replace(schema, columns=common)
            name = f"pm${hashlib.blake2b(self.table.encode(), digest_size=12).hexdigest()}"
            self._stage = sql.Identifier("pg_temp", name)
            self._statements = statements = TableStatements(self._schema, name, walk.equality)
            self.connection.execute(statements.drop_stage)
            self.connection.execute(statements.make_stage)
            self.connection.execute(
                sql.SQL("ALTER TABLE {} ADD COLUMN {} bigint").format(self._stage, sql.Identifier(NUMBER))
            )
        values = [column.name for column in common if not column.key]
        if values:
            self._differ = sql.SQL(
                "(ROW({})::record *<> ROW({})::record AND ROW({})::record *<> ROW({})::record)"
            ).format(
                *(
                    sql.SQL(", ").join(sql.SQL(form).format(sql.Identifier(alias, each)) for each in values)
                    for form in ("{}", "{}::text")
                    for alias in ("t", "s")
                )
            )

    # ---- Comparing --------------------------------------------------------------------------------------------------

    def differing(self, batch: ChangeBatch) -> list[int]:
        """Return the places of the rows of `batch` that the destination lacks or holds with other values."""
        query = sql.SQL(
            "SELECT s.{} FROM {} AS s LEFT JOIN {} AS t ON {} WHERE t.ctid IS NULL OR s.{} <> {} OR {}"
        ).format(
            sql.Identifier(NUMBER),
            self._stage,
            self._name(),
            self._matches(),
            sql.Identifier(STEP),
            sql.Literal(UPSERT_STEP),
            self._differ,
        )
        with self.asking(), self.connection.transaction():
            self._put_fitting(range(len(batch)), batch.rows)
            return [int(str(number)) for (number,) in self.connection.execute(query)]

    def judge(
        self, keys: Sequence[Key], numbers: Sequence[int], batch: ChangeBatch | None
    ) -> dict[int, DestinationRow]:
        """Return the destination's rows of `keys` by their places. `batch` holds the source's, for `numbers` of them."""
        with self.asking(), self.connection.transaction():
            if batch is not None and numbers:
                self._put_fitting(numbers, batch.rows)
            self._put_keys(keys, numbers)
            return self._staged()

    def versions(self, keys: Sequence[Key]) -> dict[int, str]:
        """Return the versions of the rows of `keys` that exist, by their places."""
        return {number: row.version for number, row in self.judge(keys, (), None).items()}

    def page(self, after: Key | None, limit: int) -> list[Key]:
        """Return the next keys behind `after` in the order of the destination's key."""
        walk, names = self._walking(), self._shape().key
        place: sql.Composable = sql.SQL("")
        if after is not None:
            place = sql.SQL("WHERE {}").format(walk.beyond("t", walking.named(names, after)))
        query = sql.SQL("SELECT {} FROM {} AS t {} ORDER BY {} LIMIT {}").format(
            sql.SQL(", ").join(sql.SQL("{}::text").format(sql.Identifier("t", name)) for name in names),
            self._name(),
            place,
            walk.order("t"),
            sql.Literal(limit),
        )
        with self.asking():
            return [tuple(str(part) for part in row) for row in self.connection.execute(query)]

    # ---- Mending ----------------------------------------------------------------------------------------------------

    def hold(self) -> int | None:
        """Lock the pipeline's checkpoint, and return its epoch; None if that was not to be had in time.

        In the caller's transaction, which is over if None is returned.
        """
        try:
            row = self.connection.execute(_LOCK, (self._pipeline_id,)).fetchone()
        except psycopg.errors.LockNotAvailable:
            return None
        return int(str(row[0])) if row is not None else 0

    def put(self, keys: Sequence[Key], numbers: Sequence[int], batch: ChangeBatch | None) -> None:
        """Stage rows to write and, for the other keys, rows to delete; in the caller's transaction.

        Raises:
            psycopg.Error: the destination's types do not take one of the values, among others.
        """
        if batch is not None and numbers:
            self._put_rows(numbers, batch.rows)
        self._put_keys(keys, numbers)

    def staged(self) -> dict[int, DestinationRow]:
        """Return the destination's rows of what is staged."""
        return self._staged()

    def write(self, numbers: Sequence[int]) -> None:
        """Write and delete what is staged under `numbers`, by the sink's own statements."""
        statements = self._statements
        assert statements is not None
        self.connection.execute(
            sql.SQL("DELETE FROM {} WHERE {} <> ALL(%s)").format(self._stage, sql.Identifier(NUMBER)), (list(numbers),)
        )
        self.connection.execute(statements.delete_staged)
        self.connection.execute(statements.upsert_staged)

    # ---- Staging ----------------------------------------------------------------------------------------------------

    def _put_keys(self, keys: Sequence[Key], present: Sequence[int]) -> None:
        """Stage the keys that are not among those whose rows are `present`."""
        held = set(present)
        alone = [number for number in range(len(keys)) if number not in held]
        if alone:
            columns = [
                pa.array([keys[number][place] for number in alone], pa.string()) for place in range(len(keys[0]))
            ]
            self._copy(alone, DELETE_STEP, self._shape().key, columns)

    def _put_rows(self, numbers: Sequence[int], rows: pa.RecordBatch) -> None:
        names = [column.name for column in self._shape().columns]
        self._copy(numbers, UPSERT_STEP, names, [rows.column(name) for name in names])

    def _put_fitting(self, numbers: Sequence[int], rows: pa.RecordBatch) -> None:
        """Stage rows to be compared; of one with a value that the destination's types do not take only the key.

        No row there can be equal to it.
        """
        try:
            with self.connection.transaction():
                self._put_rows(numbers, rows)
        except psycopg.Error as error:
            if not careful.is_about_a_row(error):
                raise
            half = len(numbers) // 2
            if half:
                self._put_fitting(numbers[:half], rows.slice(0, half))
                self._put_fitting(numbers[half:], rows.slice(half))
                return
            key = self._shape().key
            self._copy(numbers, DELETE_STEP, key, [rows.column(name) for name in key])

    def _copy(self, numbers: Sequence[int], step: int, names: Sequence[str], columns: Sequence[pa.Array]) -> None:
        statement = sql.SQL("COPY {} ({}) FROM STDIN").format(
            self._stage, sql.SQL(", ").join(sql.Identifier(name) for name in (NUMBER, STEP, *names))
        )
        places = pa.array(numbers, pa.int64()).cast(pa.string())
        values = [places, pa.scalar(str(step), pa.string()), *columns]
        with self.connection.cursor() as cursor, cursor.copy(statement) as copy:
            for block in copy_text.blocks(values, len(places)):
                copy.write(block)

    def _staged(self) -> dict[int, DestinationRow]:
        query = sql.SQL("SELECT s.{}, {}, s.{} = {} AND NOT {} FROM {} AS s JOIN {} AS t ON {}").format(
            sql.Identifier(NUMBER),
            sql.SQL(_VERSION),
            sql.Identifier(STEP),
            sql.Literal(UPSERT_STEP),
            self._differ,
            self._stage,
            self._name(),
            self._matches(),
        )
        return {
            int(str(number)): DestinationRow(str(version), bool(same))
            for number, version, same in self.connection.execute(query)
        }

    def _name(self) -> sql.Identifier:
        schema = self._shape()
        return sql.Identifier(schema.schema, schema.name)

    def _matches(self) -> sql.Composed:
        return self._walking().matches("t", "s")

    def _walking(self) -> Walk:
        assert self._walk is not None
        return self._walk

    def _shape(self) -> TableSchema:
        assert self._schema is not None
        return self._schema

    @contextmanager
    def asking(self) -> Iterator[None]:
        """Turn an error of the server into a failure with a code."""
        try:
            yield
        except psycopg.Error as error:
            raise failure(error, table=self.table) from error


def conninfo(connection: ConnectionDocument, password: Revealable | None, name: str) -> str:
    """Return the connection string of the destination's session."""
    return postgres.conninfo(connection, password, application_name=name, settings=SETTINGS)
