"""`python -m dataplane.reconcile --assignment FILE --socket FILE`: compares one pipeline's two ends.

The node's agent starts it beside the pipeline's workers while the document asks for it, and speaks to it in the same
way (`worker.protocol`). Exit codes: 0 after SIGTERM or SIGINT or without an agent for long, 1 when it failed
unexpectedly, 64 when assignment or socket cannot be used.
"""

import argparse
import asyncio
import logging
import os
import signal
import sys
from pathlib import Path

os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from dataplane.reconcile.runtime import ReconcileRuntime
from dataplane.worker import log
from dataplane.worker.protocol import Assignment
from dataplane.worker.runtime import document_of
from dataplane.worker.service import Service, read_assignment

EXIT_FAILED = 1
EXIT_USAGE = 64

_log = logging.getLogger("pointsman.reconcile")


async def serve(assignment: Assignment, assignment_path: Path, socket_path: Path) -> None:
    """Run until a signal asks it to end."""
    service = Service(assignment_path, socket_path)
    runtime = ReconcileRuntime(assignment, changed=service.changed, unattended_seconds=service.unattended_seconds)
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
    parser = argparse.ArgumentParser(prog="python -m dataplane.reconcile", description="Compare a pipeline's two ends.")
    parser.add_argument("--assignment", type=Path, required=True, help="what to do; replaced when the agent sends more")
    parser.add_argument("--socket", type=Path, required=True, help="where the agent connects")
    arguments = parser.parse_args()
    log.configure({"component": "reconcile", "pid": os.getpid()})
    try:
        assignment = read_assignment(arguments.assignment)
        document = document_of(assignment)
    except (OSError, ValueError) as error:
        _log.error("the assignment %s cannot be used: %s", arguments.assignment, error)
        return EXIT_USAGE
    log.configure({"component": "reconcile", "pid": os.getpid(), "pipeline": document.name})
    try:
        asyncio.run(serve(assignment, arguments.assignment, arguments.socket))
    except OSError as error:
        _log.error("the socket %s cannot be used: %s", arguments.socket, error)
        return EXIT_USAGE
    except Exception:  # noqa: BLE001 - the last place that can say why the process ends
        _log.exception("the process failed")
        return EXIT_FAILED
    return 0


if __name__ == "__main__":
    sys.exit(main())
