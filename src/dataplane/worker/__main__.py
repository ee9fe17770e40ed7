"""`python -m dataplane.worker --assignment FILE --socket FILE`: one half of one pipeline, as a process of its own.

The node's agent starts it and speaks to it through the socket (`protocol`). It needs nothing of the agent to go on.
Exit codes: 0 after SIGTERM or SIGINT, 1 when it failed unexpectedly, 64 when assignment or socket cannot be used.
"""

import functools
import gc
import os
import sys
from pathlib import Path

# Before Arrow is loaded: the system's allocator gives memory back, which matters more here than its last percent.
os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
# numpy's linear algebra is not used here; its thread pool would cost memory in every worker.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from dataplane.worker import entry
from dataplane.worker.assembly import Room, assemble
from dataplane.worker.protocol import Assignment
from dataplane.worker.runtime import Runtime
from dataplane.worker.service import Service


def make(assignment: Assignment, assignment_path: Path, service: Service) -> Runtime:
    """Return the runtime of one half."""
    return Runtime(
        assignment,
        assemble=functools.partial(assemble, room=Room(assignment_path.parent)),
        changed=service.changed,
        unattended_seconds=service.unattended_seconds,
    )


def main() -> int:
    """Serve, and return the exit code."""
    gc.freeze()
    return entry.main(
        "worker",
        "Run one half of one pipeline.",
        make,
        fields_of=lambda assignment: {"half": assignment.half.value},
    )


if __name__ == "__main__":
    sys.exit(main())
