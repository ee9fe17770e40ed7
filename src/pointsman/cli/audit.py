"""`audit verify`: check the audit log's chain here, entry by entry, trusting nobody's word but the pinned key's.

How the chain is made and checked is public (`contracts.audit`), so an auditor can write another verifier. A checkpoint
that is kept from one verification to the next shows a history that was written anew and signed again.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import click
import msgspec
from rich.text import Text

from contracts.audit import AuditEntry, Checkpoint, Finding, open_checkpoint
from contracts.audit import verify as verify_chain
from contracts.envelope import PAYLOAD_BYTES_MAX, EnvelopeError
from pointsman.cli import render
from pointsman.cli.output import output_option
from pointsman.cli.render import Format
from pointsman.cli.target import Target, target_options
from pointsman.client import Client
from pointsman.problems import CODES, Problem


@click.group("audit")
def audit() -> None:
    """Check what happened."""


@audit.command("verify")
@click.option(
    "--key", "pinned", metavar="KEY", help="The public key that must have signed the checkpoint. Pin it once."
)
@click.option(
    "--checkpoint",
    "kept",
    metavar="FILE",
    help="Verify against the checkpoint in FILE as well, then keep the new one there.",
)
@target_options
@output_option
def verify(pinned: str | None, kept: str | None, target: Target, output: Format) -> None:
    """Verify the audit log: every entry's hash, the chain, the signed checkpoint. Ends with an error if one is wrong."""
    with target.client() as client:
        item, signed = verified(client, pinned=pinned, earlier=_kept(kept))
    if kept is not None:
        Path(kept).write_text(signed + "\n")
    render.print_one(item, output, text=_text)
    if pinned is None:
        render.say(f"The key came from the same API. To rely on one that you know: --key {item['key']}")


def verified(client: Client, *, pinned: str | None, earlier: str | None) -> tuple[dict[str, Any], str]:
    """Verify a tenant's whole audit log; return what was found, and the signed checkpoint at its head.

    Raises:
        Problem: audit_broken, with every finding.
    """
    # The checkpoint first: entries that arrive meanwhile make the chain longer than it, never shorter.
    signed = client.audit_checkpoint()
    key = pinned or str(client.read("/v1/audit/key")["key"])
    before = None if earlier is None else _open(earlier, key)
    hashes: dict[int, str] = {}
    wanted = 0 if before is None else before.sequence
    result = verify_chain(_noting(_entries(client.audit_entries()), wanted, hashes), signed, key)
    if isinstance(result, list):
        raise broken("The audit log does not hold.", result)
    if before is not None and wanted and hashes.get(wanted) != before.hash:
        raise broken(
            "The audit log is not the one that was verified before.", [Finding(wanted, "has another hash now")]
        )
    item = {
        "ok": True,
        "entries": result.entries,
        "head": result.hash,
        "checkpoint": result.checkpoint,
        "earlier_checkpoint": wanted or None,
        "key": key,
        "key_pinned": pinned is not None,
    }
    return item, signed


def _kept(file: str | None) -> str | None:
    if file is None or not Path(file).exists():
        return None
    return Path(file).read_text()[:PAYLOAD_BYTES_MAX].strip()


def _open(signed: str, key: str) -> Checkpoint:
    try:
        return open_checkpoint(signed, key)
    except EnvelopeError as error:
        raise broken("The checkpoint that was kept is not valid.", [Finding(0, str(error))]) from None


def _entries(items: Iterable[Mapping[str, Any]]) -> Iterator[AuditEntry]:
    for item in items:
        try:
            yield msgspec.convert(item, AuditEntry)
        except msgspec.ValidationError:
            raise broken("The API gave something that is no entry.", []) from None


def _noting(entries: Iterable[AuditEntry], wanted: int, hashes: dict[int, str]) -> Iterator[AuditEntry]:
    """Pass entries on, and note the hash of the one that was vouched for before."""
    for entry in entries:
        if entry.sequence == wanted:
            hashes[wanted] = entry.hash
        yield entry


def broken(message: str, findings: Iterable[Finding]) -> Problem:
    """Return the problem of a log that does not hold."""
    details = [f"entry {each.sequence}: {each.problem}" if each.sequence else each.problem for each in findings]
    return Problem("audit_broken", message, hint=CODES["audit_broken"][1], details=details)


def _text(item: Mapping[str, Any]) -> Text:
    text = Text.assemble(
        ("The audit log holds: ", "bold green"), f"{item['entries']:,} entries, none missing or changed.\n"
    )
    text.append(f"  checkpoint  signed for entry {item['checkpoint']:,}\n  head        {item['head']}\n")
    if item["earlier_checkpoint"]:
        text.append(f"  earlier     entry {item['earlier_checkpoint']:,} is as it was verified before\n")
    text.append(f"  key         {item['key']}")
    return text
