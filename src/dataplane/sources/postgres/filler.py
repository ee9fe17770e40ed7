"""Ask the source for values that an update needs while its table is being copied (`filling` says why, and decides).

In flow change sets of the stream and the copies of the session; out flow the same sets with those values. Called by
`copying`, which owns it. One connection of its own, as a table's copy may be reading on the others.
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace

from contracts.codes import Code
from dataplane.batch import ChangeBatch, ChangeSet, Truncate
from dataplane.failures import RetryLater
from dataplane.sources.postgres import filling, ranges
from dataplane.sources.postgres.catalog import TableSeen
from dataplane.sources.postgres.snapshot import ChunkReader
from dataplane.sources.postgres.table_copy import TableCopy
from dataplane.sources.postgres.unseen import Unseen

AGAIN_SECONDS = 0.05
FILL_SECONDS_MAX = 60.0


class Filler:
    """Fills the sets of one session. Does not connect before it must ask."""

    def __init__(self, conninfo: str, unseen: Unseen) -> None:
        self._reader = ChunkReader(conninfo)
        self._unseen = unseen

    @property
    def undecodable_values(self) -> int:
        """How many of the values were not valid UTF-8."""
        return self._reader.undecodable_values

    async def close(self) -> None:
        """End its connection."""
        await self._reader.close()

    async def filled(self, change: ChangeSet, tables: Sequence[TableCopy]) -> ChangeSet:
        """Return the set with every value that its updates need, for those of `tables` that are being copied.

        Raises:
            Failure: the source does not answer.
        """
        copied = {table.name: table for table in tables if table.needs_values}
        if not copied or not any(_lacks(item, copied) for item in change.items):
            return change
        items = [
            await self._filled(item, copied[item.table.table])
            if isinstance(item, ChangeBatch) and _lacks(item, copied)
            else item
            for item in change.items
        ]
        return replace(change, items=tuple(items))

    async def _filled(self, batch: ChangeBatch, table: TableCopy) -> ChangeBatch:
        rows = filling.lacking(batch, of_part=table.part)
        name, key = batch.table.table, batch.table.key
        ends = time.monotonic() + FILL_SECONDS_MAX
        while True:
            seen = await self._reader.begin(name)
            if seen is not None and self._unseen.are_seen(seen.moment):
                break
            if seen is not None:
                await self._reader.abandon()
            if time.monotonic() > ends:
                raise RetryLater(
                    Code.SOURCE_UNREACHABLE, "a value that the stream left out cannot be asked for", table=name
                )
            await asyncio.sleep(AGAIN_SECONDS)
        part = ranges.Part(TableSeen(seen.oid, name, seen.only).identifier, batch.table, key)
        columns = [batch.table.columns[number].name for number in sorted(batch.unchanged)]
        found = await self._reader.rows(part, columns, filling.new_keys(batch, rows))
        table.through = max(table.through, seen.through)
        values = {tuple(str(value) for value in row[: len(key)]): row[len(key) :] for row in found}
        return filling.fill(batch, rows, values)


def _lacks(item: ChangeBatch | Truncate, copied: dict[str, TableCopy]) -> bool:
    if not isinstance(item, ChangeBatch) or item.table.table not in copied:
        return False
    return bool(len(filling.lacking(item, of_part=copied[item.table.table].part)))
