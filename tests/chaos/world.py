"""The whole product with real processes, wired through proxies: what a run of chaos is done to.

`pointsman up` makes everything and is then killed, so that nothing but this module starts and ends its components: it
keeps the command of each. Between each pair of processes stands a proxy: workers reach source and destination through
one each, every node reaches the leaf through one of its own, and the leaf the hub. PostgreSQL runs with fsync.
"""

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import psutil
import psycopg
from tests.chaos.lanes import LANES as LANES_COUNT
from tests.chaos.lanes import LanesLoad
from tests.chaos.proxy import Network, Proxy
from tests.chaos.refusals import RefusingLoad
from tests.chaos.schedule import AGENTS, LANES, PIPELINES, REFUSING
from tests.chaos.workload import Load
from tests.system.stack import Stack

from dataplane import config
from pointsman.local import postgres, processes
from pointsman.local.workers import worker_pids

ROLE = "pointsman"
LOADS: dict[str, type[Load]] = {**dict.fromkeys(PIPELINES, Load), REFUSING: RefusingLoad, LANES: LanesLoad}
_LETTERS = ", on_refused: dead_letter, dead_letters_max: 100000"
_SINK_SETTINGS = {REFUSING: _LETTERS, LANES: f"{_LETTERS}, consistency: key, parallelism: {LANES_COUNT}"}
_SOURCE_SETTINGS = {LANES: ", snapshot: {chunk_rows: 1000}"}
DISK_BYTES = 512 << 20
NODE_DISK_BYTES = 64 << 20
READY_SECONDS_MAX = 120.0
LOG_TAIL = 6_000
FAKETIME = tuple(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))


@dataclass
class Component:
    """A process that is started with the same command each time."""

    name: str
    command: list[str]
    log: Path
    folder: str
    environment: dict[str, str]
    process: psutil.Process | None = None

    def start(self) -> None:
        started = processes.start(self.command, log=self.log, environment=self.environment, folder=Path(self.folder))
        self.process = psutil.Process(started.pid)

    def kill(self) -> None:
        if self.process is not None:
            with contextlib.suppress(psutil.NoSuchProcess):
                self.process.kill()
            processes.wait_until_gone(self.process.pid, seconds_max=10)
            self.process = None


@dataclass
class World:
    """Everything. `start` brings it up, `close` leaves nothing behind."""

    seed: int
    folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="pm-chaos-")))
    notes: list[str] = field(default_factory=list)
    """What this machine cannot do."""

    def __post_init__(self) -> None:
        self.stack = Stack(self.folder / "up", "--nodes", str(len(AGENTS)))
        self.network = Network()
        self.servers: dict[str, postgres.PostgresServer] = {}
        self.ways: dict[str, Proxy] = {}
        self.components: dict[str, Component] = {}
        self.loads: dict[str, Load] = {}
        self.mounted: dict[str, Path] = {}
        self._password = secrets.token_hex(12)
        self._state: dict[str, Any] = {}

    # ---- the beginning --------------------------------------------------------------------------------------------

    def start(self) -> None:
        self.folder.chmod(0o755)
        for side in ("source", "sink"):
            server = self.servers[side] = postgres.PostgresServer(
                self.folder / side, processes.free_port(), settings={**postgres.LOGICAL, "log_min_messages": "warning"}
            )
            server.create()
            server.start()
            self.ways[side] = self.network.proxy(server.port)
            with psycopg.connect(server.conninfo(), autocommit=True) as connection:
                connection.execute(f"CREATE ROLE {ROLE} LOGIN REPLICATION")
                for name in LOADS:
                    connection.execute(f"CREATE DATABASE {side}_{name} OWNER {ROLE}")
        self.stack.start()
        self._state = self.stack.state
        self._take_over()
        for name in LOADS:
            source, sink = (self.servers[side].conninfo(f"{side}_{name}", user=ROLE) for side in ("source", "sink"))
            load = self.loads[name] = LOADS[name](name, source, sink, self.seed)
            with psycopg.connect(load.source, autocommit=True) as connection:
                connection.execute(load.schema)
            self.apply(name, expect=0)
        for name, load in self.loads.items():
            self.stack.wait(name, seconds=int(READY_SECONDS_MAX))
            with psycopg.connect(load.sink, autocommit=True) as connection:
                connection.execute("SET client_min_messages = warning")
                connection.execute(load.watch)

    def _take_over(self) -> None:
        """Kill `up`, and start leaf and nodes again with proxies between them."""
        self.stack.kill()
        ports = json.loads((self.stack.folder / "run" / "ports.json").read_bytes())
        for found in self._state["components"]:
            process = psutil.Process(found["pid"])
            # The command line is that of what `setpriv` became.
            user = postgres.unprivileged() if found["name"] == "postgres" else []
            self.components[found["name"]] = Component(
                found["name"], user + process.cmdline(), Path(found["log"]), process.cwd(), _own(process), process
            )
        self.ways["hub"] = self.network.proxy(ports["hub-leaf"])
        for name in AGENTS:
            self.kill_machine(name)
        leaf = self.components["leaf"]
        leaf.kill()
        leaf_folder = self.stack.folder / "leaf"
        file = leaf_folder / "leaf.conf"
        file.write_text(file.read_text().replace(f':{ports["hub-leaf"]}"', f':{self.ways["hub"].port}"'))
        self._mount("leaf", leaf_folder, DISK_BYTES)
        leaf.start()
        for name in AGENTS:
            way = self.ways[f"leaf-of-{name}"] = self.network.proxy(ports["leaf"])
            node = self.stack.folder / "nodes" / name
            known = config.read(node)
            config.write(node, msgspec.structs.replace(known, leaf_url=f"nats://127.0.0.1:{way.port}"))
            self._mount(name, node, NODE_DISK_BYTES)
            component = self.components[name]
            if FAKETIME:
                clock = self.clock(name)
                clock.write_text("+0\n")
                component.environment |= {
                    "LD_PRELOAD": str(FAKETIME[0]),
                    "FAKETIME_TIMESTAMP_FILE": str(clock),
                    "FAKETIME_DONT_FAKE_MONOTONIC": "1",
                    "FAKETIME_CACHE_DURATION": "1",
                }
            component.start()
        if not FAKETIME:
            self.notes.append("clock jumps are left out: libfaketime is not installed (Debian: faketime)")
        if not self.mounted:
            self.notes.append("disks are not filled but limited (RLIMIT_FSIZE): mounting a tmpfs needs root")

    def _mount(self, name: str, folder: Path, size: int) -> None:
        """Move a folder onto a small disk of its own, where that is allowed."""
        if os.geteuid() != 0:
            return
        aside = folder.with_name(f".{folder.name}.aside")
        folder.rename(aside)
        folder.mkdir(mode=0o700)
        command = ["mount", "-t", "tmpfs", "-o", f"size={size},mode=0700", "tmpfs", str(folder)]
        if subprocess.run(command, check=False, capture_output=True).returncode == 0:
            self.mounted[name] = folder
            shutil.copytree(aside, folder, dirs_exist_ok=True, symlinks=True)
            shutil.rmtree(aside)
        else:
            folder.rmdir()
            aside.rename(folder)

    # ---- commands -------------------------------------------------------------------------------------------------

    def manifest(self, name: str) -> str:
        load = self.loads[name]
        added = [table for table in tuple(load.added) if table not in load.away]
        tables = ", ".join(f"public.{table}" for table in (*load.tables, *added))
        sink = f"{name}-sink" + _SINK_SETTINGS.get(name, "")
        source = _SOURCE_SETTINGS.get(name, "")
        buffer = name if name in PIPELINES else "direct"
        connections = "\n---\n".join(
            f"kind: Connection\nname: {name}-{side}\ntype: postgres\n"
            f"config: {{host: 127.0.0.1, port: {self.ways[side].port}, database: {side}_{name}, user: {ROLE}}}"
            for side in ("source", "sink")
        )
        return (
            f"{connections}\n---\nkind: Pipeline\nname: {name}\ndata_plane: local\n"
            f"source: {{connection: {name}-source, tables: [{tables}]{source}}}\nsink: {{connection: {sink}}}\n"
            f"buffer: {{type: {buffer}}}\n"
        )

    def apply(self, name: str, *, expect: int | None = None) -> int:
        return self.stack.apply(self.manifest(name), expect=expect).code

    def command(self, *arguments: str) -> int:
        """Run a command of the CLI; with the control plane away it fails, as it should."""
        return self.stack.cli(*arguments, expect=None).code

    def replay(self, name: str) -> int:
        """Replay a pipeline's dead letters, on the customer's side: no control plane is asked."""
        folder = str(self.stack.folder / "nodes" / AGENTS[0])
        return self.command("node", "dlq", "replay", name, "--folder", folder)

    # ---- processes --------------------------------------------------------------------------------------------------

    def workers(self) -> list[psutil.Process]:
        """Return every worker that lives, in the order of its node's and its own name."""
        found = []
        for node in AGENTS:
            for _, pid in sorted(worker_pids(self.stack.folder / "nodes" / node).items()):
                with contextlib.suppress(psutil.NoSuchProcess):
                    found.append(psutil.Process(pid))
        return found

    def machine(self, node: str) -> list[psutil.Process]:
        """Return a node's agent, if it lives, and its workers."""
        found = []
        agent = self.components[node].process
        pids = list(worker_pids(self.stack.folder / "nodes" / node).values())
        for pid in ([agent.pid] if agent is not None else []) + pids:
            with contextlib.suppress(psutil.NoSuchProcess):
                found.append(psutil.Process(pid))
        return found

    def kill_machine(self, node: str) -> None:
        """Kill a node's agent and then its workers, as a power loss would."""
        self.components[node].kill()
        for process in self.machine(node):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()

    def clock(self, node: str) -> Path:
        """The file that says how far a node's clock is off."""
        return self.folder / f"clock-of-{node}"

    def revive(self) -> None:
        """Start every component that does not run: also what ended by itself, as a service manager would."""
        for component in self.components.values():
            alive = component.process is not None and processes.is_running(component.process.pid)
            if component.process is not None and not alive:
                component.start()

    # ---- the end ------------------------------------------------------------------------------------------------------

    def log_of_workers(self) -> str:
        paths = [
            *sorted(self.stack.folder.glob("nodes/*/run/*.log")),
            *sorted(self.stack.folder.glob("logs/node*.log")),
        ]
        return "\n".join(f"== {path}\n" + path.read_text(errors="replace")[-LOG_TAIL:] for path in paths)

    def close(self) -> None:
        for load in self.loads.values():
            load.stopped.set()
        for name in AGENTS:
            if name in self.components:
                for process in self.machine(name):
                    with contextlib.suppress(psutil.NoSuchProcess):
                        process.send_signal(signal.SIGCONT)
                self.kill_machine(name)
        for component in self.components.values():
            component.kill()
        self.stack.end()
        self.network.close()
        for server in self.servers.values():
            server.stop(immediate=True)
        for folder in self.mounted.values():
            subprocess.run(["umount", str(folder)], check=False, capture_output=True)
        shutil.rmtree(self.folder, ignore_errors=True)


def _own(process: psutil.Process) -> dict[str, str]:
    """Return what a process has in its environment and we do not."""
    return {name: value for name, value in process.environ().items() if os.environ.get(name) != value}


def listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0
