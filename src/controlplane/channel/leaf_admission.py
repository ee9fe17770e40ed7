"""Whether a leaf that connects to the hub may: its certificate and its token must be of one and the same leaf.

The hub checks that a certificate was signed by one of our authorities, and asks here before it lets anybody into a tenant's
account; it asks even about a leaf whose token it would have refused. So everything is decided here, and refused unless
proven: the token is the one that this account gives to the leaf of that key, the leaf has signed the hub's nonce with that
key, it is enrolled and not revoked, and the certificate that it showed names that tenant, data plane and key.

The hub is told to let it in until the certificate expires, and cuts it then. While the control plane is away no leaf can
connect, and none that is connected is cut: configuration waits, data does not know. Runs on a thread, called by the service.
"""

import datetime as dt
import logging
from base64 import urlsafe_b64decode
from enum import Enum
from typing import Any

import msgspec
import psycopg
from msgspec import Struct

from contracts import identity, keys
from controlplane.channel import jwt
from controlplane.channel.accounts import Accounts
from controlplane.channel.authority import Authority, Shown
from controlplane.channel.directory import Directory, KnownLeaf, find_leaf

_log = logging.getLogger(__name__)


class Kept(Enum):
    """Why a leaf was kept out. The value is the label of a metric and stands in the hub's log and in the leaf's."""

    NOT_A_LEAF = "not_a_leaf"
    BAD_TOKEN = "bad_token"
    BAD_SIGNATURE = "bad_signature"
    NOT_ENROLLED = "not_enrolled"
    REVOKED = "revoked"
    NO_CERTIFICATE = "no_certificate"
    OTHER_CERTIFICATE = "other_certificate"


class _Server(Struct):
    id: str


class _ClientInfo(Struct):
    kind: str = ""
    nonce: str = ""


class _ConnectOptions(Struct):
    jwt: str = ""
    sig: str = ""


class _ClientTls(Struct):
    verified_chains: list[list[str]] = []


class _Asked(Struct):
    server_id: _Server
    user_nkey: str
    client_info: _ClientInfo = msgspec.field(default_factory=_ClientInfo)
    connect_opts: _ConnectOptions = msgspec.field(default_factory=_ConnectOptions)
    client_tls: _ClientTls = msgspec.field(default_factory=_ClientTls)


class LeafAdmission:
    """Answers the hub's questions."""

    def __init__(self, accounts: Accounts, authorities: tuple[Authority, ...], directory: Directory) -> None:
        self._accounts = accounts
        self._authorities = authorities
        self._directory = directory

    def answer(
        self, connection: psycopg.Connection[tuple[Any, ...]], account: str, data: bytes, now: dt.datetime
    ) -> tuple[bytes, Kept | None] | None:
        """Return what to answer about a leaf that connects to `account`, and why it is kept out, if it is.

        None for a question that cannot be answered: from an account that is no tenant's, or one that nobody can read.
        """
        tenant = self._directory.tenant_of(connection, account)
        try:
            asked = msgspec.convert(jwt.read(data.decode())[0].get("nats"), _Asked)
        except (ValueError, msgspec.ValidationError):
            return None
        if tenant is None:
            return None
        leaf_key = _token_subject(account, asked.connect_opts.jwt, self._accounts.issuers(tenant))
        if isinstance(leaf_key, Kept):
            return self._keep_out(tenant, asked, leaf_key)
        enrolled = find_leaf(connection, tenant, leaf_key)
        found = judge(tenant, leaf_key, asked, enrolled, self._authorities, now)
        if isinstance(found, Kept) or enrolled is None:
            return self._keep_out(tenant, asked, found if isinstance(found, Kept) else Kept.NOT_ENROLLED)
        text = self._accounts.let_in(
            tenant, enrolled.data_plane, leaf_key, asked.user_nkey, asked.server_id.id, until=int(found.timestamp())
        )
        return text.encode(), None

    def _keep_out(self, tenant: str, asked: _Asked, why: Kept) -> tuple[bytes, Kept]:
        _log.warning("a leaf of tenant %s was kept out: %s", tenant, why.value)
        return self._accounts.keep_out(tenant, asked.user_nkey, asked.server_id.id, why.value).encode(), why


def _token_subject(account: str, token: str, issuers: tuple[str, ...]) -> str | Kept:
    """Return the leaf's key that a token names, if one of the account's keys that are still good made it for a user."""
    try:
        claims, signed, signature = jwt.read(token)
    except ValueError:
        return Kept.BAD_TOKEN
    nats = claims.get("nats")
    subject = claims.get("sub")
    issuer = claims.get("iss")
    if not isinstance(nats, dict) or nats.get("type") != "user" or not isinstance(subject, str):
        return Kept.BAD_TOKEN
    if issuer not in issuers or nats.get("issuer_account", issuer) != account:
        return Kept.BAD_TOKEN
    return subject if keys.verify(issuer, signed, signature) else Kept.BAD_TOKEN


def judge(
    tenant: str,
    leaf_key: str,
    asked: _Asked,
    enrolled: KnownLeaf | None,
    authorities: tuple[Authority, ...],
    now: dt.datetime,
) -> dt.datetime | Kept:
    """Return until when the leaf may stay, or why it is kept out. Its token has been checked and names `leaf_key`."""
    if asked.client_info.kind != "Leafnode":
        return Kept.NOT_A_LEAF
    if not _has_signed(leaf_key, asked.client_info.nonce, asked.connect_opts.sig):
        return Kept.BAD_SIGNATURE
    if enrolled is None:
        return Kept.NOT_ENROLLED
    if enrolled.revoked:
        return Kept.REVOKED
    chains = asked.client_tls.verified_chains
    if not chains or not chains[0]:
        return Kept.NO_CERTIFICATE
    try:
        shown = Shown(chains[0][0])
    except ValueError:
        return Kept.OTHER_CERTIFICATE
    uri = identity.leaf_uri(tenant, enrolled.data_plane, leaf_key)
    return shown.not_after if shown.is_for(uri, authorities, now) else Kept.OTHER_CERTIFICATE


def _has_signed(leaf_key: str, nonce: str, signature: str) -> bool:
    try:
        raw = urlsafe_b64decode(signature + "=" * (-len(signature) % 4))
    except ValueError:
        return False
    return bool(nonce) and keys.verify(leaf_key, nonce.encode(), raw)
