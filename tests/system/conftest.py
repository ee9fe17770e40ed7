"""One `pointsman up` for each module of system tests, and one PostgreSQL server with passwords for all of them."""

import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.conftest import BINARIES
from tests.system.databases import ROLE, Databases, Pair
from tests.system.stack import Stack

from pointsman.local import postgres, processes

FAST = {"fsync": "off", "full_page_writes": "off", "max_wal_size": "4GB", "max_connections": "200"}


@pytest.fixture(scope="session")
def databases() -> Iterator[Databases]:
    """A PostgreSQL that asks for passwords, with wal_level=logical."""
    path = Path(tempfile.mkdtemp(prefix="pm-sys-pg-"))
    settings = {**postgres.LOGICAL, **FAST}
    server = postgres.PostgresServer(path, processes.free_port(), settings=settings, binaries=BINARIES)
    made = Databases(server, f"super-{secrets.token_hex(16)}", f"canary-{secrets.token_hex(16)}")
    server.create(password=made.superuser_password)
    server.start()
    with made.superuser() as connection:
        connection.execute(f"CREATE ROLE {ROLE} LOGIN REPLICATION PASSWORD '{made.password}'")
    yield made
    server.stop(immediate=True)
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    """A running `pointsman up` with one node, shared by the module's tests."""
    path = Path(tempfile.mkdtemp(prefix="pm-up-"))
    running = Stack(path / "up")
    try:
        running.start()
        yield running
    finally:
        running.end()
        shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="module")
def make_pair(stack: Stack, databases: Databases) -> Callable[[str], Pair]:
    """Return a function that makes a source and a destination under a name."""
    return lambda name: databases.pair(name, stack.secrets)
