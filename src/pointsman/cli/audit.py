"""`audit verify`, `export` and `replay`: check the audit log's chain here, take it away, and see what held at a moment.

Nobody's word is trusted but the pinned key's. From an export and a checkpoint that was kept elsewhere it all works offline.

How the chain is made and checked is public (`contracts.audit`), so an auditor can write another verifier. A checkpoint
that is kept from one verification to the next shows a history that was written anew and signed again.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import msgspec
from rich.text import Text

from contracts.audit import AuditEntry, Finding, Verified, open_checkpoint
from contracts.audit import verify as verify_chain
from contracts.envelope import open_signed
from pointsman.cli import render, residency
from pointsman.cli.output import output_option
from pointsman.cli.render import Format
from pointsman.cli.target import Target, target_options
from pointsman.client import Client
from pointsman.problems import CODES, Problem

CHECKPOINTS_BYTES_MAX = 8 << 20

_ENTRIES = msgspec.json.Decoder(AuditEntry)


@click.group("audit")
def audit() -> None:
    """Check what happened."""


@audit.command("verify")
@click.option(
    "--key",
    "pinned",
    metavar="KEY",
    multiple=True,
    help="A public key that may have signed checkpoints. Pin it once; give those from before a rotation as well.",
)
@click.option(
    "--checkpoint",
    "kept",
    metavar="FILE",
    help="Verify against all checkpoints in FILE too, a line each, as a node keeps them; then add the new one to them."
    " With --from, only read.",
)
@click.option(
    "--from", "export", metavar="FILE", help="Verify an export in JSON Lines, and ask no API. Needs the others."
)
@target_options
@output_option
def verify(pinned: Sequence[str], kept: str | None, export: str | None, target: Target, output: Format) -> None:
    """Verify the audit log: every entry's hash, the chain, the signed checkpoint. Ends with an error if one is wrong."""
    if export is not None:
        if not pinned or kept is None:
            raise click.UsageError("--from needs --key and --checkpoint: an export cannot vouch for itself.")
        render.print_one(verified_export(Path(export), Path(kept), frozenset(pinned)), output, text=_text)
        return
    earlier = _kept(Path(kept)) if kept is not None and Path(kept).exists() else []
    with target.client() as client:
        item, signed = verified(client, pinned=frozenset(pinned), earlier=earlier)
    if kept is not None and item["checkpoint"] > (item["earlier_checkpoint"] or 0):
        with Path(kept).open("a") as file:
            file.write(signed + "\n")
    render.print_one(item, output, text=_text)
    if not pinned:
        render.say(f"The key came from the same API. To rely on one that you know: --key {item['key']}")


def verified(client: Client, *, pinned: frozenset[str], earlier: Sequence[str]) -> tuple[dict[str, Any], str]:
    """Verify a tenant's whole audit log; return what was found, and the signed checkpoint at its head.

    Raises:
        Problem: audit_broken, with every finding.
    """
    # The checkpoint first: entries that arrive meanwhile make the chain longer than it, never shorter.
    signed = client.audit_checkpoint()
    key = str(client.read("/v1/audit/key")["key"])
    keys = pinned or frozenset({key})
    result = verify_chain(_entries(client.audit_entries()), signed, keys, kept=earlier)
    if isinstance(result, list):
        words = "The audit log is not the one that was kept before." if earlier else "The audit log does not hold."
        raise broken(words, result)
    return _found(result, signed, keys, earlier, pinned=bool(pinned)), signed


def verified_export(export: Path, kept: Path, keys: frozenset[str]) -> dict[str, Any]:
    """Verify an export against checkpoints that were kept elsewhere; return what was found.

    Raises:
        Problem: audit_broken, with every finding; system_error if a file cannot be read.
    """
    checkpoints = _kept(kept)
    newest = checkpoints[-1] if checkpoints else ""
    try:
        with export.open("rb") as lines:
            result = verify_chain(map(_entry, lines), newest, keys, kept=checkpoints[:-1])
    except OSError as error:
        raise Problem("system_error", f"{error.filename}: {error.strerror}.", hint=CODES["system_error"][1]) from None
    if isinstance(result, list):
        raise broken("The export does not hold.", result)
    return _found(result, newest, keys, checkpoints[:-1], pinned=True)


def _found(
    result: Verified, signed: str, keys: frozenset[str], earlier: Sequence[str], *, pinned: bool
) -> dict[str, Any]:
    newest = max((open_checkpoint(each, keys).sequence for each in earlier), default=None)
    return {
        "ok": True,
        "entries": result.entries,
        "head": result.hash,
        "checkpoint": result.checkpoint,
        "earlier_checkpoint": newest,
        "earlier_checkpoints": len(earlier),
        "key": open_signed(signed).key,
        "key_pinned": pinned,
    }


def _kept(path: Path) -> list[str]:
    """Return the checkpoints in a file, oldest first."""
    try:
        with path.open("rb") as file:
            raw = file.read(CHECKPOINTS_BYTES_MAX + 1)
        if len(raw) > CHECKPOINTS_BYTES_MAX:
            raise Problem("system_error", f"{path}: is larger than {CHECKPOINTS_BYTES_MAX >> 20} MiB.")
        return [line.strip() for line in raw.decode().splitlines() if line.strip()]
    except UnicodeDecodeError:
        raise broken("The checkpoint that was kept is not valid.", [Finding(0, "not a signed message")]) from None
    except OSError as error:
        raise Problem("system_error", f"{path}: {error.strerror}.", hint=CODES["system_error"][1]) from None


def _entry(line: bytes) -> AuditEntry:
    try:
        return _ENTRIES.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise broken("The export has a line that is no entry.", []) from None


def _entries(items: Iterable[Mapping[str, Any]]) -> Iterator[AuditEntry]:
    for item in items:
        try:
            yield msgspec.convert(item, AuditEntry)
        except msgspec.ValidationError:
            raise broken("The API gave something that is no entry.", []) from None


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
        many = f" and {item['earlier_checkpoints'] - 1} before it" if item["earlier_checkpoints"] > 1 else ""
        text.append(f"  earlier     entry {item['earlier_checkpoint']:,}{many}: as kept before\n")
    text.append(f"  key         {item['key']}")
    return text


@audit.command("export")
@click.option("--out", "file", required=True, metavar="FILE", help="Where to write, one JSON object a line.")
@click.option("--checkpoint", "kept", metavar="FILE", help="Also write the signed checkpoint of the log's head there.")
@click.option(
    "--format",
    "form",
    type=click.Choice(("jsonl", "ocsf")),
    default="jsonl",
    show_default=True,
    help="jsonl: entries as they are, to be verified. ocsf: for a SIEM, in the Open Cybersecurity Schema Framework.",
)
@click.option(
    "--after", type=click.IntRange(0), default=0, show_default=True, help="Begin behind this sequence number."
)
@target_options
@output_option
def export(file: str, kept: str | None, form: str, after: int, target: Target, output: Format) -> None:
    """Write the audit log to a file. Verify it later, offline, with `audit verify --from`."""
    from pointsman.cli.ocsf import as_ocsf

    count = 0
    with target.client() as client, Path(file).open("wb") as out:
        signed = client.audit_checkpoint()
        tenant = open_checkpoint(signed, str(client.read("/v1/audit/key")["key"])).tenant
        for entry in _entries(client.audit_entries(after=after)):
            out.write(msgspec.json.encode(entry if form == "jsonl" else as_ocsf(entry, tenant)) + b"\n")
            count += 1
    if kept is not None:
        Path(kept).write_text(signed + "\n")
    item = {"entries": count, "file": file, "checkpoint": kept, "format": form}
    render.print_one(item, output, text=lambda _: Text(f"{count:,} entries in {file}"))


@audit.command("replay")
@click.option("--at", required=True, metavar="TIME", help="The moment, such as 2026-01-31T12:00:00Z.")
@target_options
@output_option
def replay(at: str, target: Target, output: Format) -> None:
    """Show everything that was configured at a moment, and what each node had acknowledged by then."""
    with target.client() as client:
        found = client.audit_replay(at)
    render.print_one(found, output, text=_replay_text)


audit.add_command(residency.residency)
audit.add_command(residency.verify_residency)


def _replay_text(found: Mapping[str, Any]) -> Text:
    entry = found["entry"]
    text = Text.assemble((f"As of {found['at']}", "bold"), f", entry {entry['sequence']:,} of the audit log\n")
    for pipeline in found["pipelines"]:
        source, sink = pipeline["source"]["connection"], pipeline["sink"]["connection"]
        text.append(f"  pipeline/{render.visible(pipeline['name'])}  {source} → {sink}, {pipeline['run']}")
        text.append(f", generation {pipeline['generation']}, {len(pipeline['source']['tables'])} tables\n")
        for told in pipeline["acknowledged"]:
            text.append(f"    {told['data_plane']}/{told['node']} acted on generation {told['observed_generation']}")
            text.append(f": {told['phase']}{', ' + told['code'] if told['code'] else ''} since {told['since']}\n")
    for kind in ("connections", "data_planes", "nodes", "api_keys"):
        names = ", ".join(render.visible(str(item["name"])) for item in found[kind]) or "none"
        text.append(f"  {kind.replace('_', ' ')}: {names}\n")
    text.append(f"  hash {entry['hash']}")
    return text
