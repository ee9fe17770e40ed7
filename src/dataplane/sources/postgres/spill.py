"""Where a worker keeps what it was sent of transactions that have not ended: memory first, then a file without a name.

In flow messages of transactions in progress, in chunks; out flow the same bytes, once, when the transaction commits. One
`Spill` lives as long as its worker and opens a `SpillFile` for each session of the source. Called by `streamed`, in a
thread of the source.

The file is made without a name (or loses it at once), readable by its owner only: a killed worker leaves nothing behind,
and the server sends everything again. It has slots of equal size, which are used again as soon as a transaction is gone,
so it grows as large as what was open at one time, and no larger.

A disk that is full is no reason to stop: for a while the source then asks the server not to send what is in progress,
and the server keeps it on its own disk until the commit.
"""

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from contracts.codes import Code
from dataplane.failures import RetryLater
from dataplane.sources.postgres.messages import Messages

SLOT_BYTES = 512 << 10
SPILL_BYTES_MAX = 64 << 30
FREE_BYTES_MIN = 256 << 20
"""So much of the disk stays free: the node needs it for what it must not lose."""
FULL_PAUSE_SECONDS = 600.0
"""After the disk was full nothing is taken in progress for this long."""


class Chunk(NamedTuple):
    """Messages in the file: the slots that hold them, how many bytes those are, and how many messages."""

    slots: Sequence[int]
    byte_size: int
    messages: int


class Spill:
    """What a worker may keep on disk, below `folder` (the system's folder for temporary files if None)."""

    def __init__(
        self,
        folder: Path | None = None,
        *,
        bytes_max: int = SPILL_BYTES_MAX,
        free_bytes_min: int = FREE_BYTES_MIN,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Keep at most `bytes_max`, and leave `free_bytes_min` of the disk free."""
        self.bytes_max = bytes_max
        self.free_bytes_min = free_bytes_min
        self._folder = folder
        self._clock = clock
        self._full_until = 0.0

    @property
    def is_available(self) -> bool:
        """Whether the disk took all that came lately."""
        return self._clock() >= self._full_until

    def open(self) -> "SpillFile":
        """Return the room of one session. Its file is made when it is first needed."""
        return SpillFile(self)

    def make_file(self) -> IO[bytes]:
        """Make an empty file that nobody else can reach."""
        return tempfile.TemporaryFile(buffering=0, dir=self._folder)

    def full(self, reason: str) -> RetryLater:
        """Note that the disk takes no more. Return what the source raises for it."""
        self._full_until = self._clock() + FULL_PAUSE_SECONDS
        return RetryLater(Code.SOURCE_SPILL_FAILED, f"a transaction in progress cannot be kept on disk: {reason}")


class SpillFile:
    """The room of one session."""

    def __init__(self, spill: Spill) -> None:
        self._spill = spill
        self._file: IO[bytes] | None = None
        self._slots = 0
        self._free: list[int] = []

    @property
    def used_bytes(self) -> int:
        """How much of the disk is in use."""
        return (self._slots - len(self._free)) * SLOT_BYTES

    def write(self, messages: Messages) -> Chunk:
        """Keep messages.

        Raises:
            RetryLater: the disk, or the room, is full (Code.SOURCE_SPILL_FAILED).
        """
        messages = Messages.copied((messages,))
        bounds = np.concatenate((messages.starts, messages.ends)).astype(np.uint32)
        data = b"".join((bounds.tobytes(), messages.data))
        count = -(-len(data) // SLOT_BYTES)
        try:
            file = self._ready(count)
            slots = [self._slot() for _ in range(count)]
            view = memoryview(data)
            for number, slot in enumerate(slots):
                _write(file, view[number * SLOT_BYTES : (number + 1) * SLOT_BYTES], slot * SLOT_BYTES)
        except OSError as error:
            raise self._spill.full(error.strerror or type(error).__name__) from None
        return Chunk(slots, len(data), len(messages))

    def read(self, chunk: Chunk) -> Messages:
        """Return the messages of a chunk.

        Raises:
            RetryLater: the disk does not give them (Code.SOURCE_SPILL_FAILED).
        """
        assert self._file is not None
        data = memoryview(bytearray(chunk.byte_size))
        got = 0
        try:
            for number, slot in enumerate(chunk.slots):
                part = data[number * SLOT_BYTES : (number + 1) * SLOT_BYTES]
                got += os.preadv(self._file.fileno(), [part], slot * SLOT_BYTES)
        except OSError as error:
            raise self._spill.full(error.strerror or type(error).__name__) from None
        if got != chunk.byte_size:
            raise self._spill.full("what was written is not all there")
        bounds = np.frombuffer(data, np.uint32, 2 * chunk.messages).astype(np.int64)
        return Messages(data[8 * chunk.messages :], bounds[: chunk.messages], bounds[chunk.messages :])

    def free(self, chunks: Sequence[Chunk]) -> None:
        """Forget chunks. The file gives its room back when nothing is left in it."""
        for chunk in chunks:
            self._free.extend(chunk.slots)
        if self._file is not None and len(self._free) == self._slots:
            self._file.truncate(0)
            self._slots = 0
            self._free.clear()

    def close(self) -> None:
        """Let go of the file, which ends it. May be called twice."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _ready(self, slots: int) -> IO[bytes]:
        """Return the file when there is room for so many slots more.

        Raises:
            OSError: it cannot be made.
            RetryLater: there is no room.
        """
        if self._file is None:
            self._file = self._spill.make_file()
        fresh = max(0, slots - len(self._free)) * SLOT_BYTES
        if self.used_bytes + slots * SLOT_BYTES > self._spill.bytes_max:
            raise self._spill.full(f"{self._spill.bytes_max} bytes are in use")
        disk = os.fstatvfs(self._file.fileno())
        if fresh and disk.f_bavail * disk.f_frsize < fresh + self._spill.free_bytes_min:
            raise self._spill.full(f"less than {self._spill.free_bytes_min} bytes would stay free")
        return self._file

    def _slot(self) -> int:
        if self._free:
            return self._free.pop()
        self._slots += 1
        return self._slots - 1


def _write(file: IO[bytes], data: memoryview, at: int) -> None:
    while data:
        written = os.pwrite(file.fileno(), data, at)
        data, at = data[written:], at + written
