"""Keeps the leaf's certificate ahead of its expiry, and its authorities those of the trust list.

A node that lives in the folder of its leaf asks for the next certificate when a third of the present one's life is left, with
a fresh TLS key, over the link that it has. What comes back is checked, written in one piece, and the leaf is told to read its
files again. Nodes that share a leaf take turns. A leaf of before there were certificates gets its first one in the same way.

While nobody answers the old certificate stays; when it has expired the hub cuts the leaf, and configuration waits until
`pointsman node renew` has brought another. Rows know nothing of it. The link runs `keep_valid`, on the agent's event loop.
"""

import asyncio
import contextlib
import datetime as dt
import fcntl
import logging
import os
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import msgspec
import nats.errors
from msgspec import UnsetType
from nats.aio.client import Client

from contracts import identity, v2
from contracts.keys import KeyPair
from dataplane.config import NodeConfig
from dataplane.files import write_secret
from dataplane.link import certificate, leaf

LOOK_SECONDS_MAX = 60.0
LOOK_SECONDS_MIN = 0.5
AGAIN_SECONDS = 5.0
RELOAD_SECONDS_MAX = 5.0
LOCK_FILE = "certificate.lock"

log = logging.getLogger(__name__)
Ask = Callable[[v2.CertificateRequest], Awaitable[bytes]]
"""Seals a request, sends it up and returns the answer; raises what the connection to the leaf raises."""
_REPLIES: msgspec.json.Decoder[v2.CertificateReply | v2.Receipt] = msgspec.json.Decoder(
    v2.CertificateReply | v2.Receipt
)
FAILURES = (nats.errors.Error, OSError, TimeoutError, ValueError)
"""What a renewal may fail with; it is tried again later."""


class NotRenewed(ValueError):
    """The control plane does not give this node a certificate. The text says its code."""


def renew_at(issued: dt.datetime, not_after: dt.datetime) -> dt.datetime:
    """Return when a certificate is renewed: when a third of its life is left."""
    return not_after - (not_after - issued) / 3


class Renewal:
    """The renewal of one leaf. `trust` gives the trust list of now."""

    def __init__(self, config: NodeConfig, trust: Callable[[], v2.TrustDocument | None]) -> None:
        self._config = config
        self._trust = trust
        self._folder = Path(config.ctl_seed_file).parent
        self._look_again = asyncio.Event()

    @property
    def is_ours(self) -> bool:
        """Whether the leaf lives here; otherwise another machine's nodes look after it."""
        return (self._folder / leaf.LEAF_SEED).exists()

    def wake(self) -> None:
        """Say that there may be another trust list, which may name another authority or issuer."""
        self._look_again.set()

    def due_at(self) -> dt.datetime | None:
        """Return when a certificate has to be asked for; None if the control plane has no authority."""
        trust, authorities = self._trust(), self._authorities()
        if trust is None or not authorities:
            return None
        held = certificate.lifetime(self._folder)
        if held is None or not certificate.is_by(self._folder, authorities[0]):
            return dt.datetime.now(dt.UTC)
        if not isinstance(trust.issuer, UnsetType) and leaf.issuer_of(self._folder) != trust.issuer:
            return dt.datetime.now(dt.UTC)
        # When it was written, not from when it holds: that is in the past, for clocks that are behind.
        return renew_at(max(held[0], certificate.written_at(self._folder)), held[1])

    async def keep_valid(self, ask: Ask) -> None:
        """Renew whenever it is due, for ever. Failures are logged and tried again."""
        while self.is_ours:
            try:
                await self.look(ask)
                due = self.due_at()
                left = (due - dt.datetime.now(dt.UTC)).total_seconds() if due is not None else LOOK_SECONDS_MAX
                # What is due still, because another node renews it or the answer was an old one, is asked for later too.
                pause = min(LOOK_SECONDS_MAX, left) if left > 0 else AGAIN_SECONDS
            except FAILURES as error:
                log.warning("the leaf's certificate was not renewed: %s", error)
                pause = AGAIN_SECONDS
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(LOOK_SECONDS_MIN, pause)):
                    await self._look_again.wait()
            self._look_again.clear()

    async def look(self, ask: Ask) -> bool:
        """Do what is due now, and return whether anything was."""
        authorities = self._authorities()
        if not authorities:
            return False
        with _turn(self._folder) as ours:
            if not ours:
                return False
            changed = certificate.keep_authorities(self._folder, authorities)
            due = self.due_at()
            if due is not None and due <= dt.datetime.now(dt.UTC):
                take(self._config, self._folder, await ask(request(self._folder)), authorities)
                changed = True
                log.info("the leaf has a new certificate")
            if changed:
                await reload(self._config, self._folder)
            return changed

    def _authorities(self) -> list[str]:
        trust = self._trust()
        return [] if trust is None or isinstance(trust.authorities, UnsetType) else trust.authorities


def request(folder: Path) -> v2.CertificateRequest:
    """Make a fresh TLS key and what is asked with.

    Raises:
        OSError, ValueError: the leaf's folder cannot be written, or its seed not be read.
    """
    key = KeyPair((folder / leaf.LEAF_SEED).read_text())
    tls_key = certificate.make_key(folder / certificate.TLS_KEY)
    proof = identity.prove(key, tls_key)
    return v2.CertificateRequest(leaf_key=key.public, leaf_tls_key=tls_key, leaf_proof=proof)


def take(config: NodeConfig, folder: Path, answer: bytes, authorities: list[str]) -> None:
    """Keep the certificate in an answer.

    Raises:
        NotRenewed: there is none in it.
        certificate.BadCertificate: it is for another leaf or key, or by a stranger.
    """
    key = KeyPair((folder / leaf.LEAF_SEED).read_text())
    try:
        reply = _REPLIES.decode(answer)
    except msgspec.DecodeError as error:
        raise NotRenewed("the answer is not that of a control plane") from error
    if isinstance(reply, v2.Receipt):
        raise NotRenewed(reply.code or "no reason given")
    uri = identity.leaf_uri(config.tenant, config.data_plane, key.public)
    certificate.keep(folder, reply.certificate, uri, authorities)
    if reply.token is not None:
        write_secret(folder / leaf.CREDENTIALS, leaf.credentials(reply.token, key.seed))


async def reload(config: NodeConfig, folder: Path) -> None:
    """Have the leaf read its files again, as the user who may do that and nothing else.

    Raises:
        OSError, nats.errors.Error, TimeoutError: the leaf does not answer.
        NotRenewed: it refuses, or its configuration is of before there was such a user; it reads them at its next start.
    """
    seed = folder / leaf.RELOAD_SEED
    if not seed.exists():
        raise NotRenewed("the leaf reads it at its next start")
    client = Client()
    try:
        await client.connect(
            config.leaf_url, nkeys_seed=str(seed), allow_reconnect=False, connect_timeout=int(RELOAD_SECONDS_MAX)
        )
        found = await client.request("$SYS.REQ.SERVER.PING.IDZ", b"", timeout=RELOAD_SECONDS_MAX)
        server = msgspec.json.decode(found.data)["id"]
        answer = await client.request(f"$SYS.REQ.SERVER.{server}.RELOAD", b"", timeout=RELOAD_SECONDS_MAX)
        if "error" in msgspec.json.decode(answer.data):
            raise NotRenewed("the leaf did not take its files")
    finally:
        await client.close()


@contextlib.contextmanager
def _turn(folder: Path) -> Iterator[bool]:
    """Whether it is this node's turn: of nodes that share a leaf, one renews at a time."""
    handle = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
        else:
            yield True
    finally:
        os.close(handle)
