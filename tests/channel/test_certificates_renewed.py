"""A leaf's certificate is renewed in time; one that has expired, or is lost, stops configuration and nothing else."""

import asyncio
import datetime as dt
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import nats.errors
import pytest
from tests.channel.conftest import ControlPlane, TestNode, _trust, closing, started
from tests.channel.servers import Hub, Leaf, node_config, until

from contracts import identity, v2
from contracts.keys import KeyPair, Role
from dataplane.link import certificate, leaf, renewal
from dataplane.link.renewal import renew_at

_ANSWERS: Any = msgspec.json.Decoder(v2.CertificateReply | v2.Receipt)


class Short:
    """A control plane whose certificates hold for a few seconds, and its one leaf."""

    def __init__(self, control: ControlPlane, server: Leaf) -> None:
        self.control, self.leaf = control, server

    def hold_for(self, seconds: float) -> None:
        """Make all certificates from now on hold for so long."""
        made = self.control.channel.certificates
        made._lifetime = dt.timedelta(seconds=seconds)

    def expires_at(self) -> dt.datetime:
        held = certificate.lifetime(self.leaf.folder)
        assert held is not None
        return held[1]


@pytest.fixture
async def short(database: Any, folder: Path) -> AsyncIterator[Short]:
    """A leaf that is linked with a certificate."""
    hub = Hub(folder, certificates=True)
    hub.start()
    try:
        async with started(database, hub) as control:
            made = Short(control, await control.start_leaf(folder / "leaf"))
            yield made
            made.leaf.kill()
    finally:
        hub.kill()


async def _local_messages(server: Leaf) -> int:
    """Write what a worker would, and return how much the leaf holds: rows need nothing of what is above."""
    async with closing(await server.data_client()) as worker:
        stream = worker.jetstream()
        await stream.add_stream(name="buffer", subjects=["buffer.>"])
        return (await stream.publish("buffer.pipe.sets", b"a row")).seq


def test_a_certificate_is_renewed_when_a_third_of_its_life_is_left() -> None:
    """A week's certificate is renewed more than two days before it ends."""
    issued = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    assert renew_at(issued, issued + dt.timedelta(days=9)) == issued + dt.timedelta(days=6)


@pytest.mark.system
async def test_the_node_renews_its_leafs_certificate_while_it_is_linked(short: Short, make_linked: Any) -> None:
    """With a fresh key each time, over the link that it has, and the leaf comes back with the new one by itself."""
    short.hold_for(6)
    server = short.leaf
    server.kill()
    server.write_certificate(short.control.certify(server), short.control.authorities())
    first, ends = (server.folder / "leaf.pem").read_text(), short.expires_at()
    server.start()
    node = await make_linked(short)
    await until(lambda: short.expires_at() > ends)
    held = (server.folder / "leaf.pem").read_text()
    assert held.split("-----BEGIN PRIVATE KEY")[1] != first.split("-----BEGIN PRIVATE KEY")[1]
    await until(lambda: "Reloaded server configuration" in server.log)
    # The first link ends when its certificate does, and the hub takes the leaf with its next one.
    await until(lambda: server.log.count("Leafnode connection closed") >= 1, 30)
    short.control.put_pipeline("orders")
    await until(lambda: node.generations() == {"orders": 1}, 30)


async def test_an_expired_certificate_stops_configuration_and_not_data(short: Short, make_linked: Any) -> None:
    """The hub cuts the leaf at that second; documents wait, rows do not; a certificate by another way brings them back."""
    control, server = short.control, short.leaf
    node = await make_linked(short, renews=False)
    await until(lambda: node.link.synced_at is not None)
    short.hold_for(1.5)
    await node.stop()
    server.kill()
    server.write_certificate(control.certify(server), control.authorities())
    server.start()
    await node.start()
    await until(lambda: dt.datetime.now(dt.UTC) > short.expires_at())
    await until(lambda: "certificate has expired" in control.hub.log or "Authentication Expired" in server.log, 20)
    control.put_pipeline("orders")
    assert await _local_messages(server) == 1
    assert node.generations() == {}
    short.hold_for(3_600)
    server.write_certificate(control.certify(server), control.authorities())
    await renewal.reload(node.config, server.folder)
    await until(lambda: node.generations() == {"orders": 1}, 30)


async def test_a_leaf_starts_without_the_hub_when_its_certificate_is_lost(short: Short) -> None:
    """Missing, cut off or of another key, it is put aside with the part that names the hub, and comes back with it."""
    server = short.leaf
    server.kill()
    whole = (server.folder / "leaf.pem").read_text()
    (server.folder / leaf.CONFIGURATION).write_text(server.file.read_text())
    server.file = server.folder / leaf.CONFIGURATION
    configured = server.file.read_text()
    other = certificate.make_key(server.folder / "other.key") and (server.folder / "other.key").read_text()
    for bad in (None, whole[:300], whole.split("-----BEGIN PRIVATE KEY")[0] + other):
        (server.folder / "leaf.pem").unlink(missing_ok=True)
        if bad is not None:
            (server.folder / "leaf.pem").write_text(bad)
        assert not leaf.settle(server.folder)
        assert not leaf.settle(server.folder), "asked twice, it says the same"
        assert "remotes" not in server.file.read_text()
    server.start()
    assert await _local_messages(server) == 1
    server.kill()
    (server.folder / "leaf.pem").write_text(whole)
    assert leaf.settle(server.folder)
    assert server.file.read_text() == configured


async def test_only_a_living_leaf_of_the_nodes_own_plane_gets_a_certificate(short: Short, make_linked: Any) -> None:
    """Another plane's leaf, one that nobody enrolled, a key that was not signed for, a revoked leaf: none gets one."""
    control = short.control
    node = await make_linked(short, renews=False)
    await until(lambda: node.link.synced_at is not None)
    control.create_plane("second")
    other, unknown = KeyPair.generate(Role.USER), KeyPair.generate(Role.USER)
    control.enrol_leaf(other.public, "second")

    async def code(key: KeyPair, signer: KeyPair | None = None) -> str | None:
        tls_key, _ = short.leaf.ask_for_certificate()
        proof = identity.prove(signer or key, tls_key)
        wanted = v2.CertificateRequest(leaf_key=key.public, leaf_tls_key=tls_key, leaf_proof=proof)
        for _ in range(50):
            try:
                reply = await node.link.leaf.request(
                    "up.v2.local.node-1.certificate", node.link._seal(wanted), timeout=2
                )
            except (nats.errors.Error, AttributeError):
                await asyncio.sleep(0.05)
                continue
            found = _ANSWERS.decode(reply.data)
            return None if isinstance(found, v2.CertificateReply) else found.code
        raise AssertionError("no answer")

    mine = short.leaf.key
    assert await code(mine) is None
    assert await code(mine, signer=unknown) == "unknown_leaf"
    assert await code(other) == "unknown_leaf"
    assert await code(unknown) == "unknown_leaf"


@pytest.fixture
async def make_linked(folder: Path) -> AsyncIterator[Any]:
    """Return a function that starts an enrolled node at a leaf; `renews=False` leaves the leaf's key out of its reach."""
    made: list[TestNode] = []

    async def make(short: Short, *, renews: bool = True) -> TestNode:
        place = folder / "nodes" / "node-1"
        if not renews:
            (short.leaf.folder / leaf.LEAF_SEED).unlink()
        config = node_config(place, short.control.hub, short.leaf, tenant=short.control.tenant)
        node = TestNode(place, config)
        short.control.enrol_node("node-1", node.key.public)
        _trust(node, short.control)
        made.append(node)
        await node.start()
        return node

    yield make
    for node in made:
        await node.stop()
