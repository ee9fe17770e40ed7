"""The components of one machine: how each is configured, started, asked whether it is ready, and stopped.

Configurations are written anew at each start, from the same templates and settings as anywhere else; only ports, keys
and what nodes made of themselves at joining are kept. Nothing here waits or decides when to start.
"""

import hashlib
import socket
import sys
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from signal import SIGINT, SIGTERM

import httpx

from pointsman.local.layout import Layout, Ports, read_json, write_json, write_whole
from pointsman.local.nats import nats_server
from pointsman.local.postgres import LOGICAL, PostgresServer
from pointsman.local.supervision import Component

DATA_PLANE = "local"
TENANT = "local"
POSTGRES, HUB, CONTROL_PLANE, LEAF = "postgres", "hub", "control-plane", "leaf"
DATABASE = "controlplane"
CONNECT_SECONDS = 0.5

# Our own isolated mode: a module of the folder that we happen to run in must never be imported instead of a library's.
_PYTHON = (sys.executable, "-P")


def node_name(number: int) -> str:
    """Return the name of the nth node, from 1."""
    return f"node-{number}"


def listens(port: int) -> bool:
    """Say whether somebody accepts connections on this port of 127.0.0.1."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=CONNECT_SECONDS):
            return True
    except OSError:
        return False


@dataclass(frozen=True)
class Parts:
    """Makes the components of one folder."""

    layout: Layout
    ports: Ports

    # ---- PostgreSQL: the control plane's own ----

    def postgres_server(self) -> PostgresServer:
        """Return the control plane's own server."""
        settings = {"max_connections": "60", "shared_buffers": "64MB"}
        return PostgresServer(self.layout.root / POSTGRES, self.ports.get(POSTGRES), settings=settings)

    def postgres(self) -> Component:
        """Return PostgreSQL as a component. The server's data folder exists."""
        return self._server(POSTGRES, self.postgres_server(), rank=0)

    def extra_server(self, name: str, folder: Path) -> Component:
        """Return another PostgreSQL server, one that changes can be captured from: the demo's."""
        return self._server(name, PostgresServer(folder, self.ports.get(name), settings=LOGICAL), rank=1)

    def _server(self, name: str, server: PostgresServer, *, rank: int) -> Component:
        return Component(
            name,
            tuple(server.command()),
            ("-D", str(server.data)),
            self.layout.log(name),
            server.accepts_connections,
            rank,
            url=f"postgresql://127.0.0.1:{server.port}",
            ask=SIGINT,
        )

    # ---- The hub ----

    def hub(self) -> Component:
        """Write the hub's configuration and return the hub."""
        from controlplane.channel import hub, keys
        from controlplane.channel.accounts import Accounts

        folder = self.layout.root / HUB
        folder.mkdir(exist_ok=True, mode=0o700)
        if self.certificates:
            keys.hub_certificate(self.layout.keys, self.hub_leaf_url)
        text = hub.render(
            Accounts(keys.read(self.layout.keys)),
            folder=folder,
            port=self.ports.get(HUB),
            leaf_port=self.ports.get("hub-leaf"),
            leaf_tls=hub.own_tls(self.layout.keys) if self.certificates else None,
        )
        file = folder / hub.TEMPLATE
        write_whole(file, text)
        port = self.ports.get(HUB)
        return self._nats(HUB, file, port, rank=2)

    def _nats(self, name: str, file: Path, port: int, *, rank: int) -> Component:
        return Component(
            name,
            (nats_server(), "-c", str(file)),
            ("-c", str(file)),
            self.layout.log(name),
            lambda: listens(port),
            rank,
            url=f"nats://127.0.0.1:{port}",
            ask=SIGTERM,
        )

    @cached_property
    def certificates(self) -> bool:
        """Whether the leaf links with a certificate: always but in a folder whose leaf was made before there were any."""
        from dataplane.link import certificate, leaf

        folder = self.layout.root / LEAF
        if not (folder / leaf.CREDENTIALS).exists() or (folder / certificate.CERTIFICATE).exists():
            return True
        # Not without, only because a file was lost.
        return read_json(self.layout.settings_file).get("hub", {}).get("leaf_certificates") is True

    @property
    def hub_leaf_url(self) -> str:
        """The address at which leaves reach the hub."""
        return f"{'tls' if self.certificates else 'nats'}://127.0.0.1:{self.ports.get('hub-leaf')}"

    # ---- The control plane ----

    @property
    def api_url(self) -> str:
        """The API's address."""
        return f"http://127.0.0.1:{self.ports.get('api')}"

    def control_plane(self) -> Component:
        """Write the control plane's settings and return the control plane."""
        layout = self.layout
        operator = hashlib.sha256(layout.operator_key_file.read_bytes().strip()).hexdigest()
        write_json(
            layout.settings_file,
            {
                "api": {"host": "127.0.0.1", "port": self.ports.get("api")},
                "database": {
                    "host": "127.0.0.1",
                    "port": self.ports.get(POSTGRES),
                    "name": DATABASE,
                    "user": DATABASE,
                    "password_file": str(layout.keys / "database.password"),
                },
                "hub": {
                    "url": f"nats://127.0.0.1:{self.ports.get(HUB)}",
                    "leaf_url": self.hub_leaf_url,
                    "leaf_certificates": self.certificates,
                },
                "keys_folder": str(layout.keys),
                "operator_key_sha256": operator,
            },
        )
        arguments = ("controlplane", "--settings", str(layout.settings_file))
        url = self.api_url
        return Component(
            CONTROL_PLANE,
            (*_PYTHON, "-m", *arguments),
            arguments,
            layout.log(CONTROL_PLANE),
            lambda: answers(f"{url}/livez"),
            rank=3,
            url=url,
        )

    # ---- The customer's side ----

    def leaf(self) -> Component:
        """Write the leaf's configuration and return the leaf. Its folder was made when the first node joined."""
        from contracts.keys import KeyPair
        from dataplane.link import leaf
        from dataplane.link.enrolment import key_in

        folder = self.layout.root / LEAF
        port = self.ports.get(LEAF)
        text = leaf.render(
            folder=folder,
            data_plane=DATA_PLANE,
            ctl_key=KeyPair((folder / leaf.CTL_SEED).read_text()).public,
            data_key=KeyPair((folder / leaf.DATA_SEED).read_text()).public,
            hub_url=self.hub_leaf_url,
            port=port,
            tls=leaf.own_tls(folder, self.hub_leaf_url, always=self.certificates),
            reload_key=key_in(folder / leaf.RELOAD_SEED).public,
        )
        write_whole(folder / leaf.CONFIGURATION, text)
        made = self._nats(LEAF, folder / leaf.CONFIGURATION, port, rank=4)
        return replace(made, before_start=lambda: leaf.settle(folder))

    @property
    def leaf_url(self) -> str:
        """The leaf's address for nodes and workers."""
        return f"nats://127.0.0.1:{self.ports.get(LEAF)}"

    def node(self, name: str) -> Component:
        """Point the node's configuration at this machine's ports and return the node. It has joined."""
        import msgspec

        from dataplane import config

        folder = self.layout.node(name)
        known = config.read(folder)
        metrics = self.ports.get(f"{name}-metrics")
        config.write(folder, msgspec.structs.replace(known, leaf_url=self.leaf_url, metrics_port=metrics))
        arguments = ("dataplane.node", "--dir", str(folder))
        return Component(
            name,
            (*_PYTHON, "-m", *arguments),
            arguments,
            self.layout.log(name),
            lambda: listens(metrics),
            rank=5,
            url=f"http://127.0.0.1:{metrics}/metrics",
            # With SIGINT the agent ends its workers too and gives its leases back.
            ask=SIGINT,
            workers_of=folder,
        )


def answers(url: str) -> bool:
    """Say whether a URL of this machine answers with success."""
    try:
        return httpx.get(url, timeout=1.0, trust_env=False).is_success
    except httpx.HTTPError:
        return False
