"""NATS's own JSON web tokens: what an operator, an account or a user may do, signed with nkeys.

Claims go in as plain values, a token comes out. Nothing is read, kept or sent here. `accounts` decides what is claimed.
Everything is an allow-list: what a claim does not name is not allowed.
"""

import binascii
import hashlib
from base64 import b32encode, urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from msgspec import Struct

from contracts.envelope import PAYLOAD_BYTES_MAX
from contracts.keys import KeyPair

_HEADER = b'{"typ":"JWT","alg":"ed25519-nkey"}'
_VERSION = 2
ADMISSION_SUBJECT = "$SYS.REQ.USER.AUTH"
"""Where the hub asks, within an account, whether a user that connects to it may."""
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
    admitting_user: str | None = None,
    signing_keys: Sequence[str] = (),
) -> str:
    """Return an account's token. `revoked` maps users' public keys to the time before which their tokens are void.

    With an `admitting_user` the hub asks about every user that connects to the account but that one, on the account's
    own `ADMISSION_SUBJECT`; only who answers there lets anybody in. `signing_keys` may sign users beside the account itself.
    """
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
        "authorization": {"auth_users": [admitting_user]} if admitting_user is not None else {},
    }
    if signing_keys:
        claims["signing_keys"] = list(signing_keys)
    if exports:
        claims["exports"] = list(exports)
    if imports:
        claims["imports"] = list(imports)
    if revoked:
        claims["revocations"] = dict(sorted(revoked.items()))
    return _token(public_key, signer, name, claims, issued_at)


def user(
    public_key: str,
    signer: KeyPair,
    name: str,
    permissions: Permissions,
    *,
    issued_at: int,
    expires_at: int | None = None,
    of_account: str | None = None,
) -> str:
    """Return a user's token, signed by its account, or by a signing key of the account `of_account`. The hub cuts the user's connection at `expires_at`.

    One that is kept in a file does not expire: an expired one would cut configuration.
    """
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
    if of_account is not None:
        claims["issuer_account"] = of_account
    return _token(public_key, signer, name, claims, issued_at, expires_at=expires_at)


def admitted(user_key: str, server: str, signer: KeyPair, token: str, *, issued_at: int) -> str:
    """Return the answer that lets in the user for whom the hub `server` made `user_key`, with what `token` allows."""
    claims = {"type": "authorization_response", "jwt": token}
    return _token(user_key, signer, "admitted", claims, issued_at, audience=server)


def refused(user_key: str, server: str, signer: KeyPair, reason: str, *, issued_at: int) -> str:
    """Return the answer that keeps a user out. `reason` goes into the hub's log and to the user."""
    claims = {"type": "authorization_response", "error": reason}
    return _token(user_key, signer, "refused", claims, issued_at, audience=server)


def read(token: str) -> tuple[dict[str, Any], bytes, bytes]:
    """Return a token's claims, the bytes that are signed, and the signature, which is not checked here.

    Raises:
        ValueError: it is not a token of NATS. Any algorithm but NATS's own is refused, whatever the header says of it.
    """
    head, _, rest = token.partition(".")
    body, _, signature = rest.partition(".")
    if head.encode() != _base64(_HEADER):
        raise ValueError("not a token of NATS")
    try:
        claims = msgspec.json.decode(_unbase64(body), type=dict[str, Any])
        return claims, f"{head}.{body}".encode(), _unbase64(signature)
    except (msgspec.DecodeError, UnicodeDecodeError, binascii.Error) as error:
        raise ValueError("not a token of NATS") from error


def credentials(token: str, seed: str) -> str:
    """Return the text of a credentials file. It holds a secret: write it for its owner only."""
    return (
        f"-----BEGIN NATS USER JWT-----\n{token}\n------END NATS USER JWT------\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
    )


def _token(
    subject: str,
    signer: KeyPair,
    name: str,
    claims: dict[str, Any],
    issued_at: int,
    *,
    expires_at: int | None = None,
    audience: str | None = None,
) -> str:
    payload: dict[str, Any] = {
        **({"aud": audience} if audience is not None else {}),
        **({"exp": expires_at} if expires_at is not None else {}),
        "iat": issued_at,
        "iss": signer.public,
        "name": name,
        "nats": {**claims, "version": _VERSION},
        "sub": subject,
    }
    payload["jti"] = b32encode(hashlib.sha256(msgspec.json.encode(payload)).digest()).rstrip(b"=").decode()
    signed = _base64(_HEADER) + b"." + _base64(msgspec.json.encode(payload))
    return (signed + b"." + _base64(signer.sign(signed))).decode()


def _unbase64(text: str) -> bytes:
    return urlsafe_b64decode(text + "=" * (-len(text) % 4))


def _base64(raw: bytes) -> bytes:
    return urlsafe_b64encode(raw).rstrip(b"=")
