"""`pause`, `resume`, `restart`, `resync` and `reconcile`: what a person wants of a running pipeline."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import click

from pointsman.cli import kinds, render
from pointsman.cli.kinds import Kind
from pointsman.cli.output import kind_argument, name_argument, output_option
from pointsman.cli.render import Format
from pointsman.cli.resources import warn
from pointsman.cli.target import Target, target_options

Command = TypeVar("Command", bound=Callable[..., Any])


def _ask(
    verb: str,
    done: str,
    kind: Kind,
    name: str,
    target: Target,
    output: Format,
    document: Mapping[str, Any] | None = None,
    *,
    dry_run: bool = False,
) -> None:
    with target.client() as client:
        resource = client.post(f"/v1/{kind.path}/{name}/{verb}", document, dry_run=dry_run).resource
    item = {"kind": kind.singular, "name": name, "outcome": done, **resource}
    generation = resource.get("generation")
    words = f"{kind.singular}/{render.visible(name)} {done}" + (f" (generation {generation})" if generation else "")
    render.print_one(item, output, text=lambda _: words)
    warn(resource)


def _named(tables: tuple[str, ...]) -> dict[str, list[str]] | None:
    """Return the body of a request that is about these tables; none if it is about the pipeline."""
    return {"tables": list(tables)} if tables else None


def _tables_option(what: str) -> Callable[[Command], Command]:
    return click.option("--table", "tables", multiple=True, metavar="TABLE", help=f"{what}; may be given again.")


@click.command("pause")
@kind_argument(kinds.PIPELINE)
@name_argument()
@_tables_option("Only the copying of this table")
@target_options
@output_option
def pause(kind: Kind, name: str, tables: tuple[str, ...], target: Target, output: Format) -> None:
    """Stop a pipeline at the end of a transaction. Its source keeps the log until it is resumed.

    With --table only the copying of that table stops, after the chunk on its way, also for copies that begin later. The
    stream goes on for all tables, so nothing of the source's log is kept for it.
    """
    _ask("pause", "copying paused" if tables else "paused", kind, name, target, output, _named(tables))


@click.command("resume")
@kind_argument(kinds.PIPELINE)
@name_argument()
@_tables_option("Only the copying of this table")
@target_options
@output_option
def resume(kind: Kind, name: str, tables: tuple[str, ...], target: Target, output: Format) -> None:
    """Let a paused pipeline go on where it stopped.

    It also lets one go on that stopped at a table's changed shape (schema_changed): that shape is taken from then on.
    With --table the copying of that table goes on where it was.
    """
    _ask("resume", "copying resumed" if tables else "resumed", kind, name, target, output, _named(tables))


@click.command("restart")
@kind_argument(kinds.PIPELINE)
@name_argument()
@target_options
@output_option
def restart(kind: Kind, name: str, target: Target, output: Format) -> None:
    """Start a pipeline's workers again, once: after a right was granted or a table was mended."""
    _ask("restart", "restart asked for", kind, name, target, output)


@click.command("resync")
@kind_argument(kinds.PIPELINE)
@name_argument()
@_tables_option("Only this table")
@click.option(
    "--where",
    "conditions",
    multiple=True,
    metavar="'COLUMN OP VALUE'",
    help="Only the rows of the one --table that match; given again, rows must match all of them.",
)
@click.option("--dry-run", is_flag=True, help="Say what it would do, and ask for nothing.")
@target_options
@output_option
def resync(
    kind: Kind,
    name: str,
    tables: tuple[str, ...],
    conditions: tuple[str, ...],
    dry_run: bool,
    target: Target,
    output: Format,
) -> None:
    """Copy a pipeline's tables again, all or some. Resyncing all of them also closes a gap.

    With --where only some rows of one table, while everything else stays as it is: `--where 'id between 1 and 500'`,
    `--where "state in (new, 'on hold')"`. OP is one of = != < <= > >= in between, `is null`, `is not null`; values are read
    as the column's type. Rows that the source does not have any more are deleted only if every condition is on a column
    of the key whose order is the same everywhere; the answer says whether.
    """
    document = {**(_named(tables) or {}), **({"where": list(conditions)} if conditions else {})}
    done = "resync would be asked for" if dry_run else "resync asked for"
    _ask("resync", done, kind, name, target, output, document or None, dry_run=dry_run)
    if not dry_run:
        render.say(f"next: pointsman wait {kind.singular} {render.visible(name)} --for ready")


@click.command("reconcile")
@kind_argument(kinds.PIPELINE)
@name_argument()
@_tables_option("Only this table")
@click.option(
    "--repair", is_flag=True, help="Mend the destination: write what is missing or differs, delete what is extra."
)
@target_options
@output_option
def reconcile(kind: Kind, name: str, tables: tuple[str, ...], repair: bool, target: Target, output: Format) -> None:
    """Compare source and destination row by row, all tables or some, while the pipeline goes on."""
    document = {**(_named(tables) or {}), "repair": repair}
    _ask("reconcile", "reconcile asked for", kind, name, target, output, document)
    render.say(f"next: pointsman describe {kind.singular} {render.visible(name)}")
