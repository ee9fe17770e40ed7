"""`pointsman context`: list, choose, set and forget the control planes that `contexts` keeps by name."""

from pathlib import Path

import click

from pointsman.cli import contexts
from pointsman.cli.output import output_option
from pointsman.cli.render import Column, Format, print_items, print_one


@click.group("context")
def context() -> None:
    """Remember control planes by name."""


def _rows(stored: contexts.Contexts) -> list[dict[str, object]]:
    return [
        {"name": name, "current": name == stored.current, **entry} for name, entry in sorted(stored.entries.items())
    ]


_COLUMNS = (
    Column("NAME", "name"),
    Column("CURRENT", "current"),
    Column("API", "api"),
    Column("KEY FILE", "key_file"),
    Column("DIR", "dir"),
)


@context.command("list")
@output_option
def context_list(output: Format) -> None:
    """List the contexts."""
    print_items(
        _rows(contexts.read()), _COLUMNS, output, empty="No context yet. Make one: pointsman context set NAME --api URL"
    )


@context.command("use")
@click.argument("name")
@output_option
def context_use(name: str, output: Format) -> None:
    """Use a context from now on."""
    stored = contexts.read()
    entry = stored.get(name)
    stored.current = name
    contexts.write(stored)
    print_one({"name": name, "current": True, **entry}, output, text=lambda _: f"context/{name} in use")


@context.command("set")
@click.argument("name")
@click.option("--api", metavar="URL", help="Address of the control plane.")
@click.option("--key-file", metavar="FILE", help="File that holds the API key. Its path is stored, never the key.")
@click.option("--dir", "folder", metavar="DIR", help="Folder of `pointsman up`, instead of --api and --key-file.")
@output_option
def context_set(name: str, api: str | None, key_file: str | None, folder: str | None, output: Format) -> None:
    """Make or change a context. The first one is in use at once."""
    if bool(folder) == bool(api):
        raise click.UsageError("Give either --dir, or --api with --key-file.")
    if api and not key_file:
        raise click.UsageError("--api needs --key-file.")
    given = {"api": api, "key_file": key_file and str(Path(key_file).resolve())}
    entry = {"dir": str(Path(folder).resolve())} if folder else {k: v for k, v in given.items() if v}
    stored = contexts.read()
    outcome = "configured" if name in stored.entries else "created"
    stored.entries[name] = entry
    stored.current = stored.current or name
    contexts.write(stored)
    item = {"name": name, "current": stored.current == name, "outcome": outcome, **entry}
    print_one(item, output, text=lambda _: f"context/{name} {outcome}")


@context.command("delete")
@click.argument("name")
@output_option
def context_delete(name: str, output: Format) -> None:
    """Forget a context."""
    stored = contexts.read()
    stored.get(name)
    del stored.entries[name]
    if stored.current == name:
        stored.current = None
    contexts.write(stored)
    print_one({"name": name, "outcome": "deleted"}, output, text=lambda _: f"context/{name} deleted")
