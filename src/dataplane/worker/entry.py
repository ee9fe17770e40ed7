"""How a process of a pipeline begins and ends: its arguments, its assignment, its signals, its exit code.

`python -m dataplane.worker` and `python -m dataplane.reconcile` call it, each with what it runs. The agent starts both in
the same way and speaks to both through the same socket (`protocol`).
"""

import argparse
import asyncio
import logging
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from dataplane.worker import log
from dataplane.worker.protocol import Assignment
from dataplane.worker.runtime import document_of
from dataplane.worker.service import Served, Service, read_assignment

EXIT_FAILED = 1
EXIT_USAGE = 64


class Running(Served, Protocol):
    """What a process runs until it is asked to end."""

    def stop(self) -> None:
        """Ask `run` to return."""
        ...

    async def run(self) -> None:
        """Work until asked to stop."""
        ...


Make = Callable[[Assignment, Path, Service], Running]
"""Makes what runs, of the first assignment, the file that it lies in, and the socket."""


def _no_fields(_: Assignment) -> dict[str, object]:
    return {}


def main(
    component: str, description: str, make: Make, *, fields_of: Callable[[Assignment], dict[str, object]] = _no_fields
) -> int:
    """Read the arguments and the assignment, and serve until a signal. Return the exit code.

    Every line of the log carries `component`, and what `fields_of` gives of the first assignment.
    """
    parser = argparse.ArgumentParser(prog=f"python -m dataplane.{component}", description=description)
    parser.add_argument("--assignment", type=Path, required=True, help="what to do; replaced when the agent sends more")
    parser.add_argument("--socket", type=Path, required=True, help="where the agent connects")
    arguments = parser.parse_args()
    told = logging.getLogger(f"pointsman.{component}")
    fields: dict[str, object] = {"component": component, "pid": os.getpid()}
    log.configure(fields)
    try:
        assignment = read_assignment(arguments.assignment)
        document = document_of(assignment)
    except (OSError, ValueError) as error:
        told.error("the assignment %s cannot be used: %s", arguments.assignment, error)
        return EXIT_USAGE
    log.configure({**fields, "pipeline": document.name, **fields_of(assignment)})
    try:
        asyncio.run(_serve(make, assignment, arguments.assignment, arguments.socket))
    except OSError as error:
        told.error("the socket %s cannot be used: %s", arguments.socket, error)
        return EXIT_USAGE
    except Exception:  # noqa: BLE001 - the last place that can say why the process ends
        told.exception("the process failed")
        return EXIT_FAILED
    return 0


async def _serve(make: Make, assignment: Assignment, assignment_path: Path, socket_path: Path) -> None:
    service = Service(assignment_path, socket_path)
    runtime = make(assignment, assignment_path, service)
    loop = asyncio.get_running_loop()
    for asked in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(asked, runtime.stop)
    await service.start(runtime)
    try:
        await runtime.run()
    finally:
        await service.stop()
