"""The law of a buffer between two halves of a pipeline that run as processes of their own.

- `put` returns once the set is durable in the buffer. A set that is larger than one message is cut and joined again.
- `take` gives the sets in the order in which they were put. A hole, a foreign session or a cut stream is never passed
  over: the source's half starts a new session, which replays everything that the sink has not made durable.
- With `confirm: sink` the buffer is a cache: losing all of it means replay, never loss. What the sink has made durable
  travels back as `Progress`, and only that is confirmed to the source.
- With `confirm: buffer` it is data: a set is confirmed to the source once it is durable here, whether the sink's half is
  there or not, and the source's half resumes from what lies here. What was put and confirmed comes out once, in order,
  whatever halves and buffer go through; a buffer that was lost, made again or cut is a `Gap` before a row is given, and
  so is one that ends before what the destination holds. Only a source that starts over, and so copies every table,
  passes beyond it. A transaction that nobody ended is read again.
- It is bounded by bytes: when it is full, `put` waits.
- With `confirm: sink` it also carries the checkpoint to the source's half, because only the sink's half can reach the destination.
- While a table is to be copied again, the sink's half follows no session of a source's half that does not know of it yet:
  what lies in the buffer may be the very rows that the destination refused.

One suite holds every buffer to this (`tests/dataplane/laws/`).
"""

from collections.abc import AsyncIterator
from typing import Protocol

from contracts.codes import Code
from dataplane.batch import ChangeSet
from dataplane.checkpoint import CheckpointStore, Progress
from dataplane.failures import Gap, RetryLater


class SessionReplaced(RetryLater):
    """The other half began anew, so this one does too, at once: no failure of anything."""

    def __init__(self, message: str) -> None:
        super().__init__(Code.BUFFER_UNREACHABLE, message)


class BufferWriter(Protocol):
    """The source's end."""

    async def open(self) -> CheckpointStore:
        """Connect, begin a new session, and return the checkpoint as the sink's half keeps it.

        Raises:
            RetryLater: buffer or sink's half do not answer.
        """
        ...

    async def put(self, change: ChangeSet) -> None:
        """Make one set durable in the buffer. Calls may overlap; the sets lie in the order of the calls.

        A set that is given up, by a failure or a cancellation, ends the session: none that follows gets in.

        Raises:
            RetryLater: the buffer does not answer or was lost; the session must start again.
        """
        ...

    def progress(self) -> AsyncIterator[Progress]:
        """Give what the sink has made durable in this session, newest only.

        Raises:
            RetryLater: the buffer was lost.
            SessionReplaced: the sink's half asks for a new session.
        """
        ...

    def cause(self, gap: Gap) -> Gap:
        """Return the gap that a source has found as the buffer explains it, or as it is."""
        ...

    def fill_bytes(self) -> int:
        """Return how many bytes lie in the buffer, as far as it is known."""
        ...

    async def remove(self) -> None:
        """Delete what the buffer holds for this pipeline: it was removed, and its checkpoint is forgotten."""
        ...

    async def close(self) -> None:
        """Let go of every connection. May be called at any time, and twice."""
        ...


class BufferReader(Protocol):
    """The sink's end."""

    async def open(self, checkpoints: CheckpointStore) -> None:
        """Connect, and answer the source's half for `checkpoints` from now on."""
        ...

    def take(self) -> AsyncIterator[ChangeSet]:
        """Give the sets in order, for ever. The first one begins where the checkpoint ends, or before it.

        Raises:
            RetryLater: the buffer does not answer or was lost; the session must start again.
            SessionReplaced: the source's half began a new session.
        """
        ...

    async def done(self, progress: Progress) -> None:
        """Say what is durable at the destination: the buffer may forget it, and the source's half hears of it."""
        ...

    async def close(self) -> None:
        """Let go of every connection. May be called at any time, and twice."""
        ...
