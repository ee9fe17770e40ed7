"""Whether a node accepts a document: signature, address and order, decided without I/O and once, on arrival.

A document comes in from a subscription, from a sync or from the leaf's store; where from makes no difference. What is
accepted lies in the node's store, from which it boots for ever, so nothing here is asked again for what is stored.
Called by the link, and by `join` for the first trust list.
"""

from enum import Enum

from msgspec import Struct

from contracts import v1, v2
from contracts.envelope import EnvelopeError, Purpose, decode_document, digest, open_signed, verify

Document = v1.AnyDocument | v2.AnyDocument


class Reason(Enum):
    """Why a document was refused: the label of a metric and of a line in the node's log."""

    MALFORMED = "malformed"
    NOT_SIGNED_BY_TRUSTED = "not_signed_by_trusted"
    OTHER_CONTRACT = "other_contract"
    OTHER_TENANT = "other_tenant"
    OTHER_DATA_PLANE = "other_data_plane"
    OLDER = "older"


class Refused(Exception):
    """The document is not accepted; `reason` says why. The text names the document, and quotes nothing of it."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Accepted(Struct, frozen=True):
    """A document that has passed. `text` is the envelope as it arrived, `digest` that of its body."""

    contract: int
    text: str
    raw: bytes
    digest: str
    document: Document


class Expected(Struct, frozen=True, kw_only=True):
    """What a node accepts: its own address, the keys it trusts, and the contract version that it obeys."""

    tenant: str
    data_plane: str
    root_key: str
    contract: int
    trusted: frozenset[str] = frozenset()
    trust_generation: int = 0


def admit(text: bytes | str, expected: Expected) -> Accepted:
    """Return the document of the envelope `text` if it is for this node and properly signed.

    A trust list must be signed by the root key and anything else by a key of the current trust list. Order among
    documents other than the trust list is the store's to judge, which knows what it holds.

    Raises:
        Refused: it is not well-formed, not signed by the right key, or not for this node.
    """
    try:
        signed = open_signed(text)
        is_root = signed.key == expected.root_key
        keys = frozenset((expected.root_key,)) if is_root else expected.trusted
    except EnvelopeError as error:
        raise Refused(Reason.MALFORMED, str(error)) from error
    try:
        raw = verify(signed, keys=keys, purpose=Purpose.DOCUMENT)
    except EnvelopeError as error:
        raise Refused(Reason.NOT_SIGNED_BY_TRUSTED, str(error)) from error
    if signed.contract != expected.contract and not is_root:  # the trust list is the same in every version
        raise Refused(Reason.OTHER_CONTRACT, f"contract version {signed.contract} where {expected.contract} is obeyed")
    try:
        document = decode_document(raw, signed.contract)
    except EnvelopeError as error:
        raise Refused(Reason.MALFORMED, str(error)) from error
    if is_root != isinstance(document, v2.TrustDocument):
        raise Refused(Reason.NOT_SIGNED_BY_TRUSTED, "the root key signs the trust list and nothing else does")
    _check_address(document, expected)
    if isinstance(document, v2.TrustDocument) and document.generation < expected.trust_generation:
        raise Refused(
            Reason.OLDER, f"trust list {document.generation} after trust list {expected.trust_generation} was accepted"
        )
    envelope = text if isinstance(text, str) else text.decode()
    return Accepted(contract=signed.contract, text=envelope, raw=raw, digest=digest(raw), document=document)


def _check_address(document: Document, expected: Expected) -> None:
    if document.tenant != expected.tenant:
        raise Refused(Reason.OTHER_TENANT, "a document of another tenant")
    if document.data_plane != expected.data_plane:
        raise Refused(Reason.OTHER_DATA_PLANE, f"a document for data plane {document.data_plane}")
