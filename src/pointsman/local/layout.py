"""The folder of `pointsman up`: what lies where, the ports that were chosen for it, and files written whole or not at all.

    DIR/pointsman.json   while all is ready: addresses, key files, components with their pids; for programs and scripts
    DIR/keys/            secrets of the control plane and of this machine's owner; nothing of it is ever printed
    DIR/secrets/         what `file:NAME` in a connection refers to; the nodes read it, nothing else does
    DIR/postgres/ hub/ control-plane/ leaf/ nodes/   one folder for each component
    DIR/logs/            what the components print
    DIR/run/             ports, orders and states of this program

Called by `up`, by the commands that act on single components, and by the demo.
"""

import json
import os
import random
import socket
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

STATE_FILE = "pointsman.json"
PORTS_FROM, PORTS_TO = 20_000, 31_999
"""Below the ranges from which systems take the ports of outgoing connections: a port of ours that is free for a moment
must not become somebody's other end, least of all that of the client that is dialling it."""
PORT_TRIES_MAX = 200
LOG_BYTES_MAX = 16 << 20
PRIVATE_FILE = 0o600
PRIVATE_FOLDER = 0o700


@dataclass(frozen=True)
class Layout:
    """The paths below one folder. Nothing is made until `prepare`."""

    root: Path

    @cached_property
    def state_file(self) -> Path:
        """What programs read: there exactly while everything is up."""
        return self.root / STATE_FILE

    @cached_property
    def keys(self) -> Path:
        """Secrets of the control plane and of this machine's owner."""
        return self.root / "keys"

    @cached_property
    def secrets(self) -> Path:
        """What the nodes resolve `file:` below."""
        return self.root / "secrets"

    @cached_property
    def run(self) -> Path:
        """Ports, orders and states of `up`."""
        return self.root / "run"

    @cached_property
    def api_key_file(self) -> Path:
        """The tenant's API key."""
        return self.keys / "api.key"

    @cached_property
    def operator_key_file(self) -> Path:
        """The operator's key: it makes tenants."""
        return self.keys / "operator.key"

    @cached_property
    def settings_file(self) -> Path:
        """The control plane's settings."""
        return self.root / "control-plane" / "settings.json"

    def log(self, component: str) -> Path:
        """What a component prints."""
        return self.root / "logs" / f"{component}.log"

    def node(self, name: str) -> Path:
        """A node's folder."""
        return self.root / "nodes" / name

    def prepare(self) -> None:
        """Make the folders, for their owner alone."""
        for folder in (self.root, self.keys, self.secrets, self.run, self.root / "logs", self.root / "nodes"):
            folder.mkdir(parents=True, exist_ok=True, mode=PRIVATE_FOLDER)
        self.settings_file.parent.mkdir(exist_ok=True, mode=PRIVATE_FOLDER)

    def trim_log(self, component: str) -> Path:
        """Move a log aside that has grown too large; one older piece is kept. Return the log's path."""
        log = self.log(component)
        if log.exists() and log.stat().st_size > LOG_BYTES_MAX:
            log.replace(log.with_suffix(".log.1"))
        return log


def write_whole(path: Path, text: str, *, mode: int = PRIVATE_FILE) -> None:
    """Replace a file at once: whoever reads it sees the old text or the new one, also after a crash in between."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.new")
    handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(handle, "w") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    draft.replace(path)


def write_json(path: Path, value: Any) -> None:
    """Replace a file by `value` as JSON."""
    write_whole(path, json.dumps(value, indent=2) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Return what a JSON file holds, or nothing if it is not there."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


class Ports:
    """The ports of a folder's components: chosen once and kept, so that addresses in other places stay right."""

    def __init__(self, layout: Layout) -> None:
        self._file = layout.run / "ports.json"
        self._chosen: dict[str, int] = {name: int(port) for name, port in read_json(self._file).items()}

    def get(self, name: str) -> int:
        """Return the port of `name`, chosen now if there is none yet."""
        if name not in self._chosen:
            self.choose(name)
        return self._chosen[name]

    def choose(self, name: str) -> int:
        """Choose another port for `name` and keep it."""
        self._chosen[name] = steady_port(avoid=frozenset(self._chosen.values()))
        write_json(self._file, self._chosen)
        return self._chosen[name]

    def replace_if_taken(self, name: str) -> bool:
        """Choose another port when somebody listens on the one of `name`. Return whether that was so."""
        if name in self._chosen and not is_free(self._chosen[name]):
            self.choose(name)
            return True
        self.get(name)
        return False


def is_free(port: int) -> bool:
    """Say whether a server could listen on this port of 127.0.0.1 now."""
    with socket.socket() as probe:
        # As servers do: connections of an earlier life that linger are no hindrance.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def steady_port(*, avoid: frozenset[int] = frozenset()) -> int:
    """Return a free port that the system does not give to outgoing connections.

    Raises:
        RuntimeError: none was found.
    """
    for _ in range(PORT_TRIES_MAX):
        port = random.randint(PORTS_FROM, PORTS_TO)  # noqa: S311
        if port not in avoid and is_free(port):
            return port
    raise RuntimeError(f"no free port between {PORTS_FROM} and {PORTS_TO}")
