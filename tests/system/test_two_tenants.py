"""Two tenants on one control plane, who cannot see, name or reach each other's things."""

import asyncio
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import nats
import pytest
from tests.system.databases import Pair
from tests.system.stack import Stack, eventually

from contracts import identity, subjects
from contracts.keys import KeyPair, Role
from contracts.v2 import Kind
from dataplane.link import certificate
from dataplane.link.leaf import RemoteTls, own_tls
from pointsman.local import processes
from pointsman.local.nats import nats_server

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def pair(stack: Stack, make_pair: Callable[[str], Pair]) -> Pair:
    """A pipeline of the first tenant."""
    made = make_pair("mine")
    made.source.execute("CREATE TABLE rows (id int PRIMARY KEY)")
    stack.apply(made.manifest("public.rows"))
    stack.wait(made.name)
    return made


@pytest.fixture(scope="module")
def stranger(stack: Stack) -> str:
    """The API key of a second tenant."""
    with stack.api(operator=True) as api:
        answer = api.post("/tenants", json={"name": "stranger"})
    assert answer.status_code == 201
    return str(answer.json()["api_key"])


def test_a_tenant_sees_nothing_of_another(stack: Stack, pair: Pair, stranger: str) -> None:
    """Lists are empty, names are not found, and events and audit show only the tenant's own."""
    with stack.api(key=stranger) as api:
        for kind in ("pipelines", "connections", "data-planes", "nodes"):
            assert api.get(f"/{kind}").json()["items"] == []
        for path in ("/pipelines/mine", "/connections/mine-source", "/data-planes/local", "/nodes/node-1"):
            assert api.get(path).status_code == 404
        assert "mine-source" not in api.get("/audit/entries", params={"limit": 100}).text
    assert "mine" not in {each["name"] for each in stack.events(key=stranger)}


def test_a_tenant_cannot_change_what_is_anothers(stack: Stack, pair: Pair, stranger: str) -> None:
    """Pause, delete and tokens find nothing; the other's pipeline goes on in its generation."""
    before = stack.pipeline("mine")["generation"]
    with stack.api(key=stranger) as api:
        assert api.post("/pipelines/mine/pause").status_code == 404
        assert api.delete("/pipelines/mine").status_code == 404
        assert api.delete("/connections/mine-sink").status_code == 404
        assert api.post("/data-planes/local/join-tokens", json={}).status_code == 404
        answer = api.put(
            "/pipelines/mine",
            json={
                "data_plane": "local",
                "source": {"connection": "mine-source", "tables": ["public.rows"]},
                "sink": {"connection": "mine-sink"},
            },
        )
        assert answer.json()["code"] in ("unknown_connection", "unknown_data_plane")
    assert stack.pipeline("mine")["generation"] == before
    pair.source.execute("INSERT INTO rows VALUES (1)")
    eventually(lambda: pair.equal("rows"), within=20, what="the row")


def test_two_tenants_may_use_the_same_names(stack: Stack, pair: Pair, stranger: str) -> None:
    """A name is a tenant's own: the second one's connection is another resource with its own generations."""
    document = {
        "type": "postgres",
        "config": {"host": "elsewhere", "port": 5432, "database": "other", "user": "other"},
        "secrets": {"password": "file:other"},
    }
    with stack.api(key=stranger) as theirs, stack.api() as ours:
        assert theirs.put("/connections/mine-source", json=document).status_code == 201
        assert theirs.get("/connections/mine-source").json()["config"]["host"] == "elsewhere"
        assert ours.get("/connections/mine-source").json()["config"]["host"] == "127.0.0.1"
        assert theirs.delete("/connections/mine-source").status_code in (200, 202, 204)
        assert ours.get("/connections/mine-source").status_code == 200


class Leaf:
    """A leaf of the second tenant, with every right that its credentials give, used by somebody hostile."""

    def __init__(self, folder: Path, url: str, jwt: str, key: KeyPair, tls: RemoteTls) -> None:
        self.port = processes.free_port()
        folder.mkdir(parents=True, exist_ok=True)
        credentials = folder / "leaf.creds"
        credentials.touch(mode=0o600)
        credentials.write_text(
            f"-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n"
            f"-----BEGIN USER NKEY SEED-----\n{key.seed}\n------END USER NKEY SEED------\n"
        )
        config = folder / "leaf.conf"
        config.write_text(
            f'listen: "127.0.0.1:{self.port}"\nserver_name: hostile\n'
            f'leafnodes {{ remotes = [ {{ url: "{url}", credentials: "{credentials}", tls {{ ca_file: "{tls.ca_file}",'
            f' cert_file: "{tls.cert_file}", key_file: "{tls.key_file}", handshake_first: true }} }} ] }}\n'
        )
        self.log = folder / "leaf.log"
        self.process = processes.start([nats_server(), "-c", str(config)], log=self.log)

    def end(self) -> None:
        processes.stop(self.process.pid)
        self.process.wait()


@pytest.fixture(scope="module")
def hostile(stack: Stack, stranger: str) -> Iterator[tuple[Leaf, str]]:
    """The second tenant's leaf, joined by the rules, and the account of the first tenant."""
    folder = Path(tempfile.mkdtemp(prefix="pm-hostile-"))
    node, leaf_key = KeyPair.generate(Role.USER), KeyPair.generate(Role.USER)
    tls_key = certificate.key_of(folder / certificate.TLS_KEY)
    with stack.api(key=stranger) as api:
        assert api.put("/data-planes/local", json={"model": "self_managed"}).status_code in (200, 201)
        token = api.post("/data-planes/local/join-tokens", json={}).json()["token"]
        joined = api.post(
            "/enrol",
            json={
                "token": token,
                "node": "node-1",
                "node_key": node.public,
                "leaf_key": leaf_key.public,
                "leaf_tls_key": tls_key,
                "leaf_tls_proof": identity.prove(leaf_key, tls_key),
                "contract": 2,
            },
        )
        assert joined.status_code in (200, 201), joined.text
    answer = joined.json()
    authorities = json.loads(answer["trust"])["body"]["authorities"]
    certificate.keep_authorities(folder, authorities)
    uri = identity.leaf_uri(answer["tenant"], "local", leaf_key.public)
    certificate.keep(folder, answer["leaf_certificate"], uri, authorities)
    tls = own_tls(folder, answer["hub_leaf_url"])
    assert tls is not None
    leaf = Leaf(folder, answer["hub_leaf_url"], answer["leaf_jwt"], leaf_key, tls)
    own = json.loads((stack.folder / "nodes" / "node-1" / "node.json").read_bytes())
    assert answer["account"] != own["account"]
    assert answer["tenant"] != own["tenant"]
    yield leaf, own["account"]
    leaf.end()
    shutil.rmtree(folder, ignore_errors=True)


async def test_a_tenants_leaf_hears_nothing_of_another(
    stack: Stack, pair: Pair, stranger: str, hostile: tuple[Leaf, str]
) -> None:
    """It listens to everything while both tenants change pipelines of one name: only its own documents come."""
    leaf, _ = hostile
    heard: list[tuple[str, bytes]] = []

    async def keep(message: nats.aio.msg.Msg) -> None:
        heard.append((message.subject, message.data))

    client = await _connect(leaf)
    try:
        for everything in (">", "desired.>", "up.>", "tenant.>"):
            await client.subscribe(everything, cb=keep)
        await client.flush()
        for verb in ("pause", "resume", "restart"):
            await asyncio.to_thread(stack.cli, verb, "pipeline", "mine")
        await asyncio.to_thread(stack.wait, "mine")
        await asyncio.to_thread(_make_theirs, stack, stranger)
        for _ in range(100):
            if any(b"theirs-source" in data for _, data in heard):
                break
            await asyncio.sleep(0.1)
    finally:
        await client.close()
    assert [subject for subject, data in heard if b"theirs-source" in data]
    foreign = [subject for subject, data in heard if b"mine-source" in data or b"shop" in data]
    assert foreign == []
    assert [subject for subject, _ in heard if subject.startswith("tenant.")] == []


async def test_a_tenants_leaf_reaches_nothing_of_another(stack: Stack, pair: Pair, hostile: tuple[Leaf, str]) -> None:
    """What it publishes on the other's subjects changes nothing, and nobody answers in the other's name."""
    leaf, account = hostile
    before = stack.pipeline("mine")["status"]
    client = await _connect(leaf)
    try:
        forged = [
            subjects.for_tenant(account, subjects.up(2, "local", "node-1", "report")),
            subjects.for_tenant(account, subjects.desired(2, "local", Kind.PIPELINE, "mine")),
            subjects.desired(2, "local", Kind.PIPELINE, "mine"),
            subjects.desired(2, "local", Kind.INDEX, "index"),
        ]
        for subject in forged:
            await client.publish(subject, b'{"anything": 1}')
        await client.flush()
        for subject in (
            subjects.for_tenant(account, subjects.up(2, "local", "node-1", "sync")),
            "$SYS.REQ.SERVER.PING",
        ):
            with pytest.raises((nats.errors.NoRespondersError, nats.errors.TimeoutError)):
                await client.request(subject, b"{}", timeout=1)
    finally:
        await client.close()
    pair.source.execute("INSERT INTO rows VALUES (2)")
    eventually(lambda: pair.equal("rows"), within=20, what="the row")
    after = stack.pipeline("mine")["status"]
    assert (after["phase"], after["node"]) == (before["phase"], before["node"])


async def test_the_hub_lets_nobody_in_without_credentials(stack: Stack) -> None:
    """A client that shows none is refused before it can say anything."""
    host, port = stack.state["hub"]["url"].removeprefix("nats://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b'CONNECT {"verbose":false,"pedantic":false}\r\nPING\r\nSUB > 1\r\n')
    said = await asyncio.wait_for(reader.read(), timeout=10)
    writer.close()
    await writer.wait_closed()
    assert b"Authorization Violation" in said
    assert b"PONG" not in said


def _make_theirs(stack: Stack, stranger: str) -> None:
    with stack.api(key=stranger) as api:
        for side in ("source", "sink"):
            config = {"host": "elsewhere", "port": 5432, "database": f"their_{side}", "user": "other"}
            answer = api.put(
                f"/connections/theirs-{side}",
                json={"type": "postgres", "config": config, "secrets": {"password": "file:other"}},
            )
            assert answer.status_code == 201, answer.text
        answer = api.put(
            "/pipelines/mine",
            json={
                "data_plane": "local",
                "source": {"connection": "theirs-source", "tables": ["public.rows"]},
                "sink": {"connection": "theirs-sink"},
            },
        )
        assert answer.status_code == 201, answer.text


async def _connect(leaf: Leaf) -> nats.NATS:
    async def ignore(_: Exception) -> None:
        """Refusals of single subjects are what is looked for."""

    for _ in range(100):
        if "Leafnode connection created" in leaf.log.read_text():
            break
        await asyncio.sleep(0.1)
    else:
        raise AssertionError(f"the leaf did not link: {leaf.log.read_text()[-2000:]}")
    return await nats.connect(f"nats://127.0.0.1:{leaf.port}", error_cb=ignore, connect_timeout=5)
