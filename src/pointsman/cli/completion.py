"""`completion` and `version`: about this command line itself."""

from importlib.metadata import version

import click
from click.shell_completion import get_completion_class

from pointsman.cli.output import output_option
from pointsman.cli.render import Format, print_one, write

SHELLS = ("bash", "zsh", "fish")


@click.command("completion")
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the script that lets a shell complete commands, kinds and names.

    For bash: add `source <(pointsman completion bash)` to ~/.bashrc.
    """
    found = get_completion_class(shell)
    assert found is not None
    write(found(ctx.find_root().command, {}, "pointsman", "_POINTSMAN_COMPLETE").source())


@click.command("version")
@output_option
def version_command(output: Format) -> None:
    """Print the version of this program and of the contracts that it speaks."""
    from contracts import CONTRACTS_SPOKEN

    item = {"version": version("pointsman"), "contracts": sorted(CONTRACTS_SPOKEN)}
    print_one(item, output, text=lambda _: f"pointsman {item['version']}")
