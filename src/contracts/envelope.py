"""Signed messages: how a document comes down and how a report goes up.

The signature covers the exact bytes of the body, the contract version and a purpose, so that one can never pass for
another: a document of version 2 read as version 1 could lose a transform. The body says itself which tenant, data
plane, kind, name and generation it is for (documents), or which node and sequence (reports).
A digest is over the body alone: signing the same generation again with a newer key changes nothing for a node.

Used by the channel projection (sign), the node's link (verify, sign) and the consumer of reports (verify).
"""

import hashlib
from base64 import urlsafe_b64decode, urlsafe_b64encode
from enum import Enum
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from contracts import CONTRACTS_SPOKEN, v1, v2
from contracts import keys as nkey
from contracts.keys import KeyPair
from contracts.names import PublicKey, Signature

PAYLOAD_BYTES_MAX = 64 * 1024
"""The bound on any message of the channel; the hub enforces it too."""


class Purpose(Enum):
    """What a signature is for: a part of what is signed."""

    DOCUMENT = b"pointsman.document\n"
    REPORT = b"pointsman.report\n"
    CHECKPOINT = b"pointsman.checkpoint\n"
    RESIDENCY = b"pointsman.residency\n"


class Signed(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A body, who signed it, and the signature. `body` is kept as the very bytes that were signed."""

    contract: Annotated[int, Meta(ge=1, le=99)]
    key: PublicKey
    signature: Signature
    body: msgspec.Raw


class EnvelopeError(ValueError):
    """A message that is too large, not well-formed, or not signed by the key that was expected."""


def sign(
    body: Struct, key_pair: KeyPair, *, contract: int, purpose: Purpose, bytes_max: int = PAYLOAD_BYTES_MAX
) -> bytes:
    """Return `body` encoded and signed. What never travels on the channel may be larger: `bytes_max`.

    Raises:
        EnvelopeError: the result would be larger than `bytes_max`.
    """
    raw = msgspec.json.encode(body)
    return sign_bytes(raw, key_pair, contract=contract, purpose=purpose, bytes_max=bytes_max)


def sign_bytes(
    raw: bytes, key_pair: KeyPair, *, contract: int, purpose: Purpose, bytes_max: int = PAYLOAD_BYTES_MAX
) -> bytes:
    """Return an already encoded body, signed. It is how a stored document is signed again after a key rotation."""
    signature = urlsafe_b64encode(key_pair.sign(_signed_bytes(raw, contract, purpose))).rstrip(b"=").decode()
    sealed = msgspec.json.encode(
        Signed(contract=contract, key=key_pair.public, signature=signature, body=msgspec.Raw(raw))
    )
    if len(sealed) > bytes_max:
        raise EnvelopeError(f"message of {len(sealed)} bytes is over the limit of {bytes_max}")
    return sealed


def open_signed(data: bytes | str, *, bytes_max: int = PAYLOAD_BYTES_MAX) -> Signed:
    """Decode an envelope without verifying it.

    Raises:
        EnvelopeError: too large or not an envelope.
    """
    raw = data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data
    if len(raw) > bytes_max:
        raise EnvelopeError(f"message of {len(raw)} bytes is over the limit of {bytes_max}")
    try:
        return _DECODER.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise EnvelopeError("not a signed message") from error


def verify(signed: Signed, *, keys: frozenset[str], purpose: Purpose) -> bytes:
    """Return the body's bytes if one of `keys` signed them for `purpose`.

    Raises:
        EnvelopeError: the key is not one of `keys`, or the signature is wrong.
    """
    if signed.key not in keys:
        raise EnvelopeError("signed by a key that is not trusted")
    raw = bytes(signed.body)
    if not nkey.verify(
        signed.key,
        _signed_bytes(raw, signed.contract, purpose),
        urlsafe_b64decode(signed.signature + "=="),
    ):
        raise EnvelopeError("the signature does not match the message")
    return raw


def _signed_bytes(raw: bytes, contract: int, purpose: Purpose) -> bytes:
    return b"%b%d\n%b" % (purpose.value, contract, raw)


def digest(raw: bytes) -> str:
    """Return the digest of a body: SHA-256 in hex."""
    return hashlib.sha256(raw).hexdigest()


def decode_document(raw: bytes, contract: int) -> v1.AnyDocument | v2.AnyDocument:
    """Decode the body of a document of `contract`, tolerating unknown fields.

    Raises:
        EnvelopeError: it is not a document of that contract version.
    """
    _check_spoken(contract)
    try:
        return _DOCUMENTS_1.decode(raw) if contract == v1.CONTRACT else _DOCUMENTS_2.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise EnvelopeError(f"not a document of contract version {contract}") from error


def kind_of(document: v1.AnyDocument | v2.AnyDocument) -> v2.Kind:
    """Return what `document` describes; one that stands in for another counts as that other."""
    match document:
        case v2.RequiresDocument():
            return document.of
        case v2.TrustDocument():
            return v2.Kind.TRUST
        case v2.IndexDocument():
            return v2.Kind.INDEX
        case v2.ConnectionDocument():
            return v2.Kind.CONNECTION
        case _:
            return v2.Kind.PIPELINE


def decode_report(raw: bytes, contract: int) -> v1.Report | v2.Report:
    """Decode the body of a report of `contract`, forbidding unknown fields.

    Raises:
        EnvelopeError: it is not a report of that contract version.
    """
    _check_spoken(contract)
    try:
        return _REPORTS_1.decode(raw) if contract == v1.CONTRACT else _REPORTS_2.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise EnvelopeError(f"not a report of contract version {contract}") from error


def _check_spoken(contract: int) -> None:
    if contract not in CONTRACTS_SPOKEN:
        raise EnvelopeError(f"contract version {contract} is not spoken here")


_DECODER = msgspec.json.Decoder(Signed)
_DOCUMENTS_1: msgspec.json.Decoder[v1.AnyDocument] = msgspec.json.Decoder(v1.AnyDocument)
_DOCUMENTS_2: msgspec.json.Decoder[v2.AnyDocument] = msgspec.json.Decoder(v2.AnyDocument)
_REPORTS_1 = msgspec.json.Decoder(v1.Report)
_REPORTS_2 = msgspec.json.Decoder(v2.Report)
