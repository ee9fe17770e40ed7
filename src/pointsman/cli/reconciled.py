"""`node reconcile show`: which rows differed between source and destination, by their keys, on the customer's side.

The counts go up to the control plane; the keys are data and stay at the destination. They are read from there with the
documents and secrets of the node in whose folder this is typed. No API is asked.
"""

from pathlib import Path

import click
import msgspec

from pointsman.cli import render
from pointsman.cli.output import output_option
from pointsman.cli.render import Column, Format
from pointsman.problems import CODES, Exit, Problem

ROWS_SHOWN = 100
ROWS_SHOWN_MAX = 10_000

_COLUMNS = (
    Column("TABLE", "table"),
    Column("KIND", "kind"),
    Column("KEY", lambda item: ", ".join(item["key"])),
    Column("REPAIRED", "repaired"),
    Column("FOUND", "found_at"),
)


@click.group("reconcile")
def reconcile() -> None:
    """See which rows differed when a pipeline's two ends were compared."""


@reconcile.command("show")
@click.argument("pipeline")
@click.option("--folder", required=True, metavar="FOLDER", help="The node's folder.")
@click.option("--table", metavar="TABLE", help="Only this table.")
@click.option(
    "--limit", type=click.IntRange(1, ROWS_SHOWN_MAX), default=ROWS_SHOWN, show_default=True, help="Rows to show."
)
@output_option
def show(pipeline: str, folder: str, table: str | None, limit: int, output: Format) -> None:
    """Show the keys of the rows that differed, from the destination. They are never sent anywhere."""
    from dataplane.failures import Failure
    from dataplane.reconcile import showing

    try:
        runs, rows = showing.read(Path(folder).resolve(), pipeline, table, limit)
    except (FileNotFoundError, msgspec.DecodeError):
        raise Problem(
            "node_not_joined",
            f"No node has joined from {folder}.",
            hint=CODES["node_not_joined"][1],
            exit_code=Exit.NOT_FOUND,
        ) from None
    except showing.UnknownPipeline as unknown:
        raise Problem(
            "pipeline_not_here",
            f"The node holds no document of {unknown}.",
            hint=CODES["pipeline_not_here"][1],
            exit_code=Exit.NOT_FOUND,
        ) from None
    except Failure as failure:
        raise Problem(
            "destination_not_read",
            f"{CODES['destination_not_read'][0]} {failure}",
            hint=CODES["destination_not_read"][1],
        ) from None
    for run in runs:
        found = run.rows_missing + run.rows_extra + run.rows_different
        render.say(
            f"{render.visible(run.table)}: {run.state}, {run.rows_compared:,} compared, {found:,} differed,"
            f" {run.rows_unsettled:,} unsettled, {run.rows_repaired:,} repaired"
        )
    items = [msgspec.to_builtins(row) for row in rows]
    render.print_items(items, _COLUMNS, output, empty="No row differed.")
