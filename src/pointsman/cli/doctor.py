"""`doctor connection`: let a node look for everything that could be wrong with a connection, and say how to mend it."""

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import click
from rich.console import Group
from rich.table import Table
from rich.text import Text

from pointsman.cli import kinds, render
from pointsman.cli.describe import quantity
from pointsman.cli.kinds import Kind
from pointsman.cli.output import kind_argument, name_argument, output_option
from pointsman.cli.render import Format, visible
from pointsman.cli.target import Target, target_options
from pointsman.problems import Exit

TIMEOUT_SECONDS = 15
TIMEOUT_SECONDS_MAX = 60
MARGIN_SECONDS = 10.0
"""What the control plane may take beside the node."""

_MARKS = {
    "ok": ("ok", "green"),
    "warning": ("warning", "yellow"),
    "problem": ("PROBLEM", "bold red"),
    "unknown": ("unknown", "dim"),
}


@click.command("doctor")
@kind_argument(kinds.CONNECTION)
@name_argument()
@click.option("--node", metavar="NODE", help="Which node looks. Without it: one whose pipelines use the connection.")
@click.option(
    "--timeout",
    type=click.IntRange(2, TIMEOUT_SECONDS_MAX),
    default=TIMEOUT_SECONDS,
    show_default=True,
    metavar="SECONDS",
    help="How long the node may look.",
)
@target_options
@output_option
def doctor(kind: Kind, name: str, node: str | None, timeout: int, target: Target, output: Format) -> int:
    """Let a node look for everything that could be wrong with a connection. Ends with 1 when it finds a problem.

    It looks at settings, rights, tables and slots, for the pipelines of its data plane that use the connection, and
    prints the SQL that mends what it finds. It changes nothing.
    """
    with target.client(timeout_seconds=timeout + MARGIN_SECONDS) as client:
        path = f"/v1/{kind.path}/{quote(name, safe='')}/doctor"
        asked: dict[str, Any] = {"timeout_seconds": timeout}
        if node is not None:
            asked["node"] = node
        found = client.post(path, asked).resource
    render.print_one(found, output, text=lambda item: _report(name, item))
    return Exit.OK if found.get("ok") else Exit.ERROR


def _report(name: str, found: Mapping[str, Any]) -> Group:
    findings = found.get("findings") or []
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for each in findings:
        mark, style = _MARKS.get(str(each.get("outcome")), ("unknown", "dim"))
        table.add_row(Text(mark, style=style), visible(str(each.get("check"))), visible(str(each.get("message"))))
    return Group(*_head(name, found), table, *_mending(findings), _summary(found, findings))


def _head(name: str, found: Mapping[str, Any]) -> list[Text]:
    node, seconds = visible(str(found.get("node"))), quantity(float(found.get("elapsed_seconds") or 0), "seconds")
    lines = [Text(f"{visible(name)}, seen from {node} in {seconds}", style="bold")]
    if not found.get("complete", True):
        lines.append(Text("This node speaks contract 1: it only tests whether the connection works.", style="yellow"))
    return lines


def _mending(findings: list[Mapping[str, Any]]) -> list[Text]:
    """Return what to do about each finding that is not well, once for findings that are mended alike."""
    blocks: dict[str, Text] = {}
    for each in findings:
        hint, statements = each.get("hint"), each.get("sql") or []
        if each.get("outcome") == "ok" or not (hint or statements):
            continue
        text = Text.assemble("\n", (visible(str(each.get("message"))), "bold"))
        if hint:
            text.append(f"\n  {visible(str(hint))}")
        for statement in statements:
            text.append(f"\n  {visible(str(statement))};", style="cyan")
        blocks.setdefault(text.plain, text)
    return list(blocks.values())


def _summary(found: Mapping[str, Any], findings: list[Mapping[str, Any]]) -> Text:
    count = {outcome: sum(each.get("outcome") == outcome for each in findings) for outcome in _MARKS}
    words = ", ".join(
        f"{number} {outcome if number == 1 or outcome in ('ok', 'unknown') else outcome + 's'}"
        for outcome, number in count.items()
        if number
    )
    more = f"; {found['left_off']} more were left off" if found.get("left_off") else ""
    return Text(f"\n{words}{more}")
