"""A primary and a physical standby of it that keeps copies of failover slots, for tests of a failover."""

import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psycopg
from tests.conftest import FAST, Database

from pointsman.local import postgres, processes

SLOT = "standby_1"
SECONDS_MAX = 30.0


def wait_for(done: Callable[[], bool]) -> None:
    """Wait for a state of a server."""
    end = time.monotonic() + SECONDS_MAX
    while not done():
        assert time.monotonic() < end, "the state did not come"
        time.sleep(0.05)


class Pair:
    """Both servers, started. The primary lets no failover slot go further than the standby has come."""

    def __init__(self, folder: Path) -> None:
        settings = {**postgres.LOGICAL, **FAST, "synchronized_standby_slots": SLOT}
        self.primary = postgres.PostgresServer(folder / "primary", processes.free_port(), settings=settings)
        self.primary.create()
        self.primary.start()
        self.run("SELECT pg_create_physical_replication_slot(%s)", SLOT)
        self.standby = self._standby(folder / "standby")
        self.standby.start()
        wait_for(lambda: self.run("SELECT active FROM pg_replication_slots WHERE slot_name = %s", SLOT) == [(True,)])

    def _standby(self, folder: Path) -> postgres.PostgresServer:
        source = f"host=127.0.0.1 port={self.primary.port} user=postgres dbname=postgres"
        settings = {
            **postgres.LOGICAL,
            **FAST,
            "primary_slot_name": SLOT,
            "sync_replication_slots": "on",
            "hot_standby_feedback": "on",
        }
        server = postgres.PostgresServer(folder, processes.free_port(), settings=settings)
        folder.mkdir()
        server.data.mkdir(mode=0o700)
        if os.geteuid() == 0:
            os.chown(server.data, postgres.NOBODY, postgres.NOBODY)
        program = str(postgres.BINARIES / "pg_basebackup")
        copying = [*postgres.unprivileged(), program, "-D", str(server.data), "-R", "-c", "fast", "--no-sync"]
        subprocess.run([*copying, "-d", source], check=True, capture_output=True, cwd="/")
        return server

    def run(self, sql: str, *parameters: object, on: postgres.PostgresServer | None = None) -> list[tuple[object, ...]]:
        """Run a statement on the primary, or on another of the servers."""
        with psycopg.connect((on or self.primary).conninfo(), autocommit=True) as connection:
            cursor = connection.execute(sql, parameters or None)  # type: ignore[arg-type]
            return cursor.fetchall() if cursor.description else []

    def database(self) -> Database:
        """The database of both, as the primary has it."""
        return Database(self.primary, "postgres")

    def is_synced(self, slot: str) -> bool:
        """Whether the standby has a copy of the slot that survives a promotion."""
        row = self.run(
            "SELECT 1 FROM pg_replication_slots WHERE slot_name = %s AND synced AND NOT temporary",
            slot,
            on=self.standby,
        )
        return row == [(1,)]

    def cut_off_standby(self) -> None:
        """Let the standby receive nothing any more."""
        self.run("ALTER SYSTEM SET primary_conninfo = 'host=127.0.0.1 port=1'", on=self.standby)
        self.run("SELECT pg_reload_conf()", on=self.standby)
        wait_for(lambda: self.run("SELECT 1 FROM pg_stat_wal_receiver", on=self.standby) == [])
        wait_for(lambda: self.run("SELECT active FROM pg_replication_slots WHERE slot_name = %s", SLOT) == [(False,)])

    def promote(self) -> None:
        """Make the standby a primary."""
        assert self.run("SELECT pg_promote()", on=self.standby) == [(True,)]

    def stop(self) -> None:
        """End both."""
        self.standby.stop(immediate=True)
        self.primary.stop(immediate=True)


def copy_files(server: postgres.PostgresServer, to: Path) -> None:
    """Copy the data folder of a server that is stopped, with its owners."""
    shutil.rmtree(to, ignore_errors=True)
    subprocess.run(["cp", "-a", str(server.data), str(to)], check=True)
