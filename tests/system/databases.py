"""Sources and destinations of the system tests: databases of a role of their own, with a password, as customers have."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
from tests.conftest import drop_slots

from pointsman.local.postgres import PostgresServer

ROLE = "pointsman"


@dataclass(frozen=True)
class Side:
    """One database, as its owner sees it."""

    server: PostgresServer
    name: str
    password: str

    @property
    def conninfo(self) -> str:
        return self.server.conninfo(self.name, user=ROLE, password=self.password)

    def connect(self, **options: Any) -> psycopg.Connection[Any]:
        return psycopg.connect(self.conninfo, **options)

    def execute(self, sql: str, *parameters: object) -> list[tuple[Any, ...]]:
        """Run `sql` in a transaction of its own and return its rows, if it gives any."""
        with psycopg.connect(self.conninfo, autocommit=True) as connection:
            cursor = connection.execute(sql, parameters or None)
            return cursor.fetchall() if cursor.description else []

    def drop_slots(self) -> None:
        """Drop this database's slots, once nobody reads from them any more."""
        drop_slots(self.conninfo)

    def content(self, table: str, key: str = "id") -> tuple[int, str] | None:
        """Return the number of rows and a digest over all of them in the key's order; None while there is no table."""
        try:
            [(count, digest)] = self.execute(
                f"SELECT count(*), md5(coalesce(string_agg(md5(t::text), '' ORDER BY {key}), '')) FROM {table} t"
            )
        except psycopg.errors.UndefinedTable:
            return None
        return int(count), str(digest)


@dataclass(frozen=True)
class Pair:
    """A source and a destination, and the YAML that joins them under the name `name`."""

    name: str
    source: Side
    sink: Side
    secret: str
    """The file that holds both sides' password, below the node's secrets folder."""

    def connections(self) -> str:
        return "\n---\n".join(
            f"kind: Connection\nname: {name}\ntype: postgres\n"
            f"config: {{host: 127.0.0.1, port: {side.server.port}, database: {side.name}, user: {ROLE}}}\n"
            f'secrets: {{password: "file:{self.secret}"}}'
            for name, side in ((f"{self.name}-source", self.source), (f"{self.name}-sink", self.sink))
        )

    def pipeline(self, *tables: str, buffer: str = "direct", more: str = "", data_plane: str = "local") -> str:
        return (
            f"kind: Pipeline\nname: {self.name}\ndata_plane: {data_plane}\n"
            f"source: {{connection: {self.name}-source, tables: [{', '.join(tables)}]}}\n"
            f"sink: {{connection: {self.name}-sink}}\nbuffer: {{type: {buffer}}}\n{more}"
        )

    def manifest(self, *tables: str, buffer: str = "direct", more: str = "", data_plane: str = "local") -> str:
        """Return both connections and the pipeline."""
        return self.connections() + "\n---\n" + self.pipeline(*tables, buffer=buffer, more=more, data_plane=data_plane)

    def equal(self, *tables: str, key: str = "id") -> bool:
        """Say whether every table has the same rows on both sides."""
        for table in tables:
            here, there = self.source.content(table, key), self.sink.content(table, key)
            assert here == there, f"{table}: {here} at the source, {there} at the destination"
        return True


@dataclass
class Databases:
    """A server with a role that owns what tests make."""

    server: PostgresServer
    superuser_password: str
    password: str

    def superuser(self, database: str = "postgres") -> psycopg.Connection[Any]:
        return psycopg.connect(self.server.conninfo(database, password=self.superuser_password), autocommit=True)

    def side(self, prefix: str) -> Side:
        """Make a fresh database."""
        name = f"{prefix}_{uuid4().hex[:8]}"
        with self.superuser() as connection:
            connection.execute(f"CREATE DATABASE {name} OWNER {ROLE}")
        return Side(self.server, name, self.password)

    def pair(self, name: str, secrets: Path) -> Pair:
        """Make a source and a destination, and put their password where the node finds it."""
        secret = f"{name}_password"
        secrets.mkdir(parents=True, exist_ok=True)
        path = secrets / secret
        path.touch(mode=0o600)
        path.write_text(self.password + "\n")
        return Pair(name, self.side("shop"), self.side("warehouse"), secret)
