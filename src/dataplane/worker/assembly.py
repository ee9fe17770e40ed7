"""An assignment turned into the session that does its work: the one place that knows every kind of part.

Secrets are resolved here, at the start of each session, so that a rotated one is picked up by the next. Imports are
late: a sink's half never loads the source's code.
"""

from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from contracts.v2 import BufferType, Confirm, PipelineDocument
from dataplane import secrets
from dataplane.buffers.port import BufferReader, BufferWriter
from dataplane.sinks.ownership import Ownership
from dataplane.sinks.port import Sink
from dataplane.sources.port import Source
from dataplane.transforms.port import Transform
from dataplane.worker.guarding import Guard
from dataplane.worker.protocol import Assignment, BufferAccess, Half
from dataplane.worker.session import Session, SinkSession, SourceSession, Surroundings, WholeSession

if TYPE_CHECKING:
    from dataplane.sources.postgres.spill import Spill


class Room:
    """The worker's room on disk, below `folder`, for what a source sends ahead of time. One for all of its sessions."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._spill: Spill | None = None

    def __call__(self) -> "Spill":
        """Return it; only a worker with a source ever asks."""
        from dataplane.sources.postgres.spill import Spill

        if self._spill is None:
            self._spill = Spill(self._folder)
        return self._spill


def assemble(
    assignment: Assignment, document: PipelineDocument, surroundings: Surroundings, *, room: Callable[[], "Spill"]
) -> Session:
    """Return a session for the assignment; nothing is opened yet. `room` gives the worker's room on disk.

    Raises:
        RetryLater: a secret is not there yet.
        Permanent: a secret or a transform is refused.
    """
    surroundings = replace(surroundings, guard=Guard(assignment.masks, document))
    match assignment.half:
        case Half.WHOLE:
            transformed = {transform.table for transform in document.transforms}
            source = _source(assignment, document, room(), parsed=transformed)
            sink = _sink(assignment, document, surroundings.ownership)
            return WholeSession(source, sink, _transforms(assignment, document), surroundings)
        case Half.SOURCE:
            writer = _writer(assignment, document)
            return SourceSession(
                _source(assignment, document, room()), writer, _transforms(assignment, document), surroundings
            )
        case Half.SINK:
            return SinkSession(
                _reader(assignment, document), _sink(assignment, document, surroundings.ownership), surroundings
            )
        case Half.RECONCILE:
            raise ValueError("a worker carries rows; python -m dataplane.reconcile compares them")


def _source(
    assignment: Assignment, document: PipelineDocument, spill: "Spill", *, parsed: Collection[str] | None = None
) -> Source:
    from dataplane.sources import SOURCES, Asked

    connection = assignment.source
    return SOURCES[type(connection.config)](
        connection,
        secrets.password(connection.secrets, assignment.secrets_folder),
        pipeline_id=assignment.pipeline_id,
        settings=document.source,
        asked=Asked(resyncs=document.resyncs, backfills=document.partial_copies, paused=document.paused_copies),
        spill=spill,
        parsed=parsed,
    )


def _sink(assignment: Assignment, document: PipelineDocument, ownership: Ownership) -> Sink:
    from dataplane.sinks import SINKS

    connection = assignment.sink
    return SINKS[type(connection.config)](
        connection,
        secrets.password(connection.secrets, assignment.secrets_folder),
        pipeline_id=assignment.pipeline_id,
        ownership=ownership,
        settings=document.sink,
    )


def _transforms(assignment: Assignment, document: PipelineDocument) -> list[Transform]:
    from dataplane.transforms import make

    return make(document.transforms, Path(assignment.secrets_folder))


def _access(assignment: Assignment, document: PipelineDocument) -> tuple[tuple[BufferType, Confirm], BufferAccess]:
    if assignment.buffer is None:
        raise ValueError(f"half {assignment.half.value} needs a buffer, and the assignment has none")
    return (document.buffer.type, document.buffer.confirm), assignment.buffer


def _writer(assignment: Assignment, document: PipelineDocument) -> BufferWriter:
    from dataplane.buffers import BUFFERS

    kind, access = _access(assignment, document)
    return BUFFERS[kind]().writer(
        access,
        pipeline_id=assignment.pipeline_id,
        size_bytes_max=document.buffer.size_bytes_max,
        resyncs=document.resyncs,
    )


def _reader(assignment: Assignment, document: PipelineDocument) -> BufferReader:
    from dataplane.buffers import BUFFERS

    kind, access = _access(assignment, document)
    return BUFFERS[kind]().reader(
        access,
        pipeline_id=assignment.pipeline_id,
        size_bytes_max=document.buffer.size_bytes_max,
        resyncs=document.resyncs,
    )
