"""Cancel tasks and wait until they are gone, although a cancellation can get lost.

Up to Python 3.11 `asyncio.wait_for` swallows a cancellation that meets the moment at which what it waits for is done,
and libraries on the hot path use it. A task that went on for that reason is cancelled again.
"""

import asyncio
from collections.abc import Iterable

AGAIN_SECONDS = 0.05


async def cancel(tasks: Iterable["asyncio.Future[None]"]) -> None:
    """Cancel every task and return once all are done; what they raised stays in them.

    It counts as heard: of tasks that fail together the caller tells one failure, and nothing prints the others.
    """
    everyone = list(tasks)
    pending = {task for task in everyone if not task.done()}
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=AGAIN_SECONDS)
    for task in everyone:
        if not task.cancelled():
            task.exception()
