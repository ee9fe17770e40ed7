"""A data plane without a control plane: a real leaf, real node agents, and a hand that signs and publishes documents."""

import asyncio
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import msgspec
import nats
import psycopg
from nats.aio.client import Client
from tests.dataplane.node.documents import TENANT

from contracts import subjects
from contracts.envelope import Purpose, digest, sign
from contracts.keys import KeyPair, Role
from contracts.v2 import (
    ConnectionDocument,
    Document,
    IndexDocument,
    IndexEntry,
    Kind,
    PipelineDocument,
    TrustDocument,
)
from dataplane import config, policy
from dataplane.config import NodeConfig
from dataplane.link import leaf
from dataplane.node import process
from dataplane.node.process import RunFolder
from pointsman.local import processes
from pointsman.local.nats import nats_server

PLANE = "local"


class Leaf:
    """A leaf with the product's own configuration and no hub; its local user may also publish documents here."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "leaf"
        self.folder.mkdir(parents=True)
        self.port = processes.free_port()
        self.url = f"nats://127.0.0.1:{self.port}"
        self.seeds: dict[str, Path] = {}
        for name in ("ctl", "data"):
            self.seeds[name] = self.folder / f"{name}.nk"
            self.seeds[name].write_text(KeyPair.generate(Role.USER).seed)
        keys = {name: KeyPair(path.read_text()).public for name, path in self.seeds.items()}
        text = leaf.render(
            folder=self.folder,
            data_plane=PLANE,
            ctl_key=keys["ctl"],
            data_key=keys["data"],
            hub_url=None,
            port=self.port,
        )
        self.file = self.folder / "leaf.conf"
        self.file.write_text(text.replace('"up.v1.', '"desired.>", "up.v1.').replace("_INBOX.local.>", "_INBOX.>"))
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.process = processes.start([nats_server(), "-c", str(self.file)], log=self.folder / "nats.log")
        end = time.monotonic() + 10
        while time.monotonic() < end:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.02)
        raise AssertionError((self.folder / "nats.log").read_text()[-2000:])

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    async def connect(self, **options: object) -> Client:
        async def quiet(_: Exception) -> None:
            return None

        settings = {"allow_reconnect": False, "error_cb": quiet, "connect_timeout": 2, **options}
        return await nats.connect(self.url, nkeys_seed=str(self.seeds["ctl"]), **settings)  # type: ignore[arg-type]


class Plane:
    """One data plane: its leaf, its keys, its documents, its nodes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.leaf = Leaf(folder)
        self.root, self.signer = KeyPair.generate(Role.ACCOUNT), KeyPair.generate(Role.ACCOUNT)
        self.secrets = folder / "secrets"
        self.secrets.mkdir()
        self.documents: dict[tuple[Kind, str], Document] = {}
        self.revision = 0
        self.nodes: list[Node] = []

    def node(self, name: str = "node-1", *, contract: int = 2, leaf_port: int | None = None) -> "Node":
        """Make a node's folder; `leaf_port` is the way that it takes to the leaf."""
        node = Node(self, name, contract, f"nats://127.0.0.1:{leaf_port}" if leaf_port else self.leaf.url)
        self.nodes.append(node)
        return node

    async def publish(self, *documents: Document, without: tuple[str, ...] = ()) -> None:
        """Publish changed documents and a new index; `without` are names that the index forgets."""
        for document in documents:
            self.documents[_kind(document), document.name] = document
        self.documents = {place: each for place, each in self.documents.items() if place[1] not in without}
        self.revision += 1
        index, envelopes = self._sealed()
        client = await self.leaf.connect()
        end = time.monotonic() + 15
        while not all(node.index() == index.decode() for node in self.nodes if node.process is not None):
            # Again and again: an agent that was not connected yet has missed it, and has nobody to ask.
            for subject, envelope in envelopes:
                await client.publish(subject, envelope)
            await client.flush()
            await asyncio.sleep(0.05)
            assert time.monotonic() < end, "the agents did not take the documents"
        await client.close()

    def _sealed(self) -> tuple[bytes, list[tuple[str, bytes]]]:
        """Return the index, and everything to be published, each with its subject."""
        trust = TrustDocument(
            tenant=TENANT, data_plane=PLANE, name="trust", epoch=1, generation=1, keys=[self.signer.public]
        )
        index = IndexDocument(
            tenant=TENANT,
            data_plane=PLANE,
            name="index",
            epoch=1,
            generation=self.revision,
            revision=self.revision,
            entries=[
                IndexEntry(kind=kind, name=name, generation=each.generation, digest=digest(msgspec.json.encode(each)))
                for (kind, name), each in self.documents.items()
            ],
        )
        sealed_index = self._signed(index)
        return sealed_index, [
            (_subject(Kind.TRUST, "trust"), sign(trust, self.root, contract=2, purpose=Purpose.DOCUMENT)),
            *((_subject(kind, name), self._signed(each)) for (kind, name), each in self.documents.items()),
            (_subject(Kind.INDEX, "index"), sealed_index),
        ]

    def _signed(self, document: Document) -> bytes:
        return sign(document, self.signer, contract=2, purpose=Purpose.DOCUMENT)

    def close(self) -> None:
        for node in self.nodes:
            node.kill()
            node.stop_workers()
        self.leaf.kill()


class Node:
    """One node's folder and agent process."""

    def __init__(self, plane: Plane, name: str, contract: int, leaf_url: str) -> None:
        self.plane = plane
        self.name = name
        self.folder = plane.folder / name
        self.folder.mkdir()
        self.metrics_port = processes.free_port()
        seed = self.folder / "node.nk"
        seed.write_text(KeyPair.generate(Role.USER).seed)
        self.config = NodeConfig(
            tenant=TENANT,
            account=plane.root.public,
            data_plane=PLANE,
            node=name,
            root_key=plane.root.public,
            seed_file=str(seed),
            leaf_url=leaf_url,
            ctl_seed_file=str(plane.leaf.seeds["ctl"]),
            data_seed_file=str(plane.leaf.seeds["data"]),
            secrets_folder=str(plane.secrets),
            contract_max=contract,
            metrics_port=self.metrics_port,
        )
        config.write(self.folder, self.config)
        (self.folder / policy.FILE_NAME).write_text(policy.LOCAL)
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "dataplane.node", "--dir", str(self.folder)]
        self.process = processes.start(command, log=self.folder / "agent.log")

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        """Ask the agent to end and return its exit code."""
        assert self.process is not None
        self.process.send_signal(how)
        code = self.process.wait(20)
        self.process = None
        return code

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def stop_workers(self) -> int:
        command = [sys.executable, "-m", "dataplane.node", "stop-workers", "--dir", str(self.folder)]
        return subprocess.run(command, check=False, capture_output=True).returncode

    def index(self) -> str | None:
        """Return the envelope of the index that the agent acts on."""
        try:
            visible = (self.folder / "documents" / "visible.json").read_bytes()
        except FileNotFoundError:
            return None
        envelope: str | None = msgspec.json.decode(visible)["body"]["index"]
        return envelope

    def workers(self) -> dict[str, int]:
        """Return the living workers' pids."""
        run = RunFolder(self.folder / "run")
        return {str(key): process.pid_of(run.files(key)) or 0 for key in run.living()}

    def metrics(self) -> dict[str, float]:
        """Scrape the agent; empty while it does not answer."""
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=5) as answer:
                lines = answer.read().decode().splitlines()
        except OSError:
            return {}
        return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")}

    def phase(self, pipeline: str) -> str | None:
        """Return the phase that the agent shows for a pipeline."""
        prefix = 'pointsman_pipeline_phase{phase="'
        for sample, value in self.metrics().items():
            if sample.startswith(prefix) and f'pipeline="{pipeline}"' in sample and value == 1:
                return sample.removeprefix(prefix).partition('"')[0]
        return None

    @property
    def log(self) -> str:
        return (self.folder / "agent.log").read_text()


def _subject(kind: Kind, name: str) -> str:
    return subjects.desired(2, PLANE, kind, name)


def _kind(document: Document) -> Kind:
    kinds: dict[type[Document], Kind] = {PipelineDocument: Kind.PIPELINE, ConnectionDocument: Kind.CONNECTION}
    return kinds.get(type(document), Kind.PIPELINE)


def rows(conninfo: str, query: str) -> list[tuple[object, ...]] | None:
    """Return a query's rows; None while the table is not there."""
    try:
        with psycopg.connect(conninfo, autocommit=True) as connection:
            return connection.execute(query).fetchall()  # type: ignore[arg-type]
    except psycopg.errors.UndefinedTable:
        return None


async def eventually(condition: object, *, seconds: float = 30.0, why: object = lambda: "") -> None:
    """Wait until the condition holds, looking ten times a second, off the event loop."""
    end = time.monotonic() + seconds
    while not await asyncio.to_thread(condition):  # type: ignore[arg-type]
        if time.monotonic() > end:
            raise AssertionError(f"the state that was waited for did not come: {why()}")  # type: ignore[operator]
        await asyncio.sleep(0.1)
