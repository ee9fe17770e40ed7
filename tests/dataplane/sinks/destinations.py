"""A PostgreSQL database as the destination of one pipeline, looked at from outside."""

from collections.abc import Sequence

import psycopg
import pytest
from msgspec import structs
from psycopg import sql
from tests.dataplane.laws.letter_law import Lies
from tests.dataplane.sinks.changes import Row

from contracts.codes import Code
from contracts.v2 import ConnectionDocument, Consistency, PipelineSink, PostgresConfig
from dataplane.batch import TableSchema
from dataplane.sinks.ownership import Ownership
from dataplane.sinks.port import Sink
from dataplane.sinks.postgres import PostgresSink


def send_singly(monkeypatch: pytest.MonkeyPatch, rows_max: int) -> None:
    """Send sets of up to so many rows row by row: 0 sends everything by COPY."""
    for limit in ("INSERTS_SINGLY_MAX", "CHANGES_SINGLY_MAX"):
        monkeypatch.setattr(f"dataplane.sinks.postgres.delivery.{limit}", rows_max)


def divide_always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Divide every set that may be divided, however small."""
    monkeypatch.setattr("dataplane.sinks.postgres.lanes.ROWS_OF_A_LANE_MIN", 0)


class PostgresDestination:
    """`database` is one of conftest's."""

    replaces = True

    def __init__(self, database, *, user: str = "postgres", lanes: int = 1) -> None:  # type: ignore[no-untyped-def]
        self.database = database
        self.user = user
        self._lanes = lanes
        self._made: list[PostgresSink] = []

    def sink(
        self, *, pipeline_id: str = "p", owner: str | Ownership = "node-1", settings: PipelineSink | None = None
    ) -> PostgresSink:
        ownership = Ownership.of(owner) if isinstance(owner, str) else owner
        settings = settings or PipelineSink(connection="warehouse")
        if self._lanes > 1:
            settings = structs.replace(settings, consistency=Consistency.KEY, parallelism=self._lanes)
        made = PostgresSink(self.document(), None, pipeline_id=pipeline_id, ownership=ownership, settings=settings)
        self._made.append(made)
        return self._made[-1]

    def document(self) -> ConnectionDocument:
        """How the destination is reached."""
        return ConnectionDocument(
            tenant="00000000-0000-0000-0000-000000000000",
            data_plane="local",
            name="warehouse",
            epoch=1,
            generation=1,
            config=PostgresConfig(
                host="127.0.0.1", port=self.database.port, database=self.database.name, user=self.user
            ),
        )

    def with_settings(self, settings: PipelineSink) -> PostgresSink:
        return self.sink(settings=settings)

    def refuse(self, of: TableSchema, name: str | None) -> None:
        """Add a constraint to the table, or take it away."""
        self.database.execute(f"ALTER TABLE {of.name} DROP CONSTRAINT IF EXISTS taste")
        if name is not None:
            self.database.execute(f"ALTER TABLE {of.name} ADD CONSTRAINT taste CHECK (name <> '{name}')")

    def letters(self) -> list[Lies]:
        """The letters of every pipeline."""
        found = self.database.execute("SELECT op, key->>'id', code FROM pointsman.dead_letters ORDER BY id")
        return [Lies(op, key, Code(code)) for op, key, code in found]

    async def close(self) -> None:
        """Close every sink that was handed out."""
        for sink in self._made:
            await sink.close()

    def rows(self, of: TableSchema, columns: Sequence[str] | None = None) -> list[Row]:
        names = columns or [column.name for column in of.columns]
        query = sql.SQL("SELECT {} FROM {} ORDER BY {}").format(
            sql.SQL(", ").join(sql.SQL("{}::text").format(sql.Identifier(name)) for name in names),
            sql.Identifier(of.schema, of.name),
            sql.SQL(", ").join(map(sql.Identifier, of.key)),
        )
        with psycopg.connect(self.database.conninfo, autocommit=True) as connection:
            return [dict(zip(names, row, strict=True)) for row in connection.execute(query).fetchall()]

    async def crash(self, sink: Sink) -> None:
        assert isinstance(sink, PostgresSink)
        assert sink._session is not None
        sink._session.connection.pgconn.finish()
        for lane in sink._lanes._lanes if sink._lanes is not None else ():
            lane.session.connection.pgconn.finish()
