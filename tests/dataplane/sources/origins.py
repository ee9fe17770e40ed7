"""The systems that sources of the law's suite capture from: one class for each type of the registry."""

from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Protocol
from uuid import uuid4

import psycopg
from tests.conftest import Database
from tests.dataplane.sources.destination import Key, Row

from contracts.backfilling import Backfill
from contracts.slots import SourceLog
from contracts.v2 import ConnectionDocument, PostgresConfig, SnapshotSettings
from dataplane import postgres
from dataplane.sources.port import Source
from dataplane.sources.postgres import PostgresSource

NO_LIMIT = SourceLog()
DEFAULT_SNAPSHOT = SnapshotSettings()
TENANT = "00000000-0000-4000-8000-000000000000"


class Origin(Protocol):
    """One database that can be written to, and sources of one pipeline on it. Statements are plain SQL."""

    sources: Sequence[Source]
    """All that were made; whoever made the origin closes them."""

    def source(self, *tables: str, resyncs: Mapping[str, int] = MappingProxyType({})) -> Source:
        """A new source of the pipeline."""
        ...

    def run(self, *statements: str) -> None:
        """Run the statements in one transaction."""
        ...

    def rows(self, table: str) -> dict[Key, Row]:
        """The rows of a table with the key `id`, in the text form that sources give."""
        ...


class PostgresOrigin:
    """A database of a PostgreSQL server."""

    def __init__(
        self, database: Database, *, user: str = "postgres", failover: bool = False, log: SourceLog = NO_LIMIT
    ) -> None:
        self.database = database
        self.failover = failover
        self.log = log
        self.parsed: Collection[str] | None = None
        self.pipeline_id = str(uuid4())
        self.sources: list[PostgresSource] = []
        self.document = ConnectionDocument(
            tenant=TENANT,
            data_plane="local",
            name="shop",
            epoch=1,
            generation=1,
            config=PostgresConfig(host=database.host, port=database.port, database=database.name, user=user),
        )

    def source(
        self,
        *tables: str,
        resyncs: Mapping[str, int] = MappingProxyType({}),
        snapshot: SnapshotSettings = DEFAULT_SNAPSHOT,
        backfills: Mapping[str, Backfill] = MappingProxyType({}),
        paused: Sequence[str] = (),
    ) -> PostgresSource:
        source = PostgresSource(
            self.document,
            None,
            pipeline_id=self.pipeline_id,
            tables=tables,
            resyncs=resyncs,
            snapshot=snapshot,
            backfills=backfills,
            paused=paused,
            failover=self.failover,
            log=self.log,
            parsed=self.parsed,
        )
        self.sources.append(source)
        return source

    def run(self, *statements: str) -> None:
        with psycopg.connect(self.database.conninfo) as connection:
            for statement in statements:
                connection.execute(statement)  # type: ignore[arg-type]

    def rows(self, table: str) -> dict[Key, Row]:
        conninfo = postgres.conninfo(self.document, None, application_name="test")
        with psycopg.connect(conninfo) as connection:
            columns = connection.execute(
                "SELECT attname FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped"
                " AND attgenerated = '' ORDER BY attnum",
                [table],
            ).fetchall()
            names = [name for (name,) in columns]
            listed = ", ".join(f'"{name}"' for name in names)
            # As the server sends it to any client: neither COPY nor the stream, and not turned into Python's types.
            result = connection.execute(f"SELECT {listed} FROM {table}").pgresult  # type: ignore[arg-type]
        assert result is not None
        rows = [
            [
                None if value is None else value.decode()
                for value in (result.get_value(row, at) for at in range(len(names)))
            ]
            for row in range(result.ntuples)
        ]
        return {(row[names.index("id")],): dict(zip(names, row, strict=True)) for row in rows}

    def slots(self) -> list[tuple[object, ...]]:
        """Name, active and confirmed position of this database's slots."""
        return self.database.execute(
            "SELECT slot_name, active, confirmed_flush_lsn - '0/0', active_pid FROM pg_replication_slots"
            " WHERE database = current_database() ORDER BY slot_name"
        )
