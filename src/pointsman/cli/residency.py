"""`audit residency` and `audit verify-residency`: a signed report of where a pipeline's rows were, and its check, offline.

A node's own count of everything that left it lies in its ledger, on the customer's side: `node ledger count` shows it, and with
`--ledger FOLDER` it is shown beside the report, read from that node's folder.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import msgspec
from rich.text import Text

from contracts.envelope import EnvelopeError
from contracts.residency import REPORT_BYTES_MAX, open_report
from pointsman.cli import render
from pointsman.cli.output import output_option
from pointsman.cli.render import Format
from pointsman.cli.target import Target, target_options
from pointsman.problems import CODES, Problem


@click.command("residency")
@click.argument("pipeline")
@click.option("--out", "out", metavar="FILE", help="Write the signed report to FILE, for `audit verify-residency`.")
@click.option("--key", "pinned", metavar="KEY", multiple=True, help="A public key that may have signed it.")
@click.option(
    "--ledger",
    "folders",
    metavar="FOLDER",
    multiple=True,
    help="A node's folder on this machine: show what its ledger says has left it, by type of message.",
)
@target_options
@output_option
def residency(
    pipeline: str,
    out: str | None,
    pinned: Sequence[str],
    folders: Sequence[str],
    target: Target,
    output: Format,
) -> None:
    """Report where a pipeline's rows were: nodes and regions, from where to where, under which policy. Signed and dated."""
    with target.client() as client:
        sealed = client.residency(pipeline)
        keys = frozenset(pinned) or frozenset({str(client.read("/v1/audit/key")["key"])})
    item = _opened(sealed, keys) | ({"ledgers": [_ledger(each) for each in folders]} if folders else {})
    if out is not None:
        Path(out).write_text(sealed + "\n")
    render.print_one(item, output, text=lambda _: _text(item))


@click.command("verify-residency")
@click.argument("file")
@click.option(
    "--key", "pinned", metavar="KEY", multiple=True, required=True, help="A public key that may have signed it."
)
@output_option
def verify_residency(file: str, pinned: Sequence[str], output: Format) -> None:
    """Check a report that `audit residency --out` wrote, and print it. Nobody is asked."""
    try:
        with Path(file).open("rb") as stream:
            raw = stream.read(REPORT_BYTES_MAX + 1)
    except OSError as error:
        raise Problem("system_error", f"{file}: {error.strerror}.", hint=CODES["system_error"][1]) from None
    item = _opened(raw.decode(errors="replace").strip(), frozenset(pinned))
    render.print_one(item, output, text=lambda _: _text(item))


def _opened(sealed: str, keys: frozenset[str]) -> dict[str, Any]:
    try:
        report, checkpoint = open_report(sealed, keys)
    except EnvelopeError as error:
        words = f"The report does not hold: {error}."
        raise Problem("residency_broken", words, hint=CODES["residency_broken"][1]) from None
    head = {"entry": checkpoint.sequence, "at": checkpoint.at, "hash": checkpoint.hash}
    found: dict[str, Any] = msgspec.to_builtins(report)
    return {"ok": True, **found, "head": msgspec.to_builtins(head)}


def _ledger(folder: str) -> dict[str, Any]:
    from dataplane import config
    from dataplane.link.ledger import FOLDER, tallies

    try:
        node = config.read(Path(folder)).node
        counted = tallies(Path(folder) / "link" / FOLDER)
    except (OSError, EOFError, msgspec.DecodeError):
        words = f"No node with a whole ledger lies in {folder}."
        raise Problem("ledger_broken", words, hint=CODES["ledger_broken"][1]) from None
    return {"node": node, "left": {kind: tally.messages for kind, tally in sorted(counted.items())}}


def _text(item: Mapping[str, Any]) -> Text:
    text = Text.assemble((f"Pipeline {render.visible(item['pipeline'])}, as of {item['at']}\n", "bold"))
    for route in item["routes"]:
        until = route.get("until") or "now"
        text.append(f"  {route['since']} until {until}, generation {route['generation']}\n")
        text.append(f"    from {render.visible(route['source'])}\n    to   {render.visible(route['destination'])}\n")
        text.append(f"    {len(route['tables'])} tables, {len(route['masked_or_dropped'])} columns masked or left out")
        text.append(f", signed by {route['customers_key']}\n" if route.get("customers_key") else "\n")
    text.append("Carried by\n")
    for carrier in item["carriers"]:
        where = f" in {carrier['region']}" if carrier.get("region") else ""
        text.append(f"  {carrier['data_plane']}/{carrier['node']}{where}, contract {carrier['contract']}")
        text.append(f", {carrier['since']} to {carrier['last']}\n    policy {carrier.get('policy') or 'not told'}\n")
    crossed = ", ".join(f"{count:,} {kind}" for kind, count in item["crossed"].items()) or "nothing"
    text.append(f"Reported by nodes and kept in the log: {crossed}\n")
    for ledger in item.get("ledgers", ()):
        left = ", ".join(f"{count:,} {kind}" for kind, count in ledger["left"].items()) or "nothing"
        text.append(f"Left node {render.visible(ledger['node'])} in all, by its own ledger: {left}\n")
    if item["left_off"]:
        text.append(f"{item['left_off']} older periods did not fit.\n")
    head = item["head"]
    text.append(f"Made from the audit log up to entry {head['entry']:,}, hash {head['hash']}")
    return text
