"""Secrets that are shown once: API keys, join tokens and the vendor operator's key, in the form that people paste.

They are derived from the control plane's master key and a random number that is stored, so that a request repeated
under the same Idempotency-Key gets the very same secret, while what is stored opens nothing by itself.
"""

import hashlib
import hmac
from base64 import urlsafe_b64encode
from pathlib import Path

from msgspec import Struct

from contracts import identity
from contracts.names import RESOURCE_NAME_PATTERN, matches

KEY_ID_PATTERN = r"^[0-9a-f]{16}$(?!\n)"
_TENANT_HEX_PATTERN = r"^[0-9a-f]{32}$(?!\n)"
_SECRET_PATTERN = r"^[A-Za-z0-9_-]{20,128}$(?!\n)"


class ApiKeyText(Struct, frozen=True):
    """An API key taken apart. `secret` never goes into a log, an event or an error."""

    key_id: str
    secret: str

    def __repr__(self) -> str:
        return f"ApiKeyText({self.key_id})"


class JoinTokenText(Struct, frozen=True):
    """A join token taken apart. It says itself whose it is, because a node has no key when it joins."""

    tenant: str
    data_plane: str
    secret: str

    def __repr__(self) -> str:
        return f"JoinTokenText({self.tenant}, {self.data_plane})"


class SecretMaker:
    """Derives secrets from the master key."""

    def __init__(self, master_key: bytes) -> None:
        if len(master_key) != 32:
            raise ValueError("the master key has 32 bytes")
        self._master_key = master_key

    @classmethod
    def from_file(cls, file: Path) -> "SecretMaker":
        """Read the master key, 64 hex characters.

        Raises:
            OSError: the file cannot be read.
            ValueError: it has another form.
        """
        return cls(bytes.fromhex(file.read_text().strip()))

    def api_key(self, tenant: str, nonce: str) -> ApiKeyText:
        """Return the API key that belongs to a nonce."""
        return ApiKeyText(self._derive("api-key-id", tenant, nonce).hex()[:16], self._text("api-key", tenant, nonce))

    def member_id(self, tenant: str, nonce: str) -> str:
        """Return the id of the member that belongs to a nonce: 16 hex characters that say nothing of the person."""
        return self._derive("member-id", tenant, nonce).hex()[:16]

    def join_token(self, tenant: str, data_plane: str, nonce: str) -> JoinTokenText:
        """Return the join token that belongs to a nonce."""
        return JoinTokenText(tenant, data_plane, self._text(f"join-token/{data_plane}", tenant, nonce))

    def cursor_key(self) -> bytes:
        """Return the key that signs pagination cursors."""
        return self._derive("cursor", "", "")

    def _derive(self, purpose: str, tenant: str, nonce: str) -> bytes:
        return hmac.digest(self._master_key, f"pointsman.api\n{purpose}\n{tenant}\n{nonce}".encode(), "sha256")

    def _text(self, purpose: str, tenant: str, nonce: str) -> str:
        return urlsafe_b64encode(self._derive(purpose, tenant, nonce)).rstrip(b"=").decode()


def hash_of(secret: str) -> str:
    """Return what is stored of a secret: SHA-256 in hex. Secrets are random, so no slow hash is needed."""
    return hashlib.sha256(secret.encode()).hexdigest()


def is_secret_of(secret: str, stored_hash: str) -> bool:
    """Say in constant time whether `stored_hash` is that of `secret`."""
    return hmac.compare_digest(hash_of(secret), stored_hash)


def write_api_key(key: ApiKeyText) -> str:
    """Return the key as people paste it: `pm_<id>_<secret>`."""
    return f"pm_{key.key_id}_{key.secret}"


def read_api_key(text: str) -> ApiKeyText | None:
    """Take an API key apart; None if it has not the form of one."""
    prefix, _, rest = text.partition("_")
    key_id, _, secret = rest.partition("_")
    if prefix != "pm" or not matches(KEY_ID_PATTERN, key_id) or not matches(_SECRET_PATTERN, secret):
        return None
    return ApiKeyText(key_id, secret)


def write_join_token(token: JoinTokenText, root_key: str) -> str:
    """Return the token as people paste it: `pmj_<tenant>_<data plane>_<secret>.<pin of the root key>`."""
    text = f"pmj_{token.tenant.replace('-', '')}_{token.data_plane}_{token.secret}"
    return identity.pinned(text, root_key)


def read_join_token(text: str) -> JoinTokenText | None:
    """Take a join token apart; None if it has not the form of one. The pin in it is for the node, which checks it."""
    parts = identity.split_pin(text)[0].split("_", 3)
    if len(parts) != 4 or parts[0] != "pmj" or not matches(_TENANT_HEX_PATTERN, parts[1]):
        return None
    if not matches(RESOURCE_NAME_PATTERN, parts[2]) or not matches(_SECRET_PATTERN, parts[3]):
        return None
    tenant = "-".join((parts[1][:8], parts[1][8:12], parts[1][12:16], parts[1][16:20], parts[1][20:]))
    return JoinTokenText(tenant, parts[2], parts[3])
