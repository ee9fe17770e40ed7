"""The options that commands share: the output's format, and kinds and names as arguments with their completions."""

from collections.abc import Callable
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

from pointsman.cli import kinds
from pointsman.cli.kinds import Kind
from pointsman.cli.render import FORMATS
from pointsman.problems import Problem

Decorated = TypeVar("Decorated", bound=Callable[..., Any])
COMPLETIONS_MAX = 200


def output_option(function: Decorated) -> Decorated:
    """Give a command `-o table|json|yaml`, passed as `output`."""
    return click.option(
        "-o",
        "--output",
        "output",
        type=click.Choice(FORMATS),
        default="table",
        show_default=True,
        help="How to print the data, and a problem.",
    )(function)


class KindType(click.ParamType[Any]):
    """An argument that names a kind: singular, plural or short."""

    name = "kind"

    def __init__(self, allowed: tuple[Kind, ...]) -> None:
        self.allowed = allowed

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Kind:
        """Return the kind, or fail with the nearest name as a hint."""
        if isinstance(value, Kind):
            return value
        try:
            kind = kinds.find(value)
        except Problem as problem:
            self.fail(f"{problem.message} {problem.hint or ''}".strip(), param, ctx)
        if kind not in self.allowed:
            names = ", ".join(k.singular for k in self.allowed)
            self.fail(f"{kind.path} cannot be used with this command. Possible: {names}.", param, ctx)
        return kind

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Offer the kinds that this command takes."""
        offered = (kind.singular for kind in self.allowed)
        return [CompletionItem(name) for name in offered if name.startswith(incomplete)]


class ResourceName(click.ParamType[Any]):
    """An argument that names a resource; the shell completes it from the control plane."""

    name = "name"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Offer the names of the kind that was typed. A control plane that does not answer offers nothing."""
        from pointsman.cli.target import Target

        given = ctx.params
        try:
            kind = given.get("kind")
            kind = kind if isinstance(kind, Kind) else kinds.PIPELINE if kind is None else kinds.find(str(kind))
            target = Target(given.get("folder"), given.get("api"), given.get("key_file"), given.get("context"))
            with target.client(timeout_seconds=1.0) as client:
                names = [str(item.get("name")) for item in client.list_all(kind.path)]
        except (Problem, click.ClickException):
            return []
        return [CompletionItem(name) for name in names if name.startswith(incomplete)][:COMPLETIONS_MAX]


def kind_argument(*allowed: Kind) -> Callable[[Decorated], Decorated]:
    """Give a command a KIND argument that takes the `allowed` kinds, passed as `kind`."""
    return click.argument("kind", type=KindType(allowed))


def name_argument(*, required: bool = True) -> Callable[[Decorated], Decorated]:
    """Give a command a NAME argument, passed as `name`."""
    return click.argument("name", type=ResourceName(), required=required)
