"""Keeps the number of dead letters that a worker shows true, also while no row flows.

The sink counts what it adds. What a person replays or drops at the destination it cannot know, so while there are
letters it is asked to look again every few seconds; without letters nothing is asked.
"""

import asyncio

from dataplane.sinks.port import Sink
from dataplane.worker.observation import Observation

LOOK_AGAIN_SECONDS = 5.0


class LetterWatch:
    """The watch of one session over its sink."""

    def __init__(self, sink: Sink, observation: Observation) -> None:
        self._sink = sink
        self._observation = observation
        self._some = asyncio.Event()

    def opened(self) -> None:
        """The sink is open: from now on its numbers are shown."""
        self._observation.sink_opened(lambda: self._sink.gauges)
        self.delivered()

    def delivered(self) -> None:
        """A set was applied: there may be letters now."""
        if self._sink.gauges.dead_letters and not self._some.is_set():
            self._some.set()
            self._observation.letters_changed()

    async def watch(self) -> None:
        """Look again for as long as there are letters; never returns.

        Raises:
            RetryLater: the destination does not answer.
        """
        while True:
            await self._some.wait()
            await asyncio.sleep(LOOK_AGAIN_SECONDS)
            await self._sink.look_again()
            if not self._sink.gauges.dead_letters:
                self._some.clear()
                self._observation.letters_changed()
