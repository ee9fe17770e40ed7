"""A hundred exports, each tampered with at random, and every one is caught; the true one passes."""

import random
from collections.abc import Callable

import pytest
from msgspec import structs

from contracts import envelope
from contracts.audit import GENESIS, AuditEntry, Checkpoint, Verified, entry_hash, verify
from contracts.envelope import Purpose
from contracts.keys import KeyPair, Role

TENANT = "00000000-0000-5000-8000-000000000001"
KEY = KeyPair.generate(Role.ACCOUNT)
Entries = list[AuditEntry]


def _log(length: int) -> Entries:
    entries: Entries = []
    for sequence in range(1, length + 1):
        entry = AuditEntry(
            sequence=sequence,
            event_id=sequence * 3,
            at=f"2026-01-01T00:00:{sequence % 60:02d}Z",
            kind="Pipeline",
            name=f"orders-{sequence % 7}",
            type="PipelinePaused",
            actor="key:abc",
            payload=f'{{"generation":{sequence}}}',
            previous=entries[-1].hash if entries else GENESIS,
        )
        entries.append(structs.replace(entry, hash=entry_hash(TENANT, entry)))
    return entries


LOG = _log(200)
CHECKPOINT = envelope.sign(
    Checkpoint(tenant=TENANT, sequence=200, hash=LOG[-1].hash, at="2026-01-01T00:00:20Z"),  # type: ignore[arg-type]
    KEY,
    contract=2,
    purpose=Purpose.CHECKPOINT,
).decode()


def _edited(entries: Entries, random_: random.Random) -> Entries:
    at = random_.randrange(len(entries))
    field = random_.choice(("event_id", "at", "kind", "name", "type", "actor", "payload", "previous", "hash"))
    value = getattr(entries[at], field)
    changed = value + 1 if isinstance(value, int) else value[:-1] + chr(ord(value[-1]) ^ 1)
    return [*entries[:at], structs.replace(entries[at], **{field: changed}), *entries[at + 1 :]]


def _deleted(entries: Entries, random_: random.Random) -> Entries:
    at = random_.randrange(len(entries))
    return [*entries[:at], *entries[at + random_.randint(1, 5) :]]


def _inserted(entries: Entries, random_: random.Random) -> Entries:
    at = random_.randrange(len(entries))
    return [*entries[:at], random_.choice(entries), *entries[at:]]


def _reordered(entries: Entries, random_: random.Random) -> Entries:
    first, second = random_.sample(range(len(entries)), 2)
    moved = list(entries)
    moved[first], moved[second] = moved[second], moved[first]
    return moved


def _cut(entries: Entries, random_: random.Random) -> Entries:
    return entries[: random_.randrange(len(entries))]


def _rehashed(entries: Entries) -> Entries:
    """Make every number and hash right again, as a forger who knows how would."""
    forged: Entries = []
    for number, entry in enumerate(entries, start=1):
        previous = forged[-1].hash if forged else GENESIS
        changed = structs.replace(entry, sequence=number, event_id=number * 3, previous=previous)
        forged.append(structs.replace(changed, hash=entry_hash(TENANT, changed)))
    return forged


@pytest.mark.parametrize("tamper", [_edited, _deleted, _inserted, _reordered, _cut], ids=lambda each: each.__name__[1:])
def test_a_tampered_export_is_caught(tamper: Callable[[Entries, random.Random], Entries]) -> None:
    """Twenty at random for each way of tampering, and each again with all hashes made anew."""
    for seed in range(20):
        tampered = tamper(LOG, random.Random(seed))
        assert isinstance(verify(tampered, CHECKPOINT, KEY.public), list), f"seed {seed}"
        forged = _rehashed(tampered)
        if forged != LOG:  # hashes and event ids alone are made right again by that
            assert isinstance(verify(forged, CHECKPOINT, KEY.public), list), f"seed {seed}, forged"


def test_the_true_export_passes() -> None:
    """Nothing is found where nothing was changed."""
    assert verify(LOG, CHECKPOINT, KEY.public) == Verified(entries=200, checkpoint=200, hash=LOG[-1].hash)
