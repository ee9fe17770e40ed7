"""The life of a worker: sessions one after another, each for the newest assignment, until the process is asked to end.

Desired state comes in as an `Assignment`, what is observed goes out as an `Observation`. The loop reads the newest
assignment and acts on it; a message only wakes it. Failures are answered here and nowhere else:

- `RetryLater`: another session after a delay with jitter (`retry`), for ever, in phase `retrying`.
- `Permanent`: phase `degraded` (a `Gap`: phase `gap`); the worker stays and does nothing until its assignment changes.
- Anything else is our mistake: it is logged with its traceback here, counted as `internal`, and tried again.
- Without an agent, in a data plane of several nodes, any failure ends the worker: its node counts as dead there, another
  one takes over (which is what such a failure looks like), and the two would end each other's sessions for ever.

A new assignment that changes nothing for the session is only acknowledged; else the session ends at a transaction's
end and the next begins in the same process.
"""

import asyncio
import contextlib
import functools
import logging
import time
from collections.abc import Callable, Coroutine
from random import Random

import msgspec
from msgspec import UNSET, structs

from contracts import convert, v1, v2
from contracts.codes import Code
from contracts.v2 import Phase, PipelineDocument, RunState
from dataplane.buffers.port import SessionReplaced
from dataplane.failures import Failure, Gap, RetryLater
from dataplane.sinks.ownership import Ownership
from dataplane.worker.cancelling import cancel
from dataplane.worker.flow import END_SECONDS_MAX
from dataplane.worker.observation import Observation
from dataplane.worker.protocol import Assignment, WorkerStatus
from dataplane.worker.queueing import QueueLimits
from dataplane.worker.retry import DELAY_SECONDS_MAX, Backoff
from dataplane.worker.session import CLOSE_SECONDS_MAX, Session, Surroundings

Assemble = Callable[[Assignment, PipelineDocument, Surroundings], Session]

SESSION_END_SECONDS_MAX = END_SECONDS_MAX + CLOSE_SECONDS_MAX
UNATTENDED_SECONDS_MAX = 5.0
"""Without an agent for this long, another node may have taken over; it is less than a node's lease lasts."""

_log = logging.getLogger("pointsman.worker")


def document_of(assignment: Assignment) -> PipelineDocument:
    """Return the assignment's document as contract version 2 says it.

    Raises:
        ValueError: it is no pipeline document of the contract version that it claims.
    """
    shapes: dict[int, type[v1.PipelineDocument | v2.PipelineDocument]] = {
        v1.CONTRACT: v1.PipelineDocument,
        v2.CONTRACT: v2.PipelineDocument,
    }
    if assignment.contract not in shapes:
        raise ValueError(f"contract version {assignment.contract} is unknown")
    document = convert.to_v2(msgspec.json.decode(assignment.document, type=shapes[assignment.contract]))
    if not isinstance(document, PipelineDocument):
        raise ValueError("the assignment's document is no pipeline")
    return document


def work_of(assignment: Assignment) -> tuple[object, ...]:
    """Return all that matters to a session: two assignments with equal work need no new one."""
    document = document_of(assignment)
    return (
        structs.replace(document, epoch=1, generation=1, reconciles=UNSET),
        assignment.pipeline_id,
        assignment.half,
        assignment.source.config,
        assignment.source.secrets,
        assignment.sink.config,
        assignment.sink.secrets,
        assignment.secrets_folder,
        assignment.buffer,
        assignment.restarts,
        assignment.masks,
    )


_DEFAULT_LIMITS = QueueLimits()


class Runtime:
    """One worker's loop. `run` carries on until `stop`; `assign` and `stop` may be called at any time."""

    def __init__(
        self,
        assignment: Assignment,
        *,
        assemble: Assemble,
        changed: Callable[[], None],
        unattended_seconds: Callable[[], float] = lambda: 0.0,
        limits: QueueLimits = _DEFAULT_LIMITS,
        randomness: Random | None = None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """Keep the first assignment; nothing is opened.

        Raises:
            ValueError: the assignment's document cannot be read.
        """
        self._assignment = assignment
        self._work = work_of(assignment)
        self._assemble = assemble
        self._unattended_seconds = unattended_seconds
        self._limits = limits
        self._ownership = Ownership.of(assignment.owner, leased=assignment.leased)
        # Only spreads retries in time.
        self._backoff = Backoff(randomness or Random())  # noqa: S311
        self._wake = asyncio.Event()
        self._stopping = False
        self._session: Session | None = None
        self.observation = Observation(wall, changed)
        self.observation.acts_on(document_of(assignment), assignment.half)

    def assign(self, assignment: Assignment) -> None:
        """Act on this assignment from now on.

        Raises:
            ValueError: its document cannot be read; the worker goes on with what it has.
        """
        work = work_of(assignment)
        unchanged = work == self._work
        self._assignment, self._work = assignment, work
        if unchanged and self._session is not None:
            self.observation.acts_on(document_of(assignment), assignment.half)
            return
        self._interrupt()

    def status(self) -> WorkerStatus:
        """Return what the worker observes."""
        return self.observation.status()

    def stop(self) -> None:
        """End at a transaction's end, and let `run` return."""
        self._stopping = True
        self._interrupt()

    def _interrupt(self) -> None:
        self._wake.set()
        if self._session is not None:
            self._session.end()

    async def run(self) -> None:
        """Run sessions until `stop`."""
        while not self._stopping:
            self._wake.clear()
            assignment = self._assignment
            document = document_of(assignment)
            self.observation.acts_on(document, assignment.half)
            if document.run is RunState.PAUSED:
                self.observation.enter(Phase.PAUSED)
                await self._wake.wait()
                continue
            await self._attempt(assignment, document)

    async def _attempt(self, assignment: Assignment, document: PipelineDocument) -> None:
        """Run one session, and wait as long as its end asks for."""
        try:
            if document.run is RunState.REMOVED:
                await self._remove(assignment, document)
            else:
                await self._carry(assignment, document)
            return
        except SessionReplaced:
            await self._wait(self._backoff.replacement_delay())
            return
        except Failure as error:
            failure = error
            _log.warning("session ended", extra={"failure": str(error), "code": error.code.value})
        except Exception as error:  # noqa: BLE001 - our mistake must not end the worker: it is told, and tried again
            _log.exception("session failed unexpectedly")
            failure = RetryLater(Code.INTERNAL, repr(error))
        self.observation.failed(failure.code)
        if self._assignment.shared and self._unattended_seconds() > UNATTENDED_SECONDS_MAX:
            _log.warning("ending: no agent is here, and another node may have taken over")
            self._stopping = True
            return
        if isinstance(failure, RetryLater):
            self.observation.enter(Phase.RETRYING, failure)
            await self._wait(self._backoff.delay(failure))
        else:
            self.observation.enter(Phase.GAP if isinstance(failure, Gap) else Phase.DEGRADED, failure)
            await self._wake.wait()

    async def _carry(self, assignment: Assignment, document: PipelineDocument) -> None:
        if self.observation.phase is not Phase.RETRYING:
            self.observation.enter(Phase.PENDING)
        session = self._session = self._assemble(assignment, document, self._surroundings())
        started = asyncio.get_running_loop().time()
        try:
            # A session that is not open yet has nothing to finish.
            await self._until_woken(session.run(), lambda: SESSION_END_SECONDS_MAX if session.is_open else 0.0)
        finally:
            self._session = None
            self.observation.session_ended()
            if asyncio.get_running_loop().time() - started > DELAY_SECONDS_MAX:
                self._backoff.progressed()  # a session that held for so long was a good one, rows or none

    async def _remove(self, assignment: Assignment, document: PipelineDocument) -> None:
        session = self._assemble(assignment, document, self._surroundings())
        removed = functools.partial(self.observation.enter, Phase.REMOVED)
        await self._until_woken(session.remove(removed), lambda: 0.0)
        await self._wake.wait()

    async def _until_woken(self, work: Coroutine[None, None, None], grace_seconds: Callable[[], float]) -> None:
        """Await `work`; once the runtime was woken only for the grace, then cancel it."""
        task = asyncio.create_task(work)
        woken = asyncio.create_task(self._wake.wait())
        try:
            await asyncio.wait({task, woken}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done() and (seconds := grace_seconds()):
                await asyncio.wait({task}, timeout=seconds)
        finally:
            woken.cancel()
            await cancel((task,))
        if not task.cancelled():
            task.result()

    async def _wait(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._wake.wait()

    def _surroundings(self) -> Surroundings:
        return Surroundings(self.observation, self._backoff.progressed, self._limits, self._ownership)
