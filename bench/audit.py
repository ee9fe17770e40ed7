"""How fast an auditor verifies an export: entries a second, decoded from JSON Lines, hashed and chained.

`python -m bench.audit [--entries N] [--runs N]`. Called by `just bench audit`.
"""

import argparse
import statistics
import time

import msgspec
from bench.summary import tell
from msgspec import structs

from contracts import envelope
from contracts.audit import GENESIS, AuditEntry, Checkpoint, Verified, entry_hash, verify
from contracts.envelope import Purpose
from contracts.keys import KeyPair, Role

TENANT = "00000000-0000-5000-8000-000000000001"


def main() -> None:
    """Make an export in memory, verify it several times, and print the median."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--entries", type=int, default=200_000)
    parser.add_argument("--runs", type=int, default=5)
    asked = parser.parse_args()
    lines, checkpoint, key = _export(asked.entries)
    decode = msgspec.json.Decoder(AuditEntry).decode
    seconds = []
    for _ in range(asked.runs):
        began = time.perf_counter()
        result = verify(map(decode, lines), checkpoint, key)
        seconds.append(time.perf_counter() - began)
        if not isinstance(result, Verified):
            raise SystemExit("the export does not verify")
    tell("audit: entries/s", [asked.entries / each for each in seconds])
    print(f"{asked.entries / statistics.median(seconds):,.0f} entries/s (median of {asked.runs})")


def _export(count: int) -> tuple[list[bytes], str, str]:
    lines = []
    previous = GENESIS
    payload = msgspec.json.encode({"actor": "key:abc", "generation": 7, "source": {"tables": ["public.orders"] * 10}})
    for sequence in range(1, count + 1):
        entry = AuditEntry(
            sequence=sequence,
            event_id=sequence,
            at="2026-01-01T00:00:00Z",
            kind="Pipeline",
            name="orders",
            type="PipelineConfigured",
            actor="key:abc",
            payload=payload.decode(),
            previous=previous,
        )
        entry = structs.replace(entry, hash=entry_hash(TENANT, entry))
        previous = entry.hash
        lines.append(msgspec.json.encode(entry))
    key = KeyPair.generate(Role.ACCOUNT)
    head = msgspec.convert(
        {"tenant": TENANT, "sequence": count, "hash": previous, "at": "2026-01-01T00:00:00Z"}, Checkpoint
    )
    signed = envelope.sign(head, key, contract=2, purpose=Purpose.CHECKPOINT).decode()
    return lines, signed, key.public


if __name__ == "__main__":
    main()
