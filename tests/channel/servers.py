"""A real hub and real leaves for the channel's tests, each a nats-server of its own in a folder of its own."""

import asyncio
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import nats
import nats.errors
from nats.aio.client import Client

from contracts import identity
from contracts.keys import KeyPair, Role
from controlplane.channel import hub, jwt, keys
from controlplane.channel.accounts import Accounts
from dataplane.config import NodeConfig
from dataplane.link import certificate, leaf
from pointsman.local import processes
from pointsman.local.nats import nats_server

TENANT = "3f2504e0-4f89-11d3-9a0c-0305e82c3301"
OTHER_TENANT = "3f2504e0-4f89-11d3-9a0c-0305e82c3302"


async def until(condition: Callable[[], object], seconds: float = 15.0) -> None:
    """Wait until `condition` holds, and fail when it does not in time."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the state that the test waits for did not come"
        await asyncio.sleep(0.01)


class Server:
    """A nats-server that is started, killed and started again with the same configuration."""

    def __init__(self, folder: Path, configuration: str, port: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.port = port
        self.file = folder / "nats.conf"
        self.file.write_text(configuration)
        self._process: subprocess.Popen[bytes]
        self._pid = 0

    def start(self) -> None:
        process = processes.start([nats_server(), "-c", str(self.file)], log=self.folder / "nats.log")
        self._process, self._pid = process, process.pid
        end = time.monotonic() + 10
        while time.monotonic() < end:
            assert process.poll() is None, (self.folder / "nats.log").read_text()[-2000:]
            if self.accepts():
                return
            time.sleep(0.02)
        raise AssertionError("nats-server did not start: " + (self.folder / "nats.log").read_text()[-2000:])

    def accepts(self) -> bool:
        import socket

        with socket.socket() as probe:
            probe.settimeout(0.2)
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def kill(self, how: signal.Signals = signal.SIGKILL) -> None:
        if self._pid:
            processes.stop(self._pid, ask=how)
            self._process.wait(10)  # its threads may outlive its first one by a moment
            self._pid = 0

    @property
    def log(self) -> str:
        return (self.folder / "nats.log").read_text()


class Hub(Server):
    """The hub with fresh keys. With `certificates` leaves must show theirs, and the control plane is asked about them."""

    def __init__(self, folder: Path, *, certificates: bool = False) -> None:
        keys.create(folder / "keys")
        self.certificates = certificates
        self.keys_folder = folder / "keys"
        self.leaf_port = processes.free_port()
        port = processes.free_port()
        if certificates:
            keys.hub_certificate(self.keys_folder, self.leaf_url)
        self.accounts = Accounts(keys.read(self.keys_folder), certificates=certificates)
        text = hub.render(
            self.accounts,
            folder=folder / "hub",
            port=port,
            leaf_port=self.leaf_port,
            leaf_tls=hub.own_tls(self.keys_folder) if certificates else None,
        )
        super().__init__(folder / "hub", text, port)

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    @property
    def leaf_url(self) -> str:
        return f"{'tls' if self.certificates else 'nats'}://127.0.0.1:{self.leaf_port}"

    async def connect(self, token: str, key: KeyPair, **options: object) -> Client:
        return await connect(self.url, token, key, **options)

    async def push(self, *tokens: str) -> list[bytes]:
        """Push account claims as the control plane does."""
        client = await self.connect(*self.accounts.system_user())
        try:
            return [
                (await client.request("$SYS.REQ.CLAIMS.UPDATE", token.encode(), timeout=2)).data for token in tokens
            ]
        finally:
            await client.close()


async def connect(url: str, token: str, key: KeyPair, **options: object) -> Client:
    async def quiet(_: Exception) -> None:
        return None

    credentials = jwt.credentials(token, key.seed)
    from nats.aio.client import RawCredentials

    settings: dict[str, object] = {"allow_reconnect": False, "error_cb": quiet, "connect_timeout": 2, **options}
    client = Client()
    try:
        await client.connect(url, user_credentials=RawCredentials(credentials), **settings)  # type: ignore[arg-type]
    except BaseException:
        await client.close()
        raise
    return client


class Leaf(Server):
    """The leaf of one data plane. `credentials` of None leaves the file out."""

    def __init__(self, folder: Path, hub_url: str, *, data_plane: str = "local", credentials: str | None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.key = KeyPair.generate(Role.USER)
        self.ctl, self.data = KeyPair.generate(Role.USER), KeyPair.generate(Role.USER)
        self.reload = KeyPair.generate(Role.USER)
        (folder / leaf.RELOAD_SEED).write_text(self.reload.seed)
        (folder / leaf.LEAF_SEED).write_text(self.key.seed)
        (folder / leaf.CTL_SEED).write_text(self.ctl.seed)
        (folder / leaf.DATA_SEED).write_text(self.data.seed)
        self.data_plane = data_plane
        self.hub_url = hub_url
        super().__init__(folder, "", processes.free_port())
        self.configure()
        if credentials is not None:
            self.write_credentials(credentials)

    def configure(self, tls: leaf.RemoteTls | None = None) -> None:
        """Write the configuration, with TLS if there is a certificate."""
        text = leaf.render(
            folder=self.folder,
            data_plane=self.data_plane,
            ctl_key=self.ctl.public,
            data_key=self.data.public,
            hub_url=self.hub_url,
            port=self.port,
            reload_key=self.reload.public,
            tls=tls or leaf.own_tls(self.folder, self.hub_url),
        )
        self.file.write_text(text)

    def ask_for_certificate(self) -> tuple[str, str]:
        """Make the TLS key, and return what is asked with: its public half and the proof that it is the leaf's."""
        tls_key = certificate.key_of(self.folder / certificate.TLS_KEY)
        return tls_key, identity.prove(self.key, tls_key)

    def write_certificate(self, text: str, authorities: str) -> None:
        """Take a certificate for the key that was asked with, and the hub's authorities, and configure anew."""
        key = (self.folder / certificate.TLS_KEY).read_text()
        (self.folder / certificate.CERTIFICATE).write_text(text + key)
        (self.folder / certificate.AUTHORITIES).write_text(authorities)
        self.configure()

    def write_credentials(self, token: str) -> None:
        (self.folder / leaf.CREDENTIALS).write_text(jwt.credentials(token, self.key.seed))

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    async def ctl_client(self, node: str = "test") -> Client:
        return await nats.connect(
            self.url,
            nkeys_seed=str(self.folder / leaf.CTL_SEED),
            inbox_prefix=f"_INBOX.{self.data_plane}.{node}",
            allow_reconnect=False,
        )

    async def data_client(self) -> Client:
        return await nats.connect(self.url, nkeys_seed=str(self.folder / leaf.DATA_SEED), allow_reconnect=False)


def node_config(
    folder: Path, hub: Hub, leaf_server: Leaf, *, node: str = "node-1", contract: int = 2, tenant: str = TENANT
) -> NodeConfig:
    """Make a node's key and its configuration, as joining does."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "node.nk").write_text(KeyPair.generate(Role.USER).seed)
    return NodeConfig(
        tenant=tenant,
        account=hub.accounts.account_key(tenant),
        data_plane=leaf_server.data_plane,
        node=node,
        root_key=hub.accounts.root_key,
        seed_file=str(folder / "node.nk"),
        leaf_url=leaf_server.url,
        ctl_seed_file=str(leaf_server.folder / leaf.CTL_SEED),
        data_seed_file=str(leaf_server.folder / leaf.DATA_SEED),
        secrets_folder=str(folder / "secrets"),
        contract_max=contract,
    )


@asynccontextmanager
async def linked(folder: Path, *, data_plane: str = "local") -> AsyncIterator[tuple[Hub, Leaf]]:
    """A running hub that knows one tenant, and that tenant's leaf, linked."""
    hub_server = Hub(folder)
    hub_server.start()
    leaf_server: Leaf | None = None
    try:
        await hub_server.push(hub_server.accounts.tenant_jwt(TENANT, {}))
        leaf_server = Leaf(folder / f"leaf-{data_plane}", hub_server.leaf_url, data_plane=data_plane, credentials=None)
        leaf_server.write_credentials(hub_server.accounts.leaf_credentials(TENANT, data_plane, leaf_server.key.public))
        leaf_server.start()
        yield hub_server, leaf_server
    finally:
        if leaf_server is not None:
            leaf_server.kill()
        hub_server.kill()
