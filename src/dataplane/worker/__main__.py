"""`python -m dataplane.worker --assignment FILE --socket FILE`: one half of one pipeline, as a process of its own.

The node's agent starts it and speaks to it through the socket (`protocol`). It needs nothing of the agent to go on.
Exit codes: 0 after SIGTERM or SIGINT, 1 when it failed unexpectedly, 64 when assignment or socket cannot be used.
"""

import argparse
import asyncio
import functools
import gc
import logging
import os
import signal
import sys
from pathlib import Path

# Before Arrow is loaded: the system's allocator gives memory back, which matters more here than its last percent.
os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
# numpy's linear algebra is not used here; its thread pool would cost memory in every worker.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from dataplane.worker import log
from dataplane.worker.assembly import Room, assemble
from dataplane.worker.protocol import Assignment
from dataplane.worker.runtime import Runtime, document_of
from dataplane.worker.service import Service, read_assignment

EXIT_FAILED = 1
EXIT_USAGE = 64

_log = logging.getLogger("pointsman.worker")


async def serve(assignment: Assignment, assignment_path: Path, socket_path: Path) -> None:
    """Run the worker until a signal asks it to end."""
    service = Service(assignment_path, socket_path)
    runtime = Runtime(
        assignment,
        assemble=functools.partial(assemble, room=Room(assignment_path.parent)),
        changed=service.changed,
        unattended_seconds=service.unattended_seconds,
    )
    loop = asyncio.get_running_loop()
    for asked in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(asked, runtime.stop)
    await service.start(runtime)
    try:
        await runtime.run()
    finally:
        await service.stop()


def main() -> int:
    """Read the arguments and the assignment, and serve. Return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m dataplane.worker", description="Run one half of one pipeline.")
    parser.add_argument("--assignment", type=Path, required=True, help="what to do; replaced when the agent sends more")
    parser.add_argument("--socket", type=Path, required=True, help="where the agent connects")
    arguments = parser.parse_args()
    log.configure({"component": "worker", "pid": os.getpid()})
    try:
        assignment = read_assignment(arguments.assignment)
        document = document_of(assignment)
    except (OSError, ValueError) as error:
        _log.error("the assignment %s cannot be used: %s", arguments.assignment, error)
        return EXIT_USAGE
    log.configure({"component": "worker", "pid": os.getpid(), "pipeline": document.name, "half": assignment.half.value})
    gc.freeze()
    try:
        asyncio.run(serve(assignment, arguments.assignment, arguments.socket))
    except OSError as error:
        _log.error("the socket %s cannot be used: %s", arguments.socket, error)
        return EXIT_USAGE
    except Exception:  # noqa: BLE001 - the last place that can say why the process ends
        _log.exception("the worker failed")
        return EXIT_FAILED
    return 0


if __name__ == "__main__":
    sys.exit(main())
