"""The lanes of one owner: several sessions on the destination, over which the rows of a set are written at once.

In flow sets that the sink would otherwise write by itself; a set is divided by key (`sinks.lanes`) where that is safe and
worth it, and each part is a transaction of its lane, with the lane's position and under the fence. Only when all lanes
have committed does the sink write the checkpoint. So a crash in between leaves some lanes ahead of it, and the next owner
drops what they have from what comes again, whatever its own settings are.

The sink's own session is the first lane. The others are connected for the first set that is divided, and an idle pipeline
that never has one holds one connection. After any failure the session is over, for all lanes.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass

from psycopg import sql

from dataplane.batch import ChangeBatch, ChangeSet, TableSchema
from dataplane.checkpoint import Checkpoint
from dataplane.sinks import lanes
from dataplane.sinks.lanes import Ahead
from dataplane.sinks.postgres import lane_table
from dataplane.sinks.postgres.delivery import Delivery
from dataplane.sinks.postgres.lane_table import LaneFence
from dataplane.sinks.postgres.session import Session
from dataplane.sinks.postgres.shapes import Shapes

ROWS_OF_A_LANE_MIN = 100
"""A set with fewer rows for each lane goes as one: a commit for each lane and one for the checkpoint would cost more."""


@dataclass(frozen=True, slots=True)
class Lane:
    """One session and its fence."""

    fence: LaneFence
    session: Session
    delivery: Delivery


MakeLane = Callable[[LaneFence, Session | None], Awaitable[Lane]]
"""Makes a lane on a session, or on a new one."""


class Lanes:
    """The lanes of one session of a sink. `make` connects; nothing is connected here."""

    def __init__(
        self, pipeline_id: str, epoch: int, count: int, shapes: Shapes, first: Session, make: MakeLane
    ) -> None:
        self._pipeline_id = pipeline_id
        self._epoch = epoch
        self._count = count
        self._shapes = shapes
        self._first = first
        self._make = make
        self._lanes: list[Lane] = []
        self._tied: dict[str, tuple[TableSchema, bool]] = {}
        self.ahead = Ahead()
        """What lanes of an earlier session have beyond the checkpoint."""

    async def load(self, held: Checkpoint | None) -> Ahead:
        """Find out what lanes have beyond the checkpoint. To be asked under the fence: then no lane writes."""
        rows = await self._first.execute(lane_table.LOAD, (self._pipeline_id,))
        return lane_table.ahead(rows, held.position) if held is not None else Ahead()

    def unseen(self, change: ChangeSet) -> ChangeSet:
        """Return the set without what lanes have already."""
        return lanes.unseen(change, self.ahead) if self.ahead.reached else change

    async def divide(self, change: ChangeSet) -> list[ChangeSet] | None:
        """Return the parts of a set that may be written at once; None where it is to be written as one."""
        if self._count == 1 or change.row_count < self._count * ROWS_OF_A_LANE_MIN or not lanes.is_divisible(change):
            return None
        # What a lane has already was divided in another way.
        if change.first <= self.ahead.furthest:
            return None
        undivided: set[str] = set()
        for item in change.items:
            assert isinstance(item, ChangeBatch)
            if self._shapes.known(item.table) is None:
                return None  # The table may have to be altered, which the sink's own session does while no lane writes.
            if await self._is_tied(item.table):
                undivided.add(item.table.table)
        parts = lanes.divide(change, self._count, undivided)
        if parts is not None:
            for lane in await self._open():
                lane.fence.divides(undivided)
        return parts

    async def deliver(self, parts: Sequence[ChangeSet], after: Checkpoint, unsettled: Collection[str]) -> None:
        """Write each part over its lane, and return when all are durable.

        Raises:
            Failure: of the first lane that failed. Other lanes may have committed; the caller ends the session.
        """
        writing = [
            asyncio.create_task(lane.delivery.deliver(part, after, unsettled))
            for lane, part in zip(self._lanes, parts, strict=True)
            if part.items
        ]
        try:
            # Each lane ends by itself: one that is cut off could be durable without being known to be.
            await asyncio.wait(writing)
        finally:
            for each in writing:
                each.cancel()
            results = await asyncio.gather(*writing, return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result

    async def close(self) -> None:
        """End the sessions of all lanes but the first, which is the sink's."""
        made, self._lanes = self._lanes, []
        for lane in made:
            if lane.session is not self._first:
                await lane.session.close()

    async def _open(self) -> Sequence[Lane]:
        while len(self._lanes) < self._count:
            number = len(self._lanes)
            fence = LaneFence(self._pipeline_id, self._epoch, number, self._count)
            self._lanes.append(await self._make(fence, None if number else self._first))
        return self._lanes

    async def _is_tied(self, table: TableSchema) -> bool:
        """Whether the table's rows of different keys depend on each other at the destination."""
        known = self._tied.get(table.table)
        if known is None or (known[0] is not table and known[0] != table):
            tied = not lanes.has_exact_key(table)
            if not tied:
                name, key = sql.Identifier(table.schema, table.name).as_string(None), list(table.key)
                ((found,),) = await self._first.execute(lane_table.TIED, (name, name, name, key, name, name, key))
                tied = bool(found)
            known = self._tied[table.table] = (table, tied)
        return known[1]
