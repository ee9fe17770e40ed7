"""The demo's own PostgreSQL servers: the shop, and the warehouse that begins empty.

`up` runs them with everything else, because `run/servers.json` names them. Each asks for a password; that of the
pipeline's user lies where the node looks for secrets, as a customer would put it there.
"""

import secrets
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import psycopg
from psycopg import sql

from pointsman.local.founding import read_secret
from pointsman.local.layout import Layout, Ports, write_json, write_whole
from pointsman.local.postgres import PostgresServer

SERVERS = ("shop", "warehouse")
USER = "pointsman"
PASSWORD_BYTES = 24


@dataclass(frozen=True)
class DemoDatabases:
    """Both servers, each with one database of its own name."""

    layout: Layout

    def make_servers(self) -> None:
        """Make the servers' folders and passwords, and let `up` know of them. They do not run yet."""
        with ThreadPoolExecutor() as pool:
            list(pool.map(self._make_server, SERVERS))
        write_json(self.layout.run / "servers.json", {name: f"demo/{name}" for name in SERVERS})

    def _make_server(self, name: str) -> None:
        password = secrets.token_urlsafe(PASSWORD_BYTES)
        write_whole(self.layout.keys / f"{name}.password", password + "\n")
        write_whole(self.layout.secrets / f"{name}_password", secrets.token_urlsafe(PASSWORD_BYTES) + "\n")
        self._server(name, port=0).create(password=password)

    def make(self) -> None:
        """Make user and database on each running server.

        Raises:
            psycopg.Error: a server refuses.
        """
        for name in SERVERS:
            administrator = self._server(name).conninfo(password=read_secret(self.layout.keys / f"{name}.password"))
            with psycopg.connect(administrator, autocommit=True) as connection:
                password = self._password(name).encode()
                encrypted = connection.pgconn.encrypt_password(password, USER.encode(), b"scram-sha-256").decode()
                user = sql.Identifier(USER)
                role = sql.SQL("CREATE ROLE {} LOGIN REPLICATION PASSWORD {}")
                connection.execute(role.format(user, sql.Literal(encrypted)))
                connection.execute(sql.SQL("CREATE DATABASE {} OWNER {}").format(sql.Identifier(name), user))

    def port(self, name: str) -> int:
        """Return the port that `up` chose for a server."""
        return Ports(self.layout).get(name)

    def conninfo(self, name: str) -> str:
        """Return the connection string of a server's database, for the pipeline's user."""
        return self._server(name).conninfo(name, user=USER, password=self._password(name))

    def address(self, name: str) -> str:
        """Return how a person reaches a server's database."""
        password = self.layout.secrets / f"{name}_password"
        return f"127.0.0.1:{self.port(name)}, database {name}, user {USER}, password in {password}"

    def _password(self, name: str) -> str:
        return read_secret(self.layout.secrets / f"{name}_password")

    def _server(self, name: str, *, port: int | None = None) -> PostgresServer:
        return PostgresServer(self.layout.root / "demo" / name, self.port(name) if port is None else port)
