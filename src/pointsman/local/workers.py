"""The workers of a node on this machine: they outlive their agent, so whoever ends a node has to end them too."""

from pathlib import Path

from dataplane.node import __main__ as node_program
from dataplane.node import process
from dataplane.node.process import RunFolder


def worker_pids(node_folder: Path) -> dict[str, int]:
    """Return the living workers of a node: pipeline and half, as `orders/whole`, → pid."""
    if not (node_folder / "run").exists():
        return {}
    run = RunFolder(node_folder / "run")
    pids = {f"{key.pipeline}/{key.half.value}": process.pid_of(run.files(key)) for key in run.living()}
    return {name: pid for name, pid in pids.items() if pid is not None}


def stop_workers(node_folder: Path) -> None:
    """End a node's agent, if it lives, and its workers: at a transaction's end, or by force when that takes too long."""
    if (node_folder / "run").exists():
        node_program.stop_workers(node_folder)
