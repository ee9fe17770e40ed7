"""The commands of `node`: what is typed on a machine of the customer's side."""

import os
import sys
from pathlib import Path
from typing import Any

import click

from pointsman.cli import checkpoints, dead_letters, ledger, policy, reconciled, render
from pointsman.cli.output import output_option
from pointsman.cli.render import Format
from pointsman.cli.target import KEY_BYTES_MAX
from pointsman.problems import CODES, Exit, Problem

LEAF_PORT = 4222
PORT_MAX = 65_535


@click.group("node")
def node() -> None:
    """Join this machine to a data plane, run its node, and see what left it."""


node.add_command(ledger.ledger)
node.add_command(checkpoints.checkpoints)
node.add_command(dead_letters.dead_letters)
node.add_command(reconciled.reconcile)
node.add_command(policy.policy)


_folder = click.option("--folder", required=True, metavar="FOLDER", help="The node's folder: its keys and its state.")


@node.command("join")
@_folder
@click.option("--api", required=True, metavar="URL", help="Address of the control plane.")
@click.option("--token-file", required=True, metavar="FILE", help="File that holds the join token, or - to read it.")
@click.option("--name", required=True, metavar="NAME", help="The node's name, unique in the tenant.")
@click.option("--leaf-folder", metavar="FOLDER", help="Where the leaf lies, or is to be made.  [default: FOLDER/leaf]")
@click.option(
    "--leaf-port", type=click.IntRange(1, PORT_MAX), default=LEAF_PORT, show_default=True, help="The leaf's port."
)
@click.option("--leaf-url", metavar="URL", help="The leaf's address, if it runs on another machine.")
@click.option("--secrets-folder", metavar="FOLDER", help="What `file:` refers to.  [default: FOLDER/secrets]")
@click.option("--contract", type=click.IntRange(1, 2), default=2, show_default=True, help="Newest contract to speak.")
@click.option("--metrics-port", type=click.IntRange(1, PORT_MAX), help="Serve /metrics on this port of 127.0.0.1.")
@output_option
def node_join(
    folder: str,
    api: str,
    token_file: str,
    name: str,
    leaf_folder: str | None,
    leaf_port: int,
    leaf_url: str | None,
    secrets_folder: str | None,
    contract: int,
    metrics_port: int | None,
    output: Format,
) -> None:
    """Join a data plane with a token that `create join-token` gave. Keys are made here; only their public halves leave.

    The first node of a data plane also makes the leaf's folder; run nats-server with the leaf.conf in it.
    """
    from dataplane.link import enrolment

    try:
        joined = enrolment.join(
            Path(folder),
            api=api,
            token=read_token(token_file),
            node=name,
            leaf_folder=_path(leaf_folder),
            leaf_port=leaf_port,
            leaf_url=leaf_url,
            secrets_folder=_path(secrets_folder),
            contract_max=contract,
            metrics_port=metrics_port,
        )
    except enrolment.JoinFailed as failed:
        raise join_problem(failed) from None
    root = Path(folder).resolve()
    leaf = Path(joined.ctl_seed_file).parent
    item: dict[str, Any] = {
        "node": joined.node,
        "data_plane": joined.data_plane,
        "folder": str(root),
        "leaf_folder": str(leaf),
        "secrets_folder": joined.secrets_folder,
        "contract": joined.contract_max,
    }
    render.print_one(item, output, text=lambda _: f"node/{name} joined data plane {joined.data_plane}")
    render.say(f"leaf: nats-server -c {leaf / 'leaf.conf'}\npolicy: say in {root / 'policy.toml'} what the node may do")
    render.say(f"next: pointsman node run --folder {root}")


def _path(value: str | None) -> Path | None:
    return None if value is None else Path(value)


def join_problem(failed: Exception) -> Problem:
    """Return the problem that a refused or failed join is."""
    code = str(getattr(failed, "code", "unreachable"))
    refused = {"invalid_token": Exit.NOT_ALLOWED, "token_used": Exit.CONFLICT, "name_taken": Exit.CONFLICT}
    return Problem(
        "api_unreachable" if code == "unreachable" else code,
        str(failed),
        hint=str(getattr(failed, "hint", "")) or None,
        exit_code=refused.get(code, Exit.ERROR),
    )


@node.command("renew")
@_folder
@click.option("--api", required=True, metavar="URL", help="Address of the control plane.")
@output_option
def node_renew(folder: str, api: str, output: Format) -> None:
    """Bring the leaf a new certificate by HTTP, when its own has expired or is lost and it cannot link.

    While it links, a running node renews it by itself. Stop the node first and start it afterwards; rows flow on meanwhile.
    """
    from dataplane.link import enrolment
    from dataplane.node import process

    path = Path(folder).resolve()
    _check_joined(path, folder)
    if process.is_alive(path / "run" / "agent"):
        raise Problem(
            "already_running",
            f"The node of {folder} is running.",
            hint="Stop it first, with SIGTERM: its workers go on.",
            exit_code=Exit.CONFLICT,
        )
    try:
        read = enrolment.renew(path, api=api)
    except enrolment.JoinFailed as failed:
        raise join_problem(failed) from None
    except FileNotFoundError:
        raise Problem(
            "node_not_joined", f"The leaf of {folder} is another machine's.", hint="Renew it there."
        ) from None
    words = "the leaf has a new certificate" + ("" if read else "; restart it, because it did not answer")
    render.print_one({"renewed": True, "read_by_leaf": read}, output, text=lambda _: words)


@node.command("check-leaf")
@click.option("--folder", required=True, metavar="FOLDER", help="The leaf's folder.")
@output_option
def node_check_leaf(folder: str, output: Format) -> None:
    """Make the leaf's configuration one that it starts with: without the hub while its certificate is not whole.

    Run before each start of the leaf, as the systemd unit does. It changes nothing when all is well.
    """
    from dataplane.link import leaf

    with_hub = leaf.settle(Path(folder).resolve())
    words = "with the hub" if with_hub else "without the hub; bring it a certificate with `pointsman node renew`"
    render.print_one({"with_hub": with_hub}, output, text=lambda _: f"the leaf starts {words}")


@node.command("run")
@_folder
def node_run(folder: str) -> None:
    """Run the node of a folder in the foreground. It goes on for ever, with or without the control plane."""
    path = Path(folder).resolve()
    _check_joined(path, folder)
    # The agent takes this process over, so that whoever supervises it sees the agent itself and its exit code.
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-P", "-m", "dataplane.node", "--dir", str(path)])  # noqa: S606


def _check_joined(path: Path, folder: str) -> None:
    if not (path / "node.json").exists():
        raise Problem(
            "node_not_joined",
            f"No node has joined from {folder}.",
            hint=CODES["node_not_joined"][1],
            next_command=f"pointsman node join --folder {folder} --api URL --token-file FILE --name NAME",
            exit_code=Exit.NOT_FOUND,
        )


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
