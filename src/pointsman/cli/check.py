"""`test connection`: let a node connect, now, with the secret that it has, and say what came of it."""

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import click
from rich.text import Text

from pointsman.cli import kinds, render
from pointsman.cli.describe import quantity
from pointsman.cli.kinds import Kind
from pointsman.cli.output import kind_argument, name_argument, output_option
from pointsman.cli.render import Format, visible
from pointsman.cli.target import Target, target_options
from pointsman.problems import Exit

TIMEOUT_SECONDS = 30.0


@click.command("test")
@kind_argument(kinds.CONNECTION)
@name_argument()
@click.option("--node", metavar="NODE", help="Which node looks. Without it: one whose pipelines use the connection.")
@target_options
@output_option
def test(kind: Kind, name: str, node: str | None, target: Target, output: Format) -> int:
    """Let a node test a connection. Ends with 1 when it does not work.

    Nodes know the connections that pipelines of their data plane name, and no others.
    """
    with target.client(timeout_seconds=TIMEOUT_SECONDS) as client:
        path = f"/v1/{kind.path}/{quote(name, safe='')}/test"
        found = client.post(path, {} if node is None else {"node": node}).resource
    render.print_one(found, output, text=lambda item: _text(name, item))
    return Exit.OK if found.get("ok") else Exit.ERROR


def _text(name: str, found: Mapping[str, Any]) -> Text:
    node, seconds = visible(str(found.get("node"))), quantity(float(found.get("elapsed_seconds") or 0), "seconds")
    if found.get("ok"):
        version = int(found.get("server_version") or 0)
        server = f", PostgreSQL {version // 10_000}.{version % 10_000}" if version else ""
        return Text.assemble(("works", "green"), f": {node} reached {visible(name)} in {seconds}{server}")
    state = f", SQLSTATE {visible(str(found['sql_state']))}" if found.get("sql_state") else ""
    text = Text.assemble(("does not work", "bold red"), f": {visible(str(found.get('message')))}")
    text.append(f" [{visible(str(found.get('code')))}]", style="dim")
    text.append(f"\n  seen from {node}, after {seconds}{state}\n  hint: {visible(str(found.get('hint')))}")
    return text
