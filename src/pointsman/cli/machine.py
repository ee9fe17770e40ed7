"""`demo`, `up`, `ps`, `stop`, `start` and `down`: both planes on this machine."""

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from rich.text import Text

from pointsman.cli import render
from pointsman.cli.output import output_option
from pointsman.cli.render import Column, Format
from pointsman.cli.target import folder_option
from pointsman.problems import Exit

NODES_MAX = 16


@click.command("up")
@click.option(
    "--dir",
    "folder",
    metavar="DIR",
    envvar="POINTSMAN_DIR",
    default="pointsman-data",
    show_default=True,
    help="Where everything lies [POINTSMAN_DIR].",
)
@click.option(
    "--nodes", type=click.IntRange(1, NODES_MAX), default=1, show_default=True, help="How many nodes share the work."
)
@output_option
def up(folder: str, nodes: int, output: Format) -> int:
    """Run both planes on this machine, until Ctrl-C.

    PostgreSQL, the hub, the control plane, the leaf and the nodes are processes of their own. DIR/pointsman.json is there
    while all is ready. Started again in the same DIR, it goes on where it was.
    """
    from pointsman.local.up import Up

    def note(name: str, words: str) -> None:
        render.say(f"{name:<14} {words}", style="green" if words == "ready" else "")

    def ready(state: Mapping[str, Any]) -> None:
        render.print_one(state, output, text=lambda item: _ready_text(folder, item))

    Up(Path(folder), nodes=nodes, note=note).run(when_ready=ready)
    render.say("Stopped. Nothing is lost: the same command starts it again.")
    return Exit.OK


def _ready_text(folder: str, state: Mapping[str, Any]) -> Text:
    return Text.assemble(
        ("Ready.", "bold green"),
        f"  API {render.visible(str(state['api']['url']))}\n",
        f"  export POINTSMAN_DIR={render.visible(shlex.quote(str(Path(folder).resolve())))}\n",
        "  pointsman get nodes\n",
        (f"  secrets for connections belong into {render.visible(str(state['secrets_folder']))}\n", "dim"),
        ("  Ctrl-C stops everything; nothing is lost.", "dim"),
    )


def _uptime(row: Mapping[str, Any]) -> str:
    return "-" if row.get("uptime_seconds") is None else render.age(float(row["uptime_seconds"]))


def _memory(row: Mapping[str, Any]) -> str:
    return "-" if row.get("memory_bytes") is None else render.size(float(row["memory_bytes"]))


_COLUMNS = (
    Column("NAME", lambda row: f"  {row['name']}" if row.get("kind") == "worker" else str(row["name"])),
    Column("STATE", "state", traffic_light=True),
    Column("PID", "pid", right=True),
    Column("UPTIME", _uptime, right=True),
    Column("MEMORY", _memory, right=True),
    Column("RESTARTS", "restarts", right=True),
    Column("ADDRESS", "url"),
)


@click.command("ps")
@folder_option
@output_option
def ps(folder: Path, output: Format) -> None:
    """List the components and workers of this machine."""
    from pointsman.local.layout import Layout
    from pointsman.local.overview import rows

    listed = rows(Layout(folder.resolve()))
    if len(listed) == 1:
        listed = []
    render.print_items(listed, _COLUMNS, output, empty=f"Nothing has ever run in {folder}.")


@click.command("stop")
@click.argument("name")
@folder_option
@output_option
def stop(name: str, folder: Path, output: Format) -> None:
    """Stop one component, as if it had failed, and keep it stopped until `start`. Try an outage."""
    from pointsman.local import orders
    from pointsman.local.layout import Layout

    state = orders.stop(Layout(folder.resolve()), name)
    render.print_one(state, output, text=lambda item: f"{render.visible(name)} {item['state']}")


@click.command("start")
@click.argument("name")
@folder_option
@output_option
def start(name: str, folder: Path, output: Format) -> None:
    """Start a component that was stopped."""
    from pointsman.local import orders
    from pointsman.local.layout import Layout

    state = orders.start(Layout(folder.resolve()), name)
    words = f"{render.visible(name)} {state['state']}" + (f", pid {state['pid']}" if state["pid"] else "")
    render.print_one(state, output, text=lambda _: words)


@click.command("down")
@folder_option
@output_option
def down(folder: Path, output: Format) -> None:
    """Stop everything that `up` started in a folder, also when `up` itself is gone. Nothing is lost."""
    from pointsman.local import orders
    from pointsman.local.layout import Layout

    names = orders.stop_everything(Layout(folder.resolve()))
    words = f"stopped {', '.join(names)}" if names else f"Nothing runs in {folder}."
    render.print_one({"stopped": names}, output, text=lambda _: render.visible(words))


@click.command("demo")
@click.option(
    "--dir", "folder", metavar="DIR", help="Where everything lies. Without it: a new folder, removed at the end."
)
@click.option("--keep", is_flag=True, help="Leave everything running at the end and print the addresses.")
@output_option
def demo(folder: str | None, keep: bool, output: Format) -> int:
    """Watch rows flow from one PostgreSQL to another while the control plane dies. About a minute.

    Every act is checked; at the end source and destination are compared row by row and the audit log is verified. Ends
    with 0 only if everything held.
    """
    from pointsman.local.demo import Demo
    from pointsman.local.stage import Stage

    stage = Stage(sys.stderr if output != "table" else sys.stdout)
    try:
        summary = Demo(None if folder is None else Path(folder), keep=keep, stage=stage).run()
    except KeyboardInterrupt:
        render.say("Interrupted. Everything that the demo had started has ended.")
        return Exit.INTERRUPTED
    if output != "table":
        render.print_one(summary, output, text=str)
    return Exit.OK if summary["ok"] else Exit.ERROR
