"""`create`: what is not written in files because its answer is shown once, a key or a token."""

import contextlib
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from pointsman.cli import kinds, render
from pointsman.cli.output import name_argument, output_option
from pointsman.cli.render import Format
from pointsman.cli.target import Target, target_options
from pointsman.problems import Exit, Problem

ROLES = ("owner", "admin", "operator", "viewer", "auditor")
MODELS = ("managed", "byoc", "self_managed")
EXPIRES_DAYS_MAX = 3_650


@click.group("create")
def create() -> None:
    """Make members, keys, tokens, access grants, tenants and data planes."""


_out = click.option(
    "--out",
    "out",
    metavar="FILE",
    help="Write the secret to a new file that only you may read, and do not print it.",
)


def _deliver(item: Mapping[str, Any], secret: str, out: str | None, output: Format, words: str) -> None:
    """Print the answer with its secret, once; or write the secret to a file and print the rest."""
    if out is not None:
        write_secret(Path(out), str(item[secret]))
        rest = {key: value for key, value in item.items() if key != secret} | {"file": out}
        render.print_one(rest, output, text=lambda _: f"{words}, written to {render.visible(out)}")
        return
    render.print_one(item, output, text=lambda _: render.visible(str(item[secret])))
    render.say(f"{words}. It is shown this once.")


def write_secret(path: Path, secret: str) -> None:
    """Write `secret` to a file that did not exist before and that only its owner may read.

    Raises:
        Problem: the file exists or cannot be made.
    """
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise Problem(
            "key_file_unreadable",
            f"{path}: {error.strerror}.",
            hint="Name a file that does not exist yet, in a folder that you may write.",
            exit_code=Exit.CONFLICT if isinstance(error, FileExistsError) else Exit.ERROR,
        ) from None
    with contextlib.closing(os.fdopen(handle, "w")) as stream:
        stream.write(secret + "\n")


def _reserve(out: str | None) -> None:
    # A key that is made and then cannot be written would be lost: look before asking.
    if out is not None and (Path(out).exists() or not os.access(Path(out).resolve().parent, os.W_OK)):
        raise Problem(
            "key_file_unreadable",
            f"{out}: exists already, or its folder cannot be written.",
            hint="Name a file that does not exist yet, in a folder that you may write.",
            exit_code=Exit.CONFLICT,
        )


@create.command("api-key")
@click.argument("name")
@click.option("--role", type=click.Choice(ROLES), default="admin", show_default=True, help="What the key may do.")
@click.option("--expires-in-days", type=click.IntRange(1, EXPIRES_DAYS_MAX), help="Without it the key does not expire.")
@click.option("--member", metavar="ID", help="Whose key it is: it opens nothing that this member may not do.")
@click.option("--read-only", is_flag=True, help="The key changes nothing, whatever its role.")
@_out
@target_options
@output_option
def create_api_key(
    name: str,
    role: str,
    expires_in_days: int | None,
    member: str | None,
    read_only: bool,
    out: str | None,
    target: Target,
    output: Format,
) -> None:
    """Make an API key of your tenant."""
    _reserve(out)
    document: dict[str, Any] = {"name": name, "role": role}
    if member is not None:
        document["member"] = member
    if read_only:
        document["read_only"] = True
    if expires_in_days is not None:
        document["expires_in_days"] = expires_in_days
    with target.client() as client:
        answer = client.post("/v1/api-keys", document).resource
    secret = "api_key" if "api_key" in answer else "key"
    _deliver(answer, secret, out, output, f"api-key/{render.visible(name)} created with role {role}")


@create.command("join-token")
@click.argument("data_plane", metavar="DATA_PLANE")
@_out
@target_options
@output_option
def create_join_token(data_plane: str, out: str | None, target: Target, output: Format) -> None:
    """Make a token with which one node may join a data plane, once."""
    _reserve(out)
    with target.client() as client:
        answer = client.post(f"/v1/data-planes/{data_plane}/join-tokens", {}).resource
    expires = f", valid until {answer['expires_at']}" if answer.get("expires_at") else ""
    _deliver(answer, "token", out, output, f"join token for data plane {render.visible(data_plane)}{expires}")


@create.command("tenant")
@click.argument("name")
@_out
@target_options
@output_option
def create_tenant(name: str, out: str | None, target: Target, output: Format) -> None:
    """Make a tenant and its first API key. Needs the operator's key: with --dir it is found by itself."""
    _reserve(out)
    with target.client(operator=True) as client:
        answer = client.post("/v1/tenants", {"name": name}).resource
    _deliver(answer, "api_key", out, output, f"tenant {render.visible(name)} created")


@create.command("operator")
@click.argument("name")
@click.option(
    "--expires-in-days", type=click.IntRange(1, 365), default=90, show_default=True, help="When the key ends."
)
@_out
@target_options
@output_option
def create_operator(name: str, expires_in_days: int, out: str | None, target: Target, output: Format) -> None:
    """Make a key for one of the vendor's operators. Needs the first operator's key: with --dir it is found by itself."""
    _reserve(out)
    with target.client(operator=True) as client:
        answer = client.post("/v1/operators", {"name": name, "expires_in_days": expires_in_days}).resource
    _deliver(answer, "api_key", out, output, f"operator/{render.visible(name)} created")


@create.command("data-plane")
@name_argument()
@click.option(
    "--model", type=click.Choice(MODELS), default="self_managed", show_default=True, help="Who runs its machines."
)
@click.option(
    "--region", metavar="REGION", help="Where it is, as you call it: eu-central-1, DE-Berlin. Shown as evidence."
)
@target_options
@output_option
def create_data_plane(name: str, model: str, region: str | None, target: Target, output: Format) -> None:
    """Make a data plane: one leaf and the nodes that share its work."""
    with target.client() as client:
        written = client.put(kinds.DATA_PLANE.path, name, {"model": model, **({"region": region} if region else {})})
    word = "created" if written.created else "unchanged"
    item = {"outcome": word, **written.resource}
    render.print_one(item, output, text=lambda _: f"data-plane/{render.visible(name)} {word}")
    if sys.stderr.isatty():
        render.say(f"next: pointsman create join-token {name}")
