"""NATS's own JSON web tokens: what an operator, an account or a user may do, signed with nkeys.

Claims go in as plain values, a token comes out. Nothing is read, kept or sent here. `accounts` decides what is claimed.
Everything is an allow-list: what a claim does not name is not allowed.
"""

import hashlib
from base64 import b32encode, urlsafe_b64encode
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from msgspec import Struct

from contracts.envelope import PAYLOAD_BYTES_MAX
from contracts.keys import KeyPair

_HEADER = b'{"typ":"JWT","alg":"ed25519-nkey"}'
_VERSION = 2
UNLIMITED = -1


class Limits(Struct, frozen=True, kw_only=True):
    """How much of a hub one account may use. JetStream is in no account: the hub stores nothing."""

    connections: int
    leaves: int
    subscriptions: int = 20_000
    payload_bytes: int = PAYLOAD_BYTES_MAX


class Permissions(Struct, frozen=True, kw_only=True):
    """The subjects that a user may publish on and subscribe to. `replies` allows one answer to each request it gets."""

    publish: Sequence[str]
    subscribe: Sequence[str]
    replies: bool = False
    connection_types: Sequence[str] = ()
    """`STANDARD` or `LEAFNODE`; none named means any."""


def operator(key: KeyPair, *, system_account: str, issued_at: int) -> str:
    """Return the operator's own token. `issued_at` is in seconds since 1970, here as everywhere below."""
    return _token(key.public, key, "pointsman", {"type": "operator", "system_account": system_account}, issued_at)


def account(
    public_key: str,
    signer: KeyPair,
    name: str,
    *,
    limits: Limits,
    issued_at: int,
    exports: Sequence[Mapping[str, Any]] = (),
    imports: Sequence[Mapping[str, Any]] = (),
    revoked: Mapping[str, int] | None = None,
) -> str:
    """Return an account's token. `revoked` maps users' public keys to the time before which their tokens are void."""
    claims: dict[str, Any] = {
        "type": "account",
        "limits": {
            "subs": limits.subscriptions,
            "data": UNLIMITED,
            "payload": limits.payload_bytes,
            "imports": UNLIMITED,
            "exports": UNLIMITED,
            "wildcards": True,
            "conn": limits.connections,
            "leaf": limits.leaves,
            "disallow_bearer": True,
        },
        "default_permissions": {"pub": {}, "sub": {}},
        "authorization": {},
    }
    if exports:
        claims["exports"] = list(exports)
    if imports:
        claims["imports"] = list(imports)
    if revoked:
        claims["revocations"] = dict(sorted(revoked.items()))
    return _token(public_key, signer, name, claims, issued_at)


def user(public_key: str, signer: KeyPair, name: str, permissions: Permissions, *, issued_at: int) -> str:
    """Return a user's token, signed by its account. It does not expire: an expired one would cut configuration."""
    claims: dict[str, Any] = {
        "type": "user",
        "pub": {"allow": list(permissions.publish)},
        "sub": {"allow": list(permissions.subscribe)},
        "subs": UNLIMITED,
        "data": UNLIMITED,
        "payload": PAYLOAD_BYTES_MAX,
    }
    if permissions.replies:
        claims["resp"] = {"max": 1, "ttl": 60_000_000_000}
    if permissions.connection_types:
        claims["allowed_connection_types"] = list(permissions.connection_types)
    return _token(public_key, signer, name, claims, issued_at)


def credentials(token: str, seed: str) -> str:
    """Return the text of a credentials file. It holds a secret: write it for its owner only."""
    return (
        f"-----BEGIN NATS USER JWT-----\n{token}\n------END NATS USER JWT------\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
    )


def _token(subject: str, signer: KeyPair, name: str, claims: dict[str, Any], issued_at: int) -> str:
    payload: dict[str, Any] = {
        "iat": issued_at,
        "iss": signer.public,
        "name": name,
        "nats": {**claims, "version": _VERSION},
        "sub": subject,
    }
    payload["jti"] = b32encode(hashlib.sha256(msgspec.json.encode(payload)).digest()).rstrip(b"=").decode()
    signed = _base64(_HEADER) + b"." + _base64(msgspec.json.encode(payload))
    return (signed + b"." + _base64(signer.sign(signed))).decode()


def _base64(raw: bytes) -> bytes:
    return urlsafe_b64encode(raw).rstrip(b"=")
