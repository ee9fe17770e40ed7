"""`events`: what happened, in order, as the control plane's log has it."""

import json
import time
from collections.abc import Mapping
from typing import Any

import click

from pointsman.cli import kinds, render
from pointsman.cli.kinds import Kind
from pointsman.cli.output import KindType, name_argument, output_option
from pointsman.cli.render import Column, Format
from pointsman.cli.target import Target, target_options
from pointsman.client import Client, Resource

LIMIT_MAX = 100_000
POLL_SECONDS = 0.5
DATA_CHARACTERS_MAX = 90

_QUIET = ("actor", "generation")


def _data(event: Mapping[str, Any]) -> str:
    data = event.get("data")
    if not isinstance(data, Mapping):
        return ""
    text = ", ".join(
        f"{key}: {value if isinstance(value, str) else json.dumps(value, default=str)}"
        for key, value in data.items()
        if value not in (None, "", [], {}) and key not in _QUIET
    )
    return text if len(text) <= DATA_CHARACTERS_MAX else text[: DATA_CHARACTERS_MAX - 1] + "…"


COLUMNS = (
    Column("ID", "id", right=True),
    Column("TIME", lambda event: str(event.get("at", ""))[:19].replace("T", " ")),
    Column("KIND", "kind"),
    Column("NAME", "name"),
    Column("EVENT", "type"),
    Column("ACTOR", "actor"),
    Column("DATA", _data),
)


@click.command("events")
@click.argument("kind", type=KindType(kinds.KINDS), required=False)
@name_argument(required=False)
@click.option("--after", type=click.IntRange(0), default=0, metavar="ID", help="Only events after this id.")
@click.option(
    "--limit", type=click.IntRange(1, LIMIT_MAX), default=1_000, show_default=True, help="How many, oldest first."
)
@click.option("--follow", is_flag=True, help="Go on and print new events as they happen, until Ctrl-C.")
@target_options
@output_option
def events(
    kind: Kind | None, name: str | None, after: int, limit: int, follow: bool, target: Target, output: Format
) -> None:
    """List what happened: to the whole tenant, to a KIND, or to one resource."""
    with target.client() as client:
        found = _read(client, kind, name, after, limit)
        if not follow:
            render.print_items(found, COLUMNS, output, empty="No events.")
            return
        while True:
            if found:
                after = int(found[-1]["id"])
                _print_more(found, output)
            else:
                time.sleep(POLL_SECONDS)
            found = _read(client, kind, name, after, limit)


def _read(client: Client, kind: Kind | None, name: str | None, after: int, limit: int) -> list[Resource]:
    if kind is not None and name is not None and kind not in (kinds.API_KEY, kinds.MEMBER, kinds.OPERATOR):
        return client.events(noun=kind.path, name=name, after=after, limit=limit)
    return client.events(kind=None if kind is None else kind.name, name=name, after=after, limit=limit)


def _print_more(found: list[Resource], output: Format) -> None:
    """Print events one by one: lines of JSON, YAML documents, or lines of text, so that nothing waits for the end."""
    for event in found:
        if output == "json":
            render.write(json.dumps(event, default=str))
        elif output == "yaml":
            render.write("---\n" + render.as_yaml(event))
        else:
            cells = [column.read(event) for column in COLUMNS]
            render.write("  ".join(cells))
