"""The audit log's proof: anyone who holds the entries and a signed checkpoint can verify them, without asking anybody.

Each tenant's events form a chain: an entry's hash covers its own content and the hash before it. A checkpoint is the
hash of one entry, signed by the control plane's signing key. What `verify` finds: entries that were edited, deleted,
inserted or put in another order, and a tail that was cut off. What it cannot find by itself: a control plane that wrote a
whole new history and signed it; for that there are older checkpoints that were kept elsewhere, as every node does.

The control plane's audit projection makes the hashes; `pointsman audit verify` and offline verifiers check them. Pure.
"""

import hashlib
from collections.abc import Iterable, Sequence

import msgspec
from msgspec import Struct

from contracts import envelope
from contracts.envelope import EnvelopeError, Purpose
from contracts.names import Count, Digest, Instant, TenantId

GENESIS = "0" * 64
"""Stands for the hash before a tenant's first entry."""


class AuditEntry(Struct, frozen=True, kw_only=True):
    """One event as the audit log holds it. Every field but `hash` itself is covered by `hash`."""

    sequence: int
    """1 for the tenant's first event, then without a gap."""
    event_id: int
    at: str
    """When it happened: RFC 3339, UTC, as the log wrote it."""
    kind: str
    name: str
    type: str
    actor: str
    payload: str
    """The event's JSON, the very text that is stored."""
    previous: str
    hash: str = ""


class Checkpoint(Struct, frozen=True, kw_only=True):
    """The body that is signed: up to `sequence`, the tenant's chain ends in `hash`."""

    tenant: TenantId
    sequence: Count
    hash: Digest
    at: Instant
    """The time of the entry, so that the same head is always the same checkpoint."""


class Finding(Struct, frozen=True):
    """Something that does not hold. `sequence` is the number of the entry where it shows; 0 if it is none of them."""

    sequence: int
    problem: str


class Verified(Struct, frozen=True, kw_only=True):
    """Every entry is as it was written and none is missing, up to the checkpoint."""

    entries: int
    checkpoint: int
    """The sequence that the checkpoint vouches for; entries after it are only chained."""
    hash: str
    """The hash of the last entry, to be kept."""


def entry_hash(tenant: str, entry: AuditEntry) -> str:
    """Return the SHA-256 in hex over the canonical bytes of an entry: a JSON array in a fixed order."""
    canonical = msgspec.json.encode(
        [
            "pointsman.audit.1",
            tenant,
            entry.sequence,
            entry.event_id,
            entry.at,
            entry.kind,
            entry.name,
            entry.type,
            entry.actor,
            entry.payload,
            entry.previous,
        ]
    )
    return hashlib.sha256(canonical).hexdigest()


def open_checkpoint(sealed: str, key: str | frozenset[str]) -> Checkpoint:
    """Return the checkpoint if `key`, or one of several, signed it.

    Raises:
        EnvelopeError: it is not a checkpoint, or not signed by such a key.
    """
    keys = frozenset({key}) if isinstance(key, str) else key
    raw = envelope.verify(envelope.open_signed(sealed), keys=keys, purpose=Purpose.CHECKPOINT)
    try:
        return msgspec.json.decode(raw, type=Checkpoint)
    except msgspec.DecodeError as error:
        raise EnvelopeError("not a checkpoint") from error


def verify(
    entries: Iterable[AuditEntry], checkpoint: str, key: str | frozenset[str], *, kept: Sequence[str] = ()
) -> Verified | list[Finding]:
    """Check all of a tenant's entries, from the first, in order, against a signed checkpoint.

    Args:
        entries: as the API gives them; consumed once, so any number of them fits.
        checkpoint: the signed envelope's text.
        key: the public half of the key that signs checkpoints, or several, as they were learned from a trusted place.
        kept: older checkpoints that were kept elsewhere; each must still lie on the chain. Whoever has the key can write a
            new history and sign its head, but cannot make it end in a hash that was given out before.

    Returns:
        `Verified`, or every finding (at most FINDINGS_MAX).
    """
    try:
        sealed = open_checkpoint(checkpoint, key)
    except EnvelopeError as error:
        return [Finding(0, f"the checkpoint is not valid: {error}")]
    vouchers, findings = _vouchers(sealed, kept, key)
    met: dict[int, str] = {0: GENESIS}
    expected, previous, last_event = 1, GENESIS, 0
    for entry in entries:
        if len(findings) >= FINDINGS_MAX:
            break
        findings.extend(_check(sealed.tenant, entry, expected, previous, last_event))
        # Go on from what the entry says of itself, so that one fault gives one finding and not one for each that follows.
        expected, previous, last_event = entry.sequence + 1, entry.hash, entry.event_id
        if entry.sequence in vouchers:
            met[entry.sequence] = entry.hash
    for sequence, hash_ in sorted(vouchers.items()):
        if sequence not in met:
            findings.append(Finding(sequence, "the entry that a checkpoint vouches for is missing"))
        elif met[sequence] != hash_:
            findings.append(Finding(sequence, "the hash is not the one that a checkpoint vouches for"))
    if findings:
        return findings[:FINDINGS_MAX]
    return Verified(entries=expected - 1, checkpoint=sealed.sequence, hash=previous)


def _vouchers(
    newest: Checkpoint, kept: Sequence[str], key: str | frozenset[str]
) -> tuple[dict[int, str], list[Finding]]:
    """Return which hash is vouched for at which entry, and what is wrong with the checkpoints among themselves."""
    vouchers, findings = {newest.sequence: newest.hash}, []
    for text in kept:
        try:
            earlier = open_checkpoint(text, key)
        except EnvelopeError as error:
            findings.append(Finding(0, f"a checkpoint that was kept is not valid: {error}"))
            continue
        if earlier.tenant != newest.tenant:
            findings.append(Finding(0, "a checkpoint that was kept is another tenant's"))
        elif vouchers.setdefault(earlier.sequence, earlier.hash) != earlier.hash:
            findings.append(Finding(earlier.sequence, "two checkpoints vouch for different histories"))
    return vouchers, findings[:FINDINGS_MAX]


FINDINGS_MAX = 100


def _check(tenant: str, entry: AuditEntry, expected: int, previous: str, last_event: int) -> Sequence[Finding]:
    """Return what is wrong with one entry, given the one before it."""
    found = []
    if entry.sequence > expected:
        found.append(Finding(entry.sequence, f"entries {expected} to {entry.sequence - 1} are missing before this one"))
    elif entry.sequence < expected:
        found.append(Finding(entry.sequence, "out of order or inserted: this number has passed already"))
    if entry.previous != previous:
        found.append(Finding(entry.sequence, "does not follow from the entry before it"))
    if entry.event_id <= last_event:
        found.append(Finding(entry.sequence, "its event is not newer than the one before it"))
    if entry_hash(tenant, entry) != entry.hash:
        found.append(Finding(entry.sequence, "was edited: its hash does not match its content"))
    return found
