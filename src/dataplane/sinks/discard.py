"""A sink that counts rows and keeps none, to measure what lies before it: only the checkpoint is real.

With a file the checkpoint outlives the process and is the fence, as in any sink: written whole, fsynced and renamed, so
a crash leaves the old one or the new one. One machine only: the epoch is compared and written by one process at a time.
"""

import os
from pathlib import Path

import msgspec
from msgspec.structs import replace

from contracts.codes import Code
from dataplane.batch import ChangeSet, Truncate
from dataplane.checkpoint import Checkpoint, Progress, SourceIdentity
from dataplane.failures import RetryLater
from dataplane.sinks import durable, replay
from dataplane.sinks.port import SinkGauges


class DiscardSink:
    """Takes everything and keeps the checkpoint, in `path` or, without one, for as long as the object lives."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._kept: Checkpoint | None = None
        self._epoch = 0
        self._open = False
        self._rows = 0
        self._transactions = 0
        self._chunk = 0

    def _read(self) -> Checkpoint | None:
        if self._path is None:
            return self._kept
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=Checkpoint)
        except FileNotFoundError:
            return None

    def _write(self, checkpoint: Checkpoint) -> None:
        if self._path is None:
            self._kept = checkpoint
            return
        draft = self._path.with_name(f".{self._path.name}.new")
        with draft.open("wb") as file:
            file.write(msgspec.json.encode(checkpoint))
            file.flush()
            os.fsync(file.fileno())
        draft.replace(self._path)

    def _held(self) -> Checkpoint:
        held = self._read()
        if held is None or held.epoch != self._epoch:
            raise RetryLater(Code.SINK_FENCED, "a newer owner has claimed this pipeline")
        return held

    @property
    def gauges(self) -> SinkGauges:
        """Nothing: no row is refused."""
        return SinkGauges()

    async def look_again(self) -> None:
        """Nothing changes here but by this session."""

    async def open(self) -> Checkpoint | None:
        """Claim the checkpoint."""
        held = self._read()
        self._epoch = (held.epoch if held is not None else 0) + 1
        self._write(replace(held or durable.nothing(0), epoch=self._epoch))
        self._open, self._rows, self._transactions, self._chunk = False, 0, 0, 0
        return await self.load()

    async def load(self) -> Checkpoint | None:
        """Return the checkpoint."""
        held = self._read()
        return None if held is None or held == durable.nothing(held.epoch) else held

    async def begin(self, source: SourceIdentity) -> None:
        """Start over with a new source identity."""
        owned = self._held().tables_owned
        self._write(replace(durable.nothing(self._epoch), source=source, tables_owned=owned))

    async def advance(self, confirmed_through: int) -> None:
        """Raise what the source may be told."""
        held = self._held()
        if confirmed_through > held.confirmed_through:
            self._write(replace(held, confirmed_through=confirmed_through))

    async def follow(self, source: SourceIdentity, confirmed_through: int) -> None:
        """Go on with the same source under another identity."""
        self._write(replace(self._held(), source=source, confirmed_through=confirmed_through))

    async def forget(self) -> None:
        """Leave nothing but the epoch, so that no older owner can come back."""
        self._held()
        self._write(durable.nothing(self._epoch))

    async def apply(self, change: ChangeSet) -> Progress | None:
        """Count the rows; with `ends`, write the checkpoint."""
        held = self._held()
        unseen = replay.unseen(change, held.position, held.tables_copied, held.cursors)
        if unseen is not None:
            self._open = True
            self._rows += unseen.row_count
            self._transactions += unseen.transactions
        if not change.ends or (unseen is None and self._open):
            return None
        if unseen is None:
            held = replace(held, confirmed_through=max(held.confirmed_through, change.commit_end_lsn))
        else:
            owned = {item.table.table for item in unseen.items if isinstance(item, Truncate) and item.for_snapshot}
            held = durable.after(replace(held, tables_owned=sorted({*held.tables_owned, *owned})), unseen)
        self._write(held)
        self._chunk = durable.newest_chunk(self._chunk, change)
        progress = durable.progress(
            held, change.commit_time, rows=self._rows, transactions=self._transactions, chunk=self._chunk
        )
        self._open, self._rows, self._transactions = False, 0, 0
        return progress

    async def close(self) -> None:
        """Nothing to let go of."""
