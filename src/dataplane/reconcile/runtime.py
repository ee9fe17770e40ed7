"""The life of a comparing process: table after table, as the newest assignment asks, until it is asked to end.

Desired state comes in as an `Assignment`, like a worker's; what is known of each table goes out as lines of the status.
The work itself runs on a thread. A failure that may pass is tried again from where the register stands; one that needs
a person ends that table's run. The agent ends this process once it has told the control plane of every table.
"""

import asyncio
import contextlib
import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from uuid import uuid4

from msgspec import structs

from contracts.codes import Code
from contracts.reconciling import Reconcile, ReconcileState
from contracts.v2 import Phase, PipelineDocument
from dataplane import secrets
from dataplane.failures import Failure, Permanent, RetryLater
from dataplane.reconcile import destination_end, source_end
from dataplane.reconcile.comparison import Comparison
from dataplane.reconcile.destination_end import DestinationEnd
from dataplane.reconcile.pace import ROWS_PER_SECOND_MAX, Pace, Stopped
from dataplane.reconcile.register import Counts, Register, Run
from dataplane.reconcile.source_end import SourceEnd
from dataplane.worker.guarding import Guard
from dataplane.worker.protocol import Assignment, Half, ReconcileLine, WorkerStatus
from dataplane.worker.retry import Backoff
from dataplane.worker.runtime import document_of

APPLICATION_NAME_BYTES_MAX = 63
UNATTENDED_SECONDS_MAX = 30.0
"""Without an agent for so long, the process ends: another node may do this now, and nothing is lost by waiting."""
LOOK_SECONDS = 1.0

_log = logging.getLogger("pointsman.reconcile")


def work_of(assignment: Assignment) -> tuple[object, ...]:
    """Return all that matters here: two assignments with equal work need nothing to begin again."""
    document = document_of(assignment)
    return (
        (document.comparisons, document.source, document.sink, document.transforms, assignment.pipeline_id),
        (assignment.source.config, assignment.source.secrets, assignment.sink.config, assignment.sink.secrets),
        assignment.secrets_folder,
        assignment.masks,
    )


class ReconcileRuntime:
    """One process's loop. `run` carries on until `stop`; `assign` and `stop` may be called at any time."""

    def __init__(
        self,
        assignment: Assignment,
        *,
        changed: Callable[[], None],
        unattended_seconds: Callable[[], float] = lambda: 0.0,
        rows_per_second_max: int = ROWS_PER_SECOND_MAX,
    ) -> None:
        """Keep the first assignment; nothing is opened.

        Raises:
            ValueError: the assignment's document cannot be read.
        """
        self._assignment = assignment
        self._document = document_of(assignment)
        self._changed = changed
        self._unattended_seconds = unattended_seconds
        self._rows_per_second_max = rows_per_second_max
        self._backoff = Backoff(Random())  # noqa: S311 - only spreads retries in time
        self._wake = asyncio.Event()
        self._interrupt = threading.Event()
        self._stopping = False
        self._since = time.time()
        self._lines: dict[str, ReconcileLine] = {}
        self._error_counts: Counter[str] = Counter()
        self._runner = uuid4().hex

    def assign(self, assignment: Assignment) -> None:
        """Act on this assignment from now on.

        Raises:
            ValueError: its document cannot be read; the process goes on with what it has.
        """
        same = work_of(assignment) == work_of(self._assignment)
        self._document = document_of(assignment)
        self._assignment = assignment
        if not same:
            self._interrupt.set()
            self._wake.set()
        self._changed()

    def stop(self) -> None:
        """End soon, and let `run` return."""
        self._stopping = True
        self._interrupt.set()
        self._wake.set()

    def status(self) -> WorkerStatus:
        """Return what is known as one value."""
        document = self._document
        asked = document.comparisons
        return WorkerStatus(
            pipeline=document.name,
            half=Half.RECONCILE,
            pid=os.getpid(),
            epoch=document.epoch,
            generation=document.generation,
            restarts=document.restarts,
            phase=Phase.STREAMING,
            since_seconds=self._since,
            error_counts=dict(self._error_counts),
            reconciles=[line for table, line in sorted(self._lines.items()) if table in asked],
        )

    async def run(self) -> None:
        """Compare what is asked for, and then wait for more, until `stop`."""
        while not self._stopping:
            self._wake.clear()
            self._interrupt.clear()
            assignment, document = self._assignment, self._document
            for table, asked in sorted(document.comparisons.items()):
                if not self._is_over(table, asked):
                    await self._attempt(assignment, document, table, asked)
                if self._wake.is_set():
                    break
            else:
                if all(self._is_over(table, asked) for table, asked in document.comparisons.items()):
                    await self._idle()

    def _is_over(self, table: str, asked: Reconcile) -> bool:
        line = self._lines.get(table)
        return line is not None and line.number >= asked.number and line.state is not ReconcileState.RUNNING

    async def _idle(self) -> None:
        while not self._wake.is_set():
            await self._wait(LOOK_SECONDS)
            self._end_unattended()

    def _end_unattended(self) -> None:
        if self._unattended_seconds() > UNATTENDED_SECONDS_MAX:
            _log.warning("ending: no agent is here")
            self.stop()

    async def _attempt(self, assignment: Assignment, document: PipelineDocument, table: str, asked: Reconcile) -> None:
        """Run one table's comparison as far as it goes."""
        try:
            loop = asyncio.get_running_loop()

            def told(run: Run) -> None:
                loop.call_soon_threadsafe(self._told, table, run)

            run = await asyncio.to_thread(self._compare, assignment, document, table, asked, told)
            self._told(table, run)
            self._backoff.progressed()
            return
        except Stopped:
            return
        except Failure as error:
            failure: Failure = error
            _log.warning("comparison ended", extra={"failure": str(error), "code": error.code.value})
        except Exception as error:  # noqa: BLE001 - our mistake must not end the process: it is told, and tried again
            _log.exception("comparison failed unexpectedly")
            failure = RetryLater(Code.INTERNAL, repr(error))
        self._error_counts[failure.code.value] += 1
        if isinstance(failure, RetryLater):
            await self._wait(self._backoff.delay(failure))
            self._end_unattended()
            return
        # Also where it could not be written down: what needs a person is told in any case.
        line = self._lines.get(table)
        if line is None or line.number != asked.number:
            line = ReconcileLine(table=table, number=asked.number, repair=asked.repair)
        line = structs.replace(line, state=ReconcileState.FAILED, code=failure.code, sql_state=failure.sql_state)
        self._lines[table] = line
        self._changed()

    def _told(self, table: str, run: Run) -> None:
        self._lines[table] = ReconcileLine(
            table=table,
            number=run.number,
            repair=run.repair,
            state=run.state,
            code=Code(run.code) if run.code is not None else None,
            sql_state=run.sql_state,
            **structs.asdict(run.counts),
        )
        self._changed()

    async def _wait(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._wake.wait()

    # ---- On a thread ------------------------------------------------------------------------------------------------

    def _compare(
        self,
        assignment: Assignment,
        document: PipelineDocument,
        table: str,
        asked: Reconcile,
        told: Callable[[Run], None],
    ) -> Run:
        name = application_name(assignment.pipeline_id)
        folder = Path(assignment.secrets_folder)
        info = destination_end.conninfo(assignment.sink, secrets.password(assignment.sink.secrets, folder), name)
        destination = DestinationEnd(info, pipeline_id=assignment.pipeline_id, table=table)
        destination.open()
        try:
            register = Register(
                destination.connection, pipeline_id=assignment.pipeline_id, table=table, runner=self._runner
            )
            with destination.asking():
                run = register.claim(asked.number, repair=asked.repair)
            told(run)
            if run.number > asked.number or run.state is not ReconcileState.RUNNING:
                return run
            try:
                return self._go_through(assignment, document, destination, register, run, told)
            except Permanent as refusal:
                _log.warning("comparison failed", extra={"failure": str(refusal), "code": refusal.code.value})
                run = structs.replace(
                    run, state=ReconcileState.FAILED, code=refusal.code.value, sql_state=refusal.sql_state
                )
                return self._failed(destination, register, run)
        finally:
            destination.close()

    def _go_through(
        self,
        assignment: Assignment,
        document: PipelineDocument,
        destination: DestinationEnd,
        register: Register,
        run: Run,
        told: Callable[[Run], None],
    ) -> Run:
        from dataplane.transforms import make

        folder = Path(assignment.secrets_folder)
        held = destination.checkpoint()
        assert held.source is not None
        info = source_end.conninfo(
            assignment.source,
            secrets.password(assignment.source.secrets, folder),
            application_name(assignment.pipeline_id),
        )
        seen, schema = asyncio.run(source_end.describe(info, destination.table))
        transforms = [each for each in make(document.transforms, folder) if each.table == destination.table]
        source = SourceEnd(info, seen, schema)
        try:
            source.open(system=held.source.system_identifier, database=held.source.database)
            shown = schema
            for transform in transforms:
                shown = transform.schema(shown)
            # What is compared goes to the destination too: the customer's policy holds for it as for what is delivered.
            Guard(assignment.masks, document).look(shown)
            destination.prepare(shown)
            pace = Pace(self._interrupt, self._rows_per_second_max)
            return Comparison(source, destination, transforms, register, run, pace=pace, progress=told).compare()
        finally:
            source.close()

    def _failed(self, destination: DestinationEnd, register: Register, run: Run) -> Run:
        """Write down why the run ended; what it had counted and where it stood, the register has."""
        with destination.asking():
            register.advance(run, Counts(), ())
            return register.claim(run.number, repair=run.repair)


def application_name(pipeline_id: str) -> str:
    """Return the name of our sessions: not that of the pipeline's own, which a new owner ends."""
    return f"pointsman reconcile {pipeline_id}"[:APPLICATION_NAME_BYTES_MAX]
