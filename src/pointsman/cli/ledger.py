"""`node ledger …`: what has left this machine for the control plane, read from the node's own disk. No API is asked.

The customer runs it beside the node. Everything is printed as it left: the reports are the closed messages of `contracts`.
"""

import json
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec
from rich.text import Text

from pointsman.cli import render
from pointsman.cli.output import output_option
from pointsman.cli.render import Column, Format
from pointsman.problems import CODES, Exit, Problem

T = TypeVar("T")

LIST_DEFAULT = 20
LIST_MAX = 10_000

_folder = click.option("--folder", required=True, metavar="FOLDER", help="The node's folder.")


@click.group("ledger")
def ledger() -> None:
    """Show and check everything that has left this node for the control plane."""


@ledger.command("list")
@_folder
@click.option("--type", "kind", metavar="TYPE", help="Only messages of this type, such as heartbeat or schema-seen.")
@click.option("--after", type=click.IntRange(0), help="Begin behind this number.  [default: the newest ones]")
@click.option("--limit", type=click.IntRange(1, LIST_MAX), default=LIST_DEFAULT, show_default=True, help="How many.")
@output_option
def ledger_list(folder: str, kind: str | None, after: int | None, limit: int, output: Format) -> None:
    """List messages, oldest first. With -o json or yaml each is there as it left, signature and all."""
    from dataplane.link.ledger import newest_number

    newest_only = after is None
    if after is None:
        # Of all types the newest stand at the end. Of one type they may be anywhere, so the whole ledger is read.
        after = 0 if kind else max(0, _readable(lambda: newest_number(_ledger(folder))) - limit)
    found: Iterator[dict[str, Any]] = (item for item in _items(folder, after) if kind in (None, item["type"]))
    if newest_only:
        found = iter(deque(found, maxlen=limit))
    columns = (
        Column("NUMBER", "number", right=True),
        Column("LEFT AT", "at"),
        Column("TYPE", "type"),
        Column("BYTES", lambda item: str(len(json.dumps(item["sealed"], separators=(",", ":")))), right=True),
        Column("MESSAGE", lambda item: json.dumps(_message(item), separators=(",", ":"))),
    )
    render.print_items(list(islice(found, limit)), columns, output, empty="Nothing has left yet.")


@ledger.command("count")
@_folder
@output_option
def ledger_count(folder: str, output: Format) -> None:
    """Count what has left in all, by type of message, also what the ledger no longer holds."""
    from dataplane.link.ledger import tallies

    items = [
        {"type": kind, "messages": tally.messages, "bytes": tally.bytes}
        for kind, tally in sorted(_readable(lambda: tallies(_ledger(folder))).items())
    ]
    columns = (Column("TYPE", "type"), Column("MESSAGES", "messages", right=True), Column("BYTES", "bytes", right=True))
    render.print_items(items, columns, output, empty="Nothing has left yet.")


@ledger.command("verify")
@_folder
@output_option
def ledger_verify(folder: str, output: Format) -> None:
    """Check that no entry was edited, taken out or put elsewhere, and that this node signed each message."""
    from contracts.keys import KeyPair
    from dataplane import config
    from dataplane.link.ledger import FINDINGS_MAX, check

    try:
        own = config.read(Path(folder))
        key = KeyPair(Path(own.seed_file).read_text()).public
    except (OSError, ValueError) as error:
        raise _not_joined(folder) from error
    count, findings = check(_ledger(folder), keys=frozenset({key}))
    if findings:
        raise Problem(
            "ledger_broken",
            f"{CODES['ledger_broken'][0]} {'At least ' if len(findings) >= FINDINGS_MAX else ''}{len(findings)} findings.",
            hint=CODES["ledger_broken"][1],
            details=[f"entry {finding.number}: {finding.problem}" for finding in findings],
        )
    item = {"entries": count, "key": key, "intact": True}
    render.print_one(item, output, text=lambda _: Text(f"{count} entries, all intact and signed by this node"))


@ledger.command("export")
@_folder
@click.option("--after", type=click.IntRange(0), default=0, show_default=True, help="Begin behind this number.")
@click.option(
    "--out", "file", required=True, metavar="FILE", help="Where to write JSON Lines, or - for standard output."
)
@output_option
def ledger_export(folder: str, after: int, file: str, output: Format) -> None:
    """Write every entry as a line of JSON, whole, for an archive or another program's eyes."""
    if file == "-":
        for item in _items(folder, after):
            sys.stdout.write(json.dumps(item) + "\n")
        return
    count = 0
    with Path(file).open("w") as out:
        for item in _items(folder, after):
            out.write(json.dumps(item) + "\n")
            count += 1
    render.print_one({"entries": count, "file": file}, output, text=lambda _: Text(f"{count} entries in {file}"))


def _ledger(folder: str) -> Path:
    from dataplane.link.ledger import FOLDER

    if not (Path(folder) / "node.json").exists():
        raise _not_joined(folder)
    return Path(folder) / "link" / FOLDER


def _not_joined(folder: str) -> Problem:
    return Problem(
        "node_not_joined",
        f"No node has joined from {folder}.",
        hint=CODES["node_not_joined"][1],
        exit_code=Exit.NOT_FOUND,
    )


def _items(folder: str, after: int) -> Iterator[dict[str, Any]]:
    from dataplane.link.ledger import entries

    found = entries(_ledger(folder), after=after)
    while True:
        entry = _readable(lambda: next(found, None))
        if entry is None:
            return
        yield msgspec.json.decode(msgspec.json.encode(entry))


def _message(item: Mapping[str, Any]) -> Any:
    return item["sealed"].get("body", {}).get("message")


def _readable(read: Callable[[], T]) -> T:
    try:
        return read()
    except (msgspec.DecodeError, EOFError) as error:
        raise Problem(
            "ledger_broken",
            "A line of the ledger cannot be read.",
            hint=CODES["ledger_broken"][1],
            next_command="pointsman node ledger verify --folder FOLDER",
        ) from error
