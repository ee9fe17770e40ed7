"""The customer's own signature, looked at before it is passed on: a node would refuse a wrong one, but later and elsewhere.

Only nodes decide whose signature counts. Here a signature that is not under what it came with is refused at once, and so is
one that a node would take for a replay. Pure; called by the commands that configure pipelines and connections.
"""

from msgspec import UNSET, UnsetType

from contracts.countersigning import Statement
from contracts.v2 import CustomerSignature
from controlplane.refusals import refused_at

SIGNATURE_GONE = (
    "The customer's signature is gone with this change. Nodes whose policy asks for one will refuse the document: apply it"
    " with `pointsman apply --sign`."
)


def check(
    statement: Statement, signature: CustomerSignature | UnsetType, before: CustomerSignature | UnsetType
) -> list[str]:
    """Return warnings about what is about to be written under `signature`, where `before` stood until now.

    Raises:
        Refused: signature_invalid.
    """
    if signature is UNSET:
        return [SIGNATURE_GONE] if before is not UNSET else []
    if not statement.is_signed_by(signature):
        raise refused_at("signature_invalid", "/signature", "is not under what this document says")
    if before is not UNSET and signature != before and signature.number <= before.number:
        raise refused_at("signature_invalid", "/signature/number", f"is not above {before.number}")
    return []
