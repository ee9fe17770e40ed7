"""One database for all tests of sinks, emptied after each: making and dropping one takes longer than most tests."""

from collections.abc import Iterator
from uuid import uuid4

import psycopg
import pytest
from tests.conftest import Database

from pointsman.local import postgres

EMPTY = """DO $$
    DECLARE name text;
    BEGIN
        PERFORM pg_terminate_backend(pid) FROM pg_stat_activity
            WHERE datname = current_database() AND pid <> pg_backend_pid();
        FOR name IN SELECT nspname FROM pg_namespace WHERE nspname NOT LIKE 'pg\\_%' AND nspname <> 'information_schema'
        LOOP
            EXECUTE format('DROP SCHEMA %I CASCADE', name);
        END LOOP;
        CREATE SCHEMA public;
    END
$$"""


@pytest.fixture(scope="session")
def sinks_database(postgres_server: postgres.PostgresServer) -> Iterator[Database]:
    """The database; take `database`, which is empty."""
    name = f"sinks_{uuid4().hex[:10]}"
    with psycopg.connect(postgres_server.conninfo(), autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')
    yield Database(postgres_server, name)
    with psycopg.connect(postgres_server.conninfo(), autocommit=True) as connection:
        connection.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')


@pytest.fixture
def database(sinks_database: Database) -> Database:
    """An empty database."""
    sinks_database.execute(EMPTY)
    return sinks_database
