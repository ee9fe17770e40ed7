"""`python -m dataplane.reconcile --assignment FILE --socket FILE`: compares one pipeline's two ends.

The node's agent starts it beside the pipeline's workers while the document asks for it, and speaks to it in the same
way (`worker.protocol`). Exit codes: 0 after SIGTERM or SIGINT or without an agent for long, 1 when it failed
unexpectedly, 64 when assignment or socket cannot be used.
"""

import os
import sys
from pathlib import Path

os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from dataplane.reconcile.runtime import ReconcileRuntime
from dataplane.worker import entry
from dataplane.worker.protocol import Assignment
from dataplane.worker.service import Service


def make(assignment: Assignment, _: Path, service: Service) -> ReconcileRuntime:
    """Return the runtime of a comparison."""
    return ReconcileRuntime(assignment, changed=service.changed, unattended_seconds=service.unattended_seconds)


def main() -> int:
    """Serve, and return the exit code."""
    return entry.main("reconcile", "Compare a pipeline's two ends.", make)


if __name__ == "__main__":
    sys.exit(main())
