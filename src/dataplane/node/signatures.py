"""The customer's own signatures: whether the documents that a pipeline runs by have them, and that none older comes back.

In flow a pipeline's document and its two connections, each time the agent looks, and what the policy says of signatures; out
flow violations. For each resource the highest number under which the customer signed it is remembered here, on the node's
disk, so that a control plane that replays an older document, however new it makes it look, is refused after every restart.

Only what the customer signed is remembered, so nobody else can fill the memory. A node that never saw a resource has only
`signed_after` to go by: docs/policy.md says so. Used by the agent, also for its answers to questions.
"""

import hashlib
import logging
import os
from collections.abc import Sequence
from pathlib import Path

import msgspec
from msgspec import Struct

from contracts.codes import Code
from contracts.countersigning import of_document
from contracts.v2 import ConnectionDocument, CustomerSignature, PipelineDocument
from dataplane.policy import DocumentRules, Violation

FILE_NAME = "signatures.json"
RESOURCES_MAX = 20_000
"""Signed resources that are remembered, by kind and name, also those that are gone: their name may come again."""

_log = logging.getLogger(__name__)

Signable = PipelineDocument | ConnectionDocument


class Taken(Struct, frozen=True):
    """The newest signature that was taken under a resource: its number, and the SHA-256 of what was signed."""

    number: int
    digest: str


class Signed(Struct, frozen=True, kw_only=True):
    """What a document says of its signature, and whether that is true. `taken` is what would be remembered of it."""

    kind: str
    name: str
    key: str | None = None
    is_true: bool = False
    taken: Taken = Taken(0, "")


class _File(Struct, frozen=True):
    checksum: str
    body: msgspec.Raw


class Signatures:
    """What one node has taken so far. `judge` decides in memory, `save` makes it durable."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._taken = _load(folder)
        self.unsaved = False
        """Something was taken that is not on the disk yet."""
        self._looked_at: dict[tuple[str, str], tuple[Signable, Signed]] = {}

    def judge(self, rules: DocumentRules, documents: Sequence[Signable]) -> list[Violation]:
        """Return what the policy holds against the signatures under `documents`, and take those that are as they must be."""
        if not rules.signed_by:
            return []
        found = []
        for document in documents:
            signed = self._look_at(document)
            violation = self._check(rules, signed)
            if violation is None:
                self._take(signed)
            else:
                found.append(violation)
        return found

    def save(self) -> None:
        """Write down what was taken since the last time; durable when this returns.

        A disk that is full stops nothing that runs: it is kept in memory, and tried again.
        """
        if self._taken is None:
            return
        self.unsaved = False  # first, because more may be taken while this writes
        try:
            _write(self._folder, dict(self._taken))
        except OSError as error:
            self.unsaved = True
            _log.error("signatures_not_written", extra={"reason": str(error)})

    def _look_at(self, document: Signable) -> Signed:
        """Return what `look_at` says; a document that was looked at before is not computed again each round."""
        place = (type(document).__name__, document.name)
        before = self._looked_at.get(place)
        if before is None or before[0] != document:
            if len(self._looked_at) >= RESOURCES_MAX:
                self._looked_at.clear()
            before = self._looked_at[place] = (document, look_at(document))
        return before[1]

    def _check(self, rules: DocumentRules, signed: Signed) -> Violation | None:
        if self._taken is None:
            return _violation(Code.POLICY_SIGNATURE_OLDER, signed, f"cannot be compared: {FILE_NAME} is damaged")
        known = self._taken.get(_place(signed))
        if known is None and len(self._taken) >= RESOURCES_MAX:
            return _violation(
                Code.POLICY_SIGNATURE_INVALID, signed, f"is new, and {RESOURCES_MAX} are remembered already"
            )
        return check(rules, signed, known)

    def _take(self, signed: Signed) -> None:
        if self._taken is not None and self._taken.get(_place(signed)) != signed.taken:
            self._taken[_place(signed)] = signed.taken
            self.unsaved = True


def look_at(document: Signable) -> Signed:
    """Return what `document` says of its signature, and whether that is true."""
    statement, signature = of_document(document), document.signature
    if not isinstance(signature, CustomerSignature):
        return Signed(kind=statement.kind, name=statement.name)
    digest = hashlib.sha256(statement.text(signature.number)).hexdigest()
    return Signed(
        kind=statement.kind,
        name=statement.name,
        key=signature.key,
        is_true=statement.is_signed_by(signature),
        taken=Taken(signature.number, digest),
    )


def check(rules: DocumentRules, signed: Signed, known: Taken | None) -> Violation | None:
    """Return why a signature does not do, or None if it does. `known` is the newest that was taken of the resource."""
    number = signed.taken.number
    if signed.key is None:
        return _violation(Code.POLICY_SIGNATURE_MISSING, signed, "has no signature of the customer's")
    if signed.key not in rules.signed_by:
        why = f"is signed by {signed.key}, which [documents] does not list"
        return _violation(Code.POLICY_SIGNATURE_INVALID, signed, why)
    if not signed.is_true:
        return _violation(Code.POLICY_SIGNATURE_INVALID, signed, "is not what was signed")
    if rules.signed_after is not None and number <= rules.signed_after.timestamp() * 1000:
        why = f"was not signed after {rules.signed_after.isoformat()}, as [documents] asks"
        return _violation(Code.POLICY_SIGNATURE_OLDER, signed, why)
    if known is not None and number < known.number:
        why = f"was signed under number {number}, and {known.number} was taken before"
        return _violation(Code.POLICY_SIGNATURE_OLDER, signed, why)
    if known is not None and number == known.number and signed.taken.digest != known.digest:
        why = f"is another than the one that was taken under number {number}"
        return _violation(Code.POLICY_SIGNATURE_OLDER, signed, why)
    return None


def _place(signed: Signed) -> str:
    return f"{signed.kind}/{signed.name}"


def _violation(code: Code, signed: Signed, why: str) -> Violation:
    return Violation(code=code, what=f"{signed.kind.lower()} {signed.name} {why}")


def _load(folder: Path) -> dict[str, Taken] | None:
    """Return what was taken before; None if it cannot be read: to go on as if nothing was known would let old ones in."""
    path = folder / FILE_NAME
    try:
        file = msgspec.json.decode(path.read_bytes(), type=_File)
        if hashlib.sha256(file.body).hexdigest() != file.checksum:
            raise ValueError("checksum")
        return msgspec.json.decode(file.body, type=dict[str, Taken])
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        hint = "delete it if you are sure that no older document is offered"
        _log.error("signatures_unreadable", extra={"path": str(path), "reason": str(error), "hint": hint})
        return None


def _write(folder: Path, taken: dict[str, Taken]) -> None:
    body = msgspec.json.encode(taken, order="deterministic")
    folder.mkdir(parents=True, exist_ok=True)
    draft = folder / f".{FILE_NAME}.new"
    with draft.open("wb") as file:
        file.write(msgspec.json.encode(_File(hashlib.sha256(body).hexdigest(), msgspec.Raw(body))) + b"\n")
        file.flush()
        os.fsync(file.fileno())
    draft.replace(folder / FILE_NAME)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
