"""`node join` and `node run`: what is typed on a machine of the customer's side."""

import os
import sys
from pathlib import Path

import click

from pointsman.cli import render
from pointsman.cli.output import output_option
from pointsman.cli.render import Format
from pointsman.cli.target import KEY_BYTES_MAX
from pointsman.problems import CODES, Exit, Problem


@click.group("node")
def node() -> None:
    """Join this machine to a data plane, and run its node."""


@node.command("run")
@click.option("--folder", required=True, metavar="FOLDER", help="The folder that `node join` made.")
def node_run(folder: str) -> None:
    """Run the node of a folder in the foreground. It goes on for ever, with or without the control plane."""
    path = Path(folder).resolve()
    if not (path / "node.json").exists():
        raise Problem(
            "node_not_joined",
            f"No node has joined from {folder}.",
            hint=CODES["node_not_joined"][1],
            next_command=f"pointsman node join --folder {folder} --api URL --token-file FILE --name NAME",
            exit_code=Exit.NOT_FOUND,
        )
    # The agent takes this process over, so that whoever supervises it sees the agent itself and its exit code.
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", "dataplane.node", "--dir", str(path)])  # noqa: S606


def read_token(file: str) -> str:
    """Read a join token from a file, or from standard input with `-`. It never stands on a command line.

    Raises:
        Problem: key_file_unreadable.
    """
    try:
        raw = sys.stdin.buffer.read(KEY_BYTES_MAX) if file == "-" else Path(file).read_bytes()[:KEY_BYTES_MAX]
        return raw.decode("ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "not a token"
        raise Problem("key_file_unreadable", f"{file}: {why}.", hint=CODES["key_file_unreadable"][1]) from None


__all__ = ["node", "output_option", "render", "Format"]
