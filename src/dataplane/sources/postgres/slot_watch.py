"""Measure the slot while a session lasts, and end the session where it must not go on as it is.

That is so when the slot may keep no more of the source's log, and when a table has left the publication, if only for a
moment: its rows did not come, and a stream cannot tell that from a table that rests. The next session copies it again.

In flow what the pipeline allows (`source.log`); out flow measures, and how the session ended if it was ended here. The
source owns one `SlotWatch` for each session. It runs beside the stream and asks nobody for a turn, so that a destination
that takes nothing cannot hold it up.

A slot is let alone while its backlog is being worked off, as after a long outage; only one that goes on growing, or that
keeps as much as before, is at its limit. The session ends first: then nobody reads the slot, and it is dropped if it still keeps too much (`retention`). Otherwise
what the stream confirmed last has freed enough, and the next session goes on.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Mapping

import psycopg

from contracts.codes import Code
from contracts.slots import OnFull, SourceLog
from dataplane import retention
from dataplane.failures import Failure, Gap, RetryLater
from dataplane.postgres import Side, failure
from dataplane.slot_measure import SlotMeasure, measure_query, measured
from dataplane.sources.postgres.catalog import Catalog

MEASURE_SECONDS = 10.0
"""How far a slot goes beyond its limit is what the source writes in twice this time."""
FREE_SECONDS_MAX = 5.0
"""From the end of the session to a slot that nobody holds."""
POLL_SECONDS = 0.05


def is_at_limit(log: SourceLog, before: SlotMeasure | None, now: SlotMeasure | None) -> bool:
    """Say whether the slot has to be given up: it keeps too much, and that does not become less.

    What is kept for a long transaction at the source counts too, although nothing of it waits for the destination.
    """
    limit = log.retain_bytes_max
    if limit is None or log.on_full is not OnFull.STOP or before is None or now is None or now.is_gone:
        return False
    if now.retained_bytes < limit or before.retained_bytes < limit:
        return False
    is_backlog = 2 * now.unconfirmed_bytes > now.retained_bytes
    shrinks = now.retained_bytes < before.retained_bytes or (
        is_backlog and now.unconfirmed_bytes < before.unconfirmed_bytes
    )
    return not shrinks


class SlotWatch:
    """Watches the slots of one pipeline. `measure` is the newest, `ended` why the session was ended here, if it was."""

    def __init__(self, catalog: Catalog, conninfo: str, publication: str, log: SourceLog) -> None:
        self.measure: SlotMeasure | None = None
        self.ended: Failure | None = None
        self._catalog = catalog
        self._conninfo = conninfo
        self._publication = publication
        self._log = log
        self.members: Mapping[str, int] = {}
        """The tables of the publication, each with the id of its entry, as they were when the session was prepared."""

    async def run(self, end_session: Callable[[], Awaitable[None]], ended: Callable[[], None]) -> None:
        """Measure until cancelled. A question that fails is asked again at the next turn.

        `end_session` lets go of the slot; `ended` is called once the session is over for it.
        """
        while True:
            with contextlib.suppress(psycopg.Error, Failure):
                before, self.measure = self.measure, await self._look()
                if self.ended is None and is_at_limit(self._log, before, self.measure):
                    self.ended = await self._stop(end_session)
                    ended()
                    self.measure = await self._look()
                if self.ended is None and (left := await self._left()):
                    self.ended = RetryLater(
                        Code.SOURCE_TABLE_LEFT, "it was dropped or taken out of the publication", table=left
                    )
                    await end_session()
                    ended()
            await asyncio.sleep(MEASURE_SECONDS)

    async def _left(self) -> str | None:
        """Return a table that left the publication since the session began; one that came back is taken out again.

        Whoever prepares the next session copies what it finds outside.
        """
        now = await self._catalog.members(self._publication)
        left = [table for table, entry in self.members.items() if now.get(table) != entry]
        for table in left:
            if table in now:
                await self._catalog.unpublish(self._publication, table)
        return left[0] if left else None

    async def _look(self) -> SlotMeasure | None:
        rows = await self._catalog.rows(measure_query(await self._catalog.version()), f"{self._publication}_")
        return measured(rows, None if rows else await self._catalog.comment_of(self._publication))

    async def _stop(self, end_session: Callable[[], Awaitable[None]]) -> Failure:
        """End the session, then give the slot up if it still keeps too much."""
        limit = self._log.retain_bytes_max
        assert limit is not None
        await end_session()
        gives_up = time.monotonic() + FREE_SECONDS_MAX
        try:
            while time.monotonic() < gives_up:
                if await asyncio.to_thread(self._give_up, limit):
                    return Gap(Code.GAP_LOG_LIMIT, f"the slot kept {limit} bytes of the log or more, and was dropped")
                now = await self._look()
                if now is None or not now.active:
                    break
                await asyncio.sleep(POLL_SECONDS)
        except psycopg.Error as error:
            return failure(error, Side.SOURCE)
        except Failure as error:
            return error  # whatever it is: nobody reads the slot any more, so the session must not go on
        return RetryLater(Code.SOURCE_SLOT_BUSY, "the slot was at its limit when the session was ended")

    def _give_up(self, limit: int) -> bool:
        with psycopg.connect(self._conninfo, autocommit=True, prepare_threshold=None) as connection:
            return retention.give_up(connection, self._publication, limit)
