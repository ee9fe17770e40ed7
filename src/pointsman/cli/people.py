"""`create member`, `create access-grant`, `set member` and `erase member`: who may act for a tenant, and who may look in."""

import click

from pointsman.cli import kinds, render
from pointsman.cli.create import ROLES, create
from pointsman.cli.kinds import Kind
from pointsman.cli.output import kind_argument, name_argument, output_option
from pointsman.cli.render import Format
from pointsman.cli.target import Target, target_options

HOURS_MAX = 168


@create.command("member")
@click.option("--name", "display_name", required=True, metavar="NAME", help="What the person is called.")
@click.option("--email", required=True, metavar="ADDRESS", help="The person's address.")
@click.option("--role", type=click.Choice(ROLES), default="viewer", show_default=True, help="What the person may do.")
@target_options
@output_option
def create_member(display_name: str, email: str, role: str, target: Target, output: Format) -> None:
    """Add a person to your tenant. The answer is an id: events carry it, and never the name."""
    document = {"display_name": display_name, "email": email, "role": role}
    with target.client() as client:
        member = client.post("/v1/members", document).resource
    words = f"member/{render.visible(str(member['name']))} created with role {role}"
    render.print_one({"outcome": "created", **member}, output, text=lambda _: words)


@create.command("access-grant")
@name_argument()
@click.option(
    "--hours", type=click.IntRange(1, HOURS_MAX), default=4, show_default=True, help="For how long they may read."
)
@target_options
@output_option
def create_access_grant(name: str, hours: int, target: Target, output: Format) -> None:
    """Let the vendor's operators read your configuration for some hours. Each read is an event of the grant."""
    with target.client() as client:
        grant = client.put(kinds.ACCESS_GRANT.path, name, {"hours": hours}).resource
    words = f"access-grant/{render.visible(name)} open until {render.visible(str(grant['expires_at']))}"
    render.print_one({"outcome": "open", **grant}, output, text=lambda _: words)


@click.command("set")
@kind_argument(kinds.MEMBER)
@name_argument()
@click.option("--role", type=click.Choice(ROLES), required=True, help="What the person may do from now on.")
@target_options
@output_option
def set_(kind: Kind, name: str, role: str, target: Target, output: Format) -> None:
    """Give a member another role. It counts from the next request on, also for keys that the member has."""
    with target.client() as client:
        member = client.put(kind.path, name, {"role": role}).resource
    words = f"member/{render.visible(name)} has role {role}"
    render.print_one({"outcome": "configured", **member}, output, text=lambda _: words)


@click.command("erase")
@kind_argument(kinds.MEMBER)
@name_argument()
@target_options
@output_option
def erase(kind: Kind, name: str, target: Target, output: Format) -> None:
    """Forget who a member is or was. The audit log goes on to verify: it never held a name or an address."""
    with target.client() as client:
        member = client.post(f"/v1/{kind.path}/{name}/erase", {}).resource
    words = f"member/{render.visible(name)} erased"
    render.print_one({"outcome": "erased", **member}, output, text=lambda _: words)
