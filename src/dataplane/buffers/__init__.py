"""What lies between a source and a sink that run apart: one file or folder for each system, under the law of `port`.

`BUFFERS` is the registry: the worker makes buffers from it, and the law's suite finds its members in it. Imports are
late, so that a worker loads the buffer that it uses and no other. `direct` is no buffer: source and sink share a process.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

from contracts.v2 import BufferType, Confirm
from dataplane.buffers.port import BufferReader, BufferWriter
from dataplane.worker.protocol import BufferAccess


class MakeWriter(Protocol):
    """Makes the source's end; nothing is opened."""

    def __call__(
        self, access: BufferAccess, *, pipeline_id: str, size_bytes_max: int, resyncs: Mapping[str, int] = ...
    ) -> BufferWriter:
        """`size_bytes_max` bounds what the buffer holds; `resyncs` is what the source's half knows of."""
        ...


class MakeReader(Protocol):
    """Makes the sink's end; nothing is opened."""

    def __call__(
        self, access: BufferAccess, *, pipeline_id: str, size_bytes_max: int, resyncs: Mapping[str, int] = ...
    ) -> BufferReader:
        """`size_bytes_max` bounds what the buffer holds; `resyncs` is what the sink's half waits for."""
        ...


class BufferKind(NamedTuple):
    """The two ends of one kind of buffer."""

    writer: MakeWriter
    reader: MakeReader


def _jetstream() -> BufferKind:
    from dataplane.buffers.jetstream.reader import JetStreamReader
    from dataplane.buffers.jetstream.writer import JetStreamWriter

    return BufferKind(JetStreamWriter, JetStreamReader)


def _jetstream_as_data() -> BufferKind:
    from dataplane.buffers.jetstream.delivering import JetStreamDeliverer
    from dataplane.buffers.jetstream.keeper import JetStreamKeeper

    return BufferKind(JetStreamKeeper, JetStreamDeliverer)


BUFFERS: dict[tuple[BufferType, Confirm], Callable[[], BufferKind]] = {
    (BufferType.JETSTREAM, Confirm.SINK): _jetstream,
    (BufferType.JETSTREAM, Confirm.BUFFER): _jetstream_as_data,
}
