"""`node checkpoints`: the heads of the control plane's audit log that a node has kept. No API is asked.

The customer takes them to `audit verify --checkpoint FILE`, on any machine: what the control plane shows must go on from them.
"""

from pathlib import Path
from typing import Any

import click
from rich.text import Text

from pointsman.cli import render
from pointsman.cli.output import output_option
from pointsman.cli.render import Column, Format
from pointsman.problems import CODES, Exit, Problem


@click.command("checkpoints")
@click.option("--folder", required=True, metavar="FOLDER", help="The node's folder.")
@click.option(
    "--out", "out", metavar="FILE", help="Write them to FILE, a line each, for `audit verify --checkpoint FILE`."
)
@output_option
def checkpoints(folder: str, out: str | None, output: Format) -> None:
    """List the signed heads of the audit log that this node was given, oldest first."""
    from dataplane.link.checkpoints import FILE_NAME, read

    if not (Path(folder) / "node.json").exists():
        words = f"No node has joined from {folder}."
        raise Problem("node_not_joined", words, hint=CODES["node_not_joined"][1], exit_code=Exit.NOT_FOUND)
    kept = read(Path(folder) / "link" / FILE_NAME)
    if out is not None:
        Path(out).write_text("".join(f"{each.sealed}\n" for each in kept))
        render.print_one({"checkpoints": len(kept), "file": out}, output, text=lambda _: Text(f"{len(kept)} in {out}"))
        return
    items: list[dict[str, Any]] = []
    last = 0
    for each in kept:
        head = each.checkpoint
        items.append(
            {
                "entry": head.sequence,
                "at": head.at.isoformat(),
                "hash": head.hash,
                "goes_on": head.sequence > last,
                "sealed": each.sealed,
            }
        )
        last = head.sequence
    columns = (
        Column("ENTRY", "entry", right=True),
        Column("AT", "at"),
        Column("HASH", "hash"),
        Column("GOES ON", lambda item: "yes" if item["goes_on"] else "NO"),
    )
    render.print_items(items, columns, output, empty="No head has arrived yet.")
