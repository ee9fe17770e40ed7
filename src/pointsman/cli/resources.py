"""`get`, `describe` and `delete`: what the control plane holds."""

from collections.abc import Mapping
from typing import Any

import click

from pointsman.cli import kinds, render
from pointsman.cli.describe import page
from pointsman.cli.kinds import Kind
from pointsman.cli.output import kind_argument, name_argument, output_option
from pointsman.cli.render import Format
from pointsman.cli.target import Target, target_options
from pointsman.client import Client, Resource
from pointsman.problems import Exit, Problem

EVENTS_SHOWN = 10


grant_option = click.option(
    "--grant",
    metavar="TENANT/NAME",
    help="For the vendor's operator: read what this tenant opened under this access grant. Each read is an event of it.",
)


@click.command("get")
@kind_argument(*kinds.KINDS)
@name_argument(required=False)
@grant_option
@target_options
@output_option
def get(kind: Kind, name: str | None, grant: str | None, target: Target, output: Format) -> None:
    """List the resources of a KIND, or show one of them.

    KIND is pipeline (pl), connection (conn), data-plane (dp), node (no), member (mb), api-key (key), access-grant (ag) or,
    for the vendor's operator, tenant (tn), operator (op) and fleet (fl). What `-o yaml` prints of one resource can be edited and applied again.
    """
    operator = grant is not None or kind in VENDORS
    with target.client(operator=operator, grant=grant) as client:
        if name is None:
            found = list(client.list_all(kind.path))
            render.print_items(found, kind.columns, output, empty=f"No {kind.path} yet.")
        else:
            found_one = _listed(client, kind, name) if kind in _ONLY_LISTED else client.get(kind.path, name)
            render.print_one(found_one, output, text=lambda item: render.table([item], kind.columns))


_ONLY_LISTED = (kinds.API_KEY, kinds.TENANT, kinds.OPERATOR, kinds.FLEET)
VENDORS = (kinds.TENANT, kinds.OPERATOR, kinds.FLEET)
"""What the vendor's operator sees, whose key is asked with."""


def _listed(client: Client, kind: Kind, name: str) -> Resource:
    """Return one of a kind that the API only lists, by its name or its id."""
    found = next((item for item in client.list_all(kind.path) if name in (item.get("name"), item.get("id"))), None)
    if found is None:
        raise Problem("not_found", f"There is no {kind.singular} {name!r}.", exit_code=Exit.NOT_FOUND)
    return found


@click.command("describe")
@kind_argument(kinds.PIPELINE, kinds.CONNECTION, kinds.DATA_PLANE, kinds.NODE, kinds.ACCESS_GRANT)
@name_argument()
@grant_option
@target_options
@output_option
def describe(kind: Kind, name: str, grant: str | None, target: Target, output: Format) -> None:
    """Show all there is to know about one resource: what was asked for, how it stands and why, and its last events."""
    with target.client(operator=grant is not None, grant=grant) as client:
        resource = client.get(kind.path, name)
        events = client.latest_events(kind.path, name, limit=EVENTS_SHOWN)
    whole = {**resource, "events": events}
    render.print_one(whole, output, text=lambda item: page(kind, item))


@click.command("delete")
@kind_argument(
    *(kinds.PIPELINE, kinds.CONNECTION, kinds.DATA_PLANE, kinds.API_KEY, kinds.NODE, kinds.MEMBER, kinds.ACCESS_GRANT),
    kinds.OPERATOR,
)
@name_argument()
@click.option(
    "--cleanup",
    is_flag=True,
    help="For a pipeline: let the node drop slot, publication and checkpoint first. Without it they stay.",
)
@click.option("--dry-run", is_flag=True, help="Check and change nothing.")
@target_options
@output_option
def delete(kind: Kind, name: str, cleanup: bool, dry_run: bool, target: Target, output: Format) -> None:
    """Delete one resource. Rows that were delivered stay where they are.

    A member who is deleted is no member any more; `pointsman erase member` also forgets who that was.
    """
    if cleanup and kind is not kinds.PIPELINE:
        raise click.UsageError("--cleanup is for pipelines.")
    with target.client(operator=kind is kinds.OPERATOR) as client:
        address = str(_listed(client, kind, name)["id"]) if kind in (kinds.API_KEY, kinds.OPERATOR) else name
        written = client.delete(kind.path, address, cleanup=cleanup, dry_run=dry_run)
    outcome = "deletion asked for" if written.status == 202 else "deleted"
    item: dict[str, Any] = {
        "kind": kind.singular,
        "name": name,
        "outcome": "deleting" if written.status == 202 else "deleted",
        **{key: written.resource[key] for key in ("generation", "revision", "warnings") if key in written.resource},
    }
    suffix = " (dry run)" if dry_run else ""
    render.print_one(item, output, text=lambda _: f"{kind.singular}/{render.visible(name)} {outcome}{suffix}")
    warn(item)
    if written.status == 202:
        render.say(f"next: pointsman wait {kind.singular} {name} --for deleted")


def warn(resource: Mapping[str, Any]) -> None:
    """Print the warnings of an answer to standard error."""
    for warning in resource.get("warnings") or ():
        words = warning.get("message") or warning.get("detail") if isinstance(warning, Mapping) else warning
        render.say(f"warning: {words}", style="yellow")
