"""The law of a sink.

- `open` claims the fence: it raises the epoch where the checkpoint lives, and from then on no older owner can write.
  It first asks `ownership` whether this process may: one that was replaced must not end its successor's session.
- `apply` makes nothing visible before a set with `ends`, and then all of it at once, together with the position.
  Only then it returns `Progress`. Sets at or before the checkpoint's position are dropped without a trace.
- What it cannot hold is an error that names table and column; it never guesses, and never skips a row.
- A set for which `apply` raised has left nothing behind; the session ends and the next one resumes from the checkpoint.
- Where the pipeline asks for no more than the order of each key (`consistency: key`), a sink may show a set in parts, and
  leave some of them behind when it fails. The position comes last in any case, and no part is ever applied twice.

- A row that the destination refuses stops the pipeline, unless its settings ask for dead letters: then the row is written
  down beside the destination's tables, in the transaction and under the position of its set, and everything else goes
  on. Later changes of its key join it, in order, until a person replays or drops them. What every row would meet (a
  table that is gone, a right that is missing) stops the pipeline in any case, and what may pass is tried again.

One suite holds every sink to this (`tests/dataplane/laws/`).
"""

from typing import Protocol

from msgspec import Struct

from dataplane.batch import ChangeSet
from dataplane.checkpoint import Checkpoint, CheckpointStore, Progress


class SinkGauges(Struct, frozen=True, kw_only=True):
    """What a sink shows at a moment. Totals count since it was opened."""

    dead_letters: int = 0
    dead_letters_total: int = 0
    columns_ignored: int = 0


class Sink(CheckpointStore, Protocol):
    """Where changes are delivered. The constructor does no I/O."""

    @property
    def gauges(self) -> SinkGauges:
        """What is known now, without asking the destination."""
        ...

    async def look_again(self) -> None:
        """Ask the destination for what a person may have changed there: dead letters that were replayed or dropped.

        Raises:
            RetryLater: the destination does not answer.
        """
        ...

    async def open(self) -> Checkpoint | None:
        """Connect and claim the fence. Return the checkpoint, or None when this pipeline never wrote one.

        Raises:
            RetryLater: the destination does not answer, or the claim is not this process's (Code.SINK_FENCED).
            Permanent: something that a person must mend.
        """
        ...

    async def apply(self, change: ChangeSet) -> Progress | None:
        """Apply one set. Return what became durable, or None while a transaction is open.

        Raises:
            RetryLater: the destination does not answer, or another owner has raised the fence (Code.SINK_FENCED).
            Permanent: the destination refused a table or a value.
        """
        ...

    async def close(self) -> None:
        """Roll back what is open and let go of every connection. May be called at any time, and twice."""
        ...
