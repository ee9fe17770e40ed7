"""What is said of comparing a pipeline's two ends: the request in its document, and the words for how it stands.

A request is a counter for each table, like that of a resync, so that it happens once; whether it mends goes with it.
"""

from enum import Enum

from msgspec import Struct

from contracts.names import Count


class Reconcile(Struct, frozen=True, kw_only=True):
    """A table is compared while `number` is beyond what the destination's own record of it reached."""

    number: Count
    repair: bool = False
    """Rows that differ are written again, and rows that the source does not have are deleted."""


class ReconcileState(Enum):
    """How the comparison of one table stands."""

    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    """It ended before the table's end; `code` says why."""
