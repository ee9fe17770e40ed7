"""Named contexts: which control planes a person works with, in the user's own configuration folder.

A context is a folder of `pointsman up`, or an address and the path of a key file. Keys themselves are never stored here.
"""

import contextlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import click
import platformdirs

from pointsman.cli.output import output_option
from pointsman.cli.render import Column, Format, print_items, print_one
from pointsman.problems import CODES, Exit, Problem

FILE_NAME = "contexts.json"


@dataclass
class Contexts:
    """All contexts of this user, and the name of the one in use."""

    current: str | None = None
    entries: dict[str, dict[str, str]] = field(default_factory=dict)

    def get(self, name: str) -> Mapping[str, str]:
        """Return one context.

        Raises:
            Problem: unknown_context.
        """
        if name not in self.entries:
            known = ", ".join(sorted(self.entries)) or "none yet"
            raise Problem(
                "unknown_context",
                f"There is no context {name!r}.",
                hint=f"Known: {known}. {CODES['unknown_context'][1]}",
                next_command="pointsman context list",
                exit_code=Exit.NOT_FOUND,
            )
        return self.entries[name]


def _folder() -> Path:
    return Path(platformdirs.user_config_dir("pointsman", appauthor=False))


def memory_folder() -> Path:
    """Return the folder in which revisions that were seen are remembered."""
    return Path(platformdirs.user_state_dir("pointsman", appauthor=False)) / "revisions"


def read() -> Contexts:
    """Read this user's contexts; there may be none."""
    try:
        stored = json.loads((_folder() / FILE_NAME).read_bytes())
        return Contexts(stored.get("current"), dict(stored.get("contexts", {})))
    except (OSError, ValueError, AttributeError):
        return Contexts()


def _write(stored: Contexts) -> None:
    folder = _folder()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    draft = folder / f".{FILE_NAME}.{os.getpid()}"
    draft.write_text(json.dumps({"current": stored.current, "contexts": stored.entries}, indent=2) + "\n")
    with contextlib.suppress(OSError):
        draft.chmod(0o600)
    draft.replace(folder / FILE_NAME)


@click.group("context")
def context() -> None:
    """Remember control planes by name."""


def _rows(stored: Contexts) -> list[dict[str, object]]:
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
    print_items(_rows(read()), _COLUMNS, output, empty="No context yet. Make one: pointsman context set NAME --api URL")


@context.command("use")
@click.argument("name")
@output_option
def context_use(name: str, output: Format) -> None:
    """Use a context from now on."""
    stored = read()
    entry = stored.get(name)
    stored.current = name
    _write(stored)
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
    stored = read()
    outcome = "configured" if name in stored.entries else "created"
    stored.entries[name] = entry
    stored.current = stored.current or name
    _write(stored)
    item = {"name": name, "current": stored.current == name, "outcome": outcome, **entry}
    print_one(item, output, text=lambda _: f"context/{name} {outcome}")


@context.command("delete")
@click.argument("name")
@output_option
def context_delete(name: str, output: Format) -> None:
    """Forget a context."""
    stored = read()
    stored.get(name)
    del stored.entries[name]
    if stored.current == name:
        stored.current = None
    _write(stored)
    print_one({"name": name, "outcome": "deleted"}, output, text=lambda _: f"context/{name} deleted")
