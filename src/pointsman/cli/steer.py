"""`pause`, `resume`, `restart`, `resync` and `reconcile`: what a person wants of a running pipeline."""

from collections.abc import Mapping
from typing import Any

import click

from pointsman.cli import kinds, render
from pointsman.cli.kinds import Kind
from pointsman.cli.output import kind_argument, name_argument, output_option
from pointsman.cli.render import Format
from pointsman.cli.resources import warn
from pointsman.cli.target import Target, target_options


def _ask(
    verb: str,
    done: str,
    kind: Kind,
    name: str,
    target: Target,
    output: Format,
    document: Mapping[str, Any] | None = None,
) -> None:
    with target.client() as client:
        resource = client.post(f"/v1/{kind.path}/{name}/{verb}", document).resource
    item = {"kind": kind.singular, "name": name, "outcome": done, **resource}
    generation = resource.get("generation")
    words = f"{kind.singular}/{render.visible(name)} {done}" + (f" (generation {generation})" if generation else "")
    render.print_one(item, output, text=lambda _: words)
    warn(resource)


@click.command("pause")
@kind_argument(kinds.PIPELINE)
@name_argument()
@target_options
@output_option
def pause(kind: Kind, name: str, target: Target, output: Format) -> None:
    """Stop a pipeline at the end of a transaction. Its source keeps the log until it is resumed."""
    _ask("pause", "paused", kind, name, target, output)


@click.command("resume")
@kind_argument(kinds.PIPELINE)
@name_argument()
@target_options
@output_option
def resume(kind: Kind, name: str, target: Target, output: Format) -> None:
    """Let a paused pipeline go on where it stopped.

    It also lets one go on that stopped at a table's changed shape (schema_changed): that shape is taken from then on.
    """
    _ask("resume", "resumed", kind, name, target, output)


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
@click.option("--table", "tables", multiple=True, metavar="TABLE", help="Only this table; may be given again.")
@target_options
@output_option
def resync(kind: Kind, name: str, tables: tuple[str, ...], target: Target, output: Format) -> None:
    """Copy a pipeline's tables again, all or some. Resyncing all of them also closes a gap."""
    document = {"tables": list(tables)} if tables else None
    _ask("resync", "resync asked for", kind, name, target, output, document)
    render.say(f"next: pointsman wait {kind.singular} {render.visible(name)} --for ready")


@click.command("reconcile")
@kind_argument(kinds.PIPELINE)
@name_argument()
@click.option("--table", "tables", multiple=True, metavar="TABLE", help="Only this table; may be given again.")
@click.option(
    "--repair", is_flag=True, help="Mend the destination: write what is missing or differs, delete what is extra."
)
@target_options
@output_option
def reconcile(kind: Kind, name: str, tables: tuple[str, ...], repair: bool, target: Target, output: Format) -> None:
    """Compare source and destination row by row, all tables or some, while the pipeline goes on."""
    document = {**({"tables": list(tables)} if tables else {}), "repair": repair}
    _ask("reconcile", "reconcile asked for", kind, name, target, output, document)
    render.say(f"next: pointsman describe {kind.singular} {render.visible(name)}")
