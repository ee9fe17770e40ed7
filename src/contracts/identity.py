"""A leaf's identity in TLS: the name in its certificate, and what it signs to get one.

A leaf has two keys: an nkey, which its token at the hub names, and a TLS key, which its certificate names. The name in the
certificate holds the public half of the nkey, and the nkey signs the TLS key before a certificate is given for it. So each
names the other, and neither is of use to somebody who has only one.

A join token pins the root key: whoever has the token knows whose control plane it was made for, whatever network and
proxies lie between, and refuses the answer of any other.

Used by the control plane's authority (names, checks the proof) and by the leaf's owner on the node (makes the proof).
"""

import base64
import binascii
import hashlib
import hmac

from contracts import keys
from contracts.keys import KeyPair
from contracts.names import RESOURCE_NAME_PATTERN, TLS_KEY_PATTERN, matches

TRUST_DOMAIN = "pointsman"
POINT_BYTES = 65
"""An uncompressed point of P-256: 0x04, x, y."""
_PIN_MARK = "."
_PIN_DIGITS = 32
_PURPOSE = "pointsman.certificate\n"


def leaf_uri(tenant: str, data_plane: str, leaf_key: str) -> str:
    """Return the URI that a leaf's certificate holds as its only subject alternative name, in the form of a SPIFFE id.

    Raises:
        ValueError: `data_plane` is not an identifier.
    """
    if not matches(RESOURCE_NAME_PATTERN, data_plane):
        raise ValueError("not an identifier, so no part of a name in a certificate")
    return f"spiffe://{TRUST_DOMAIN}/tenant/{tenant}/data-plane/{data_plane}/leaf/{leaf_key}"


def write_tls_key(point: bytes) -> str:
    """Return a TLS public key as it crosses: its uncompressed point in base64url, unpadded."""
    return base64.urlsafe_b64encode(point).rstrip(b"=").decode()


def read_tls_key(text: str) -> bytes:
    """Return the point of a TLS public key. Whether it lies on the curve is for the reader's library to say.

    Raises:
        ValueError: it has not the form that `write_tls_key` gives.
    """
    try:
        point = base64.urlsafe_b64decode(text + "=") if matches(TLS_KEY_PATTERN, text) else b""
    except binascii.Error:
        point = b""
    if len(point) != POINT_BYTES:
        raise ValueError("not a TLS public key")
    return point


def prove(leaf: KeyPair, tls_key: str) -> str:
    """Return the leaf's signature that `tls_key` is its own: without it nobody gets a certificate in the leaf's name."""
    signature = leaf.sign(_signed(leaf.public, tls_key))
    return base64.urlsafe_b64encode(signature).rstrip(b"=").decode()


def is_proven(leaf_key: str, tls_key: str, proof: str) -> bool:
    """Say whether `proof` is the signature of the leaf with the public key `leaf_key` that `tls_key` is its own."""
    try:
        signature = base64.urlsafe_b64decode(proof + "==")
    except (binascii.Error, ValueError):
        return False
    return keys.verify(leaf_key, _signed(leaf_key, tls_key), signature)


def pinned(token: str, root_key: str) -> str:
    """Return a join token with the pin of the root key behind it."""
    return f"{token}{_PIN_MARK}{_pin(root_key)}"


def split_pin(token: str) -> tuple[str, str | None]:
    """Return a join token without its pin, and the pin, if it has one."""
    before, mark, pin = token.partition(_PIN_MARK)
    return before, pin if mark else None


def is_pinned(pin: str, root_key: str) -> bool:
    """Say whether `pin` is that of `root_key`."""
    return hmac.compare_digest(pin.encode(), _pin(root_key).encode())


def _pin(root_key: str) -> str:
    return hashlib.sha256(root_key.encode()).hexdigest()[:_PIN_DIGITS]


def _signed(leaf_key: str, tls_key: str) -> bytes:
    return f"{_PURPOSE}{leaf_key}\n{tls_key}".encode()
