"""A leaf links with a certificate and a token that are of one and the same leaf; anything else is kept out, or cut."""

import asyncio
import datetime as dt
import time
from base64 import urlsafe_b64encode
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import nats.errors
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from tests.channel.conftest import ControlPlane, closing, started
from tests.channel.servers import OTHER_TENANT, TENANT, Hub, Leaf, until

from contracts import identity
from contracts.keys import KeyPair, Role
from controlplane.channel import jwt, keys
from controlplane.channel.accounts import Accounts
from controlplane.channel.authority import Authority
from controlplane.channel.directory import KnownLeaf
from controlplane.channel.leaf_admission import Kept, _Asked, _token_subject, judge
from controlplane.channel.leaf_links import LeafLinks, Link
from controlplane.commands import WriteOptions, data_planes
from dataplane.link.leaf import RemoteTls

NOW = dt.datetime.now(dt.UTC)
ENROLLED = KnownLeaf("local", revoked=False)


@pytest.fixture
async def secured(database: Any, folder: Path) -> AsyncIterator[ControlPlane]:
    """A control plane and its hub that let in nobody without a certificate."""
    hub = Hub(folder, certificates=True)
    hub.start()
    try:
        async with started(database, hub) as control:
            yield control
    finally:
        hub.kill()


async def _is_linked(leaf: Leaf, seconds: float = 0.5) -> bool:
    """Say whether what the leaf sends reaches the control plane. An answer that refuses the sender is one."""
    async with closing(await leaf.ctl_client()) as client:
        try:
            await client.request(f"up.v2.{leaf.data_plane}.node-1.sync", b"", timeout=seconds)
        except (nats.errors.NoRespondersError, nats.errors.TimeoutError):
            return False
        return True


async def _until_linked(leaf: Leaf) -> None:
    for _ in range(200):
        if await _is_linked(leaf):
            return
        await asyncio.sleep(0.05)
    raise AssertionError("the leaf did not link: " + leaf.log[-1000:])


def _results(control: ControlPlane) -> dict[str, float]:
    counter = control.channel._metrics.leaf_admissions
    return {
        sample.labels["result"]: sample.value
        for metric in counter.collect()
        for sample in metric.samples
        if sample.name.endswith("_total")
    }


async def _refused(control: ControlPlane, leaf: Leaf, result: str) -> None:
    """Start a leaf that must not get in, and wait until it has been kept out for this reason."""
    before = _results(control).get(result, 0)
    leaf.start()
    try:
        await until(lambda: _results(control).get(result, 0) > before)
        assert not await _is_linked(leaf)
    finally:
        leaf.kill()


async def test_only_the_certificate_of_the_tokens_own_leaf_opens_the_link(secured: ControlPlane, folder: Path) -> None:
    """Valid credentials with another tenant's valid certificate, another leaf's, or a foreign one do not get in."""
    control = secured
    leaf = await control.start_leaf(folder / "leaf")
    other_tenant = control.create_tenant("other")
    control.create_plane(tenant=other_tenant)
    stranger = await control.start_leaf(folder / "stranger", tenant=other_tenant)
    await _until_linked(leaf)
    await _until_linked(stranger)
    leaf.kill()
    stranger.kill()
    right, strange = (each.folder / "leaf.pem" for each in (leaf, stranger))
    ours = right.read_text()
    right.write_text(strange.read_text())
    await _refused(control, leaf, "other_certificate")
    # The same two halves the other way round: our certificate, the stranger's token.
    right.write_text(ours)
    strange.write_text(ours)
    await _refused(control, stranger, "other_certificate")
    let_in = _results(control)["let_in"]
    leaf.start()
    await until(lambda: _results(control)["let_in"] > let_in)
    await _until_linked(leaf)
    leaf.kill()


async def test_a_leaf_without_a_certificate_of_ours_does_not_get_past_tls(secured: ControlPlane, folder: Path) -> None:
    """None at all, or one with the right name by another authority: the hub ends it before anybody is asked."""
    control = secured
    leaf = Leaf(folder / "leaf", control.hub.leaf_url, credentials=None)
    leaf.write_credentials(control.enrol_leaf(leaf.key.public))
    foreign = Authority.make(NOW)
    tls_key, _ = leaf.ask_for_certificate()
    uri = identity.leaf_uri(control.tenant, "local", leaf.key.public)
    forged = foreign.issue_leaf(uri, tls_key, now=NOW, lifetime=dt.timedelta(hours=1))
    leaf.write_certificate(forged, control.authorities())
    for tls in (None, RemoteTls(ca_file=str(leaf.folder / "ca.pem"), first=True)):
        leaf.configure(tls)
        errors = control.hub.log.count("TLS leafnode handshake error")
        leaf.start()
        await until(lambda errors=errors: control.hub.log.count("TLS leafnode handshake error") > errors)  # type: ignore[misc]
        assert not await _is_linked(leaf)
        leaf.kill()
    assert _results(control) == {}
    leaf.write_certificate(control.certify(leaf), foreign.pem)
    errors = leaf.log.count("x509")
    leaf.start()
    await until(lambda: leaf.log.count("x509") > errors)
    leaf.kill()
    assert _results(control) == {}, "the leaf spoke to a hub that it could not know"


async def test_revoking_cuts_a_leaf_with_a_certificate_within_a_second(secured: ControlPlane, folder: Path) -> None:
    """Its certificate is still valid and its token too: it is cut, and kept out from then on; the tenant's other is not."""
    control = secured
    control.create_plane("second")
    leaf = await control.start_leaf(folder / "leaf")
    other = await control.start_leaf(folder / "other", name="second")
    try:
        await _until_linked(leaf)
        await _until_linked(other)
        cuts, before = (each.log.count("Leafnode connection closed") for each in (other, leaf))
        revoked_at = time.monotonic()
        control.run(data_planes.delete("local", WriteOptions()))
        await until(lambda: leaf.log.count("Leafnode connection closed") > before)
        took = time.monotonic() - revoked_at
        await until(lambda: "Authorization Violation" in leaf.log)
        assert not await _is_linked(leaf)
        assert await _is_linked(other, 5)
        assert other.log.count("Leafnode connection closed") == cuts
        assert took < 1.0
    finally:
        leaf.kill()
        other.kill()


# ---- The decision, without servers ----------------------------------------------------------------------------------


class Case:
    """A leaf that would be let in, and what the hub asks about it."""

    def __init__(self, folder: Path) -> None:
        keys.create(folder)
        self.keys = keys.read(folder)
        self.accounts = Accounts(self.keys, certificates=True)
        self.leaf = KeyPair.generate(Role.USER)
        self.uri = identity.leaf_uri(TENANT, "local", self.leaf.public)
        self.token = self.accounts.leaf_credentials(TENANT, "local", self.leaf.public)

    def certificate(self, uri: str | None = None, hours: float = 1) -> str:
        point = (
            ec.generate_private_key(ec.SECP256R1())
            .public_key()
            .public_bytes(serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint)
        )
        return self.keys.authorities[0].issue_leaf(
            uri or self.uri, identity.write_tls_key(point), now=NOW, lifetime=dt.timedelta(hours=hours)
        )

    def judged(self, enrolled: KnownLeaf | None = ENROLLED, **changes: Any) -> dt.datetime | Kept:
        nonce = "a-nonce"
        signature = urlsafe_b64encode(changes.get("signer", self.leaf).sign(nonce.encode())).rstrip(b"=").decode()
        chain = changes.get("chain", [self.certificate(changes.get("uri"), changes.get("hours", 1))])
        asked = {
            "server_id": {"id": "N"},
            "user_nkey": "U",
            "client_info": {"kind": changes.get("kind", "Leafnode"), "nonce": changes.get("nonce", nonce)},
            "connect_opts": {"jwt": self.token, "sig": signature},
            "client_tls": {"verified_chains": [chain] if chain else []},
        }
        return judge(TENANT, self.leaf.public, msgspec.convert(asked, _Asked), enrolled, self.keys.authorities, NOW)


def test_every_part_of_a_leafs_identity_must_hold(folder: Path) -> None:
    """Wrong in a single part, it is kept out for that part; right in all, it may stay until its certificate expires."""
    case = Case(folder)
    until_when = case.judged()
    assert isinstance(until_when, dt.datetime)
    assert abs(until_when - NOW - dt.timedelta(hours=1)) < dt.timedelta(seconds=2)
    assert case.judged(kind="Client") is Kept.NOT_A_LEAF
    assert case.judged(signer=KeyPair.generate(Role.USER)) is Kept.BAD_SIGNATURE
    assert case.judged(nonce="another") is Kept.BAD_SIGNATURE
    assert case.judged(nonce="") is Kept.BAD_SIGNATURE
    assert case.judged(None) is Kept.NOT_ENROLLED
    assert case.judged(KnownLeaf("local", True)) is Kept.REVOKED
    assert case.judged(chain=[]) is Kept.NO_CERTIFICATE
    assert case.judged(chain=["not a certificate"]) is Kept.OTHER_CERTIFICATE
    assert case.judged(hours=-0.1) is Kept.OTHER_CERTIFICATE
    for uri in (
        identity.leaf_uri(OTHER_TENANT, "local", case.leaf.public),
        identity.leaf_uri(TENANT, "other", case.leaf.public),
        identity.leaf_uri(TENANT, "local", KeyPair.generate(Role.USER).public),
        case.uri + "/more",
    ):
        assert case.judged(uri=uri) is Kept.OTHER_CERTIFICATE
    assert case.judged(KnownLeaf("other", False)) is Kept.OTHER_CERTIFICATE


def test_a_token_counts_only_if_the_account_itself_signed_it_for_a_user(folder: Path) -> None:
    """No algorithm but NATS's own, no issuer but the account, no account's token for a user's, no changed byte."""
    case = Case(folder)
    account, issuers = case.accounts.account_key(TENANT), case.accounts.issuers(TENANT)
    assert _token_subject(account, case.token, issuers) == case.leaf.public
    head, body, signature = case.token.split(".")
    none = urlsafe_b64encode(b'{"typ":"JWT","alg":"none"}').rstrip(b"=").decode()
    other = case.accounts.leaf_credentials(OTHER_TENANT, "local", case.leaf.public)
    forged = jwt.user(
        case.leaf.public, KeyPair.generate(Role.ACCOUNT), "leaf", jwt.Permissions(publish=(), subscribe=()), issued_at=1
    )
    tampered = f"{head}.{other.split('.')[1]}.{signature}"
    for token in (
        "",
        "a.b.c",
        f"{none}.{body}.",
        f"{none}.{body}.{signature}",
        f"{head}.{body}.",
        tampered,
        other,
        forged,
        case.accounts.tenant_jwt(TENANT, {}),
    ):
        assert _token_subject(account, token, issuers) is Kept.BAD_TOKEN


def test_a_leaf_that_was_revoked_while_it_connected_is_cut_at_its_connect() -> None:
    """The hub's word of a connect may come after the revocation that it should have been refused for."""
    links = LeafLinks()
    assert not links.revoke("A", {})
    assert links.connected(_connect(7, "K")) is None
    assert links.connected(_connect(8, "L")) is None
    assert links.revoke("A", {"K": 1})
    listed = b'{"server":{"id":"N"},"data":{"leafs":[{"id":7},{"id":8},{"id":9}]}}'
    assert links.to_cut("A", listed) == [Link("N", 7), Link("N", 9)], "the revoked one, and one that nobody knows"
    assert links.connected(_connect(10, "K")) == Link("N", 10)
    assert links.connected(b"not a message") is None


def _connect(number: int, user: str) -> bytes:
    return f'{{"server":{{"id":"N"}},"client":{{"id":{number},"acc":"A","user":"{user}"}}}}'.encode()
