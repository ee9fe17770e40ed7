"""The inner loop of a session: sets from an inlet, through a bounded queue, to an outlet.

Reading and delivering overlap: one task fills the queue, another empties it. The flow ends by itself only with a
failure. `end` asks it to end where the outlet holds no open transaction; when that takes too long it ends there and
then, and the outlet's close rolls back.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

from contracts.codes import Code
from dataplane.batch import ChangeSet
from dataplane.failures import RetryLater
from dataplane.worker.cancelling import cancel
from dataplane.worker.queueing import ChangeQueue

END_SECONDS_MAX = 5.0
"""How long a transaction may take to end before it is rolled back instead."""


class Flow:
    """One flow. `deliver` gets sets that may be applied as one, in order, and returns once they are."""

    def __init__(
        self,
        inlet: AsyncIterator[ChangeSet],
        deliver: Callable[[Sequence[ChangeSet]], Awaitable[None]],
        queue: ChangeQueue,
    ) -> None:
        self._inlet = inlet
        self._deliver = deliver
        self._queue = queue
        self._transaction_open = False
        self._ending = asyncio.Event()

    def end(self) -> None:
        """Ask the flow to end at a transaction's end."""
        self._ending.set()
        if not self._transaction_open:
            self._queue.release()

    async def run(self) -> None:
        """Carry sets until `end`, or a failure of inlet or outlet, which is raised."""
        producer = asyncio.create_task(self._fill(), name="fill")
        consumer = asyncio.create_task(self._empty(), name="empty")
        ending = asyncio.create_task(self._ending.wait(), name="ending")
        try:
            await asyncio.wait({consumer, ending}, return_when=asyncio.FIRST_COMPLETED)
            if not consumer.done():
                await asyncio.wait({consumer}, timeout=END_SECONDS_MAX)
        finally:
            ending.cancel()
            await cancel((producer, consumer))
        if not consumer.cancelled():
            consumer.result()

    async def _fill(self) -> None:
        try:
            async for change in self._inlet:
                await self._queue.put(change)
        except Exception as failure:  # noqa: BLE001 - the consumer raises it, after what was read before
            self._queue.fail(failure)
        else:
            self._queue.fail(RetryLater(Code.INTERNAL, "the inlet ended by itself"))

    async def _empty(self) -> None:
        while self._transaction_open or not self._ending.is_set():
            changes = await self._queue.take()
            if not changes:
                return
            await self._deliver(changes)
            self._queue.delivered()
            self._transaction_open = not changes[-1].ends
