"""The worker processes of one node: kept as the reconciler wishes them, across deaths of theirs and of the agent's.

In flows, from the reconciler, which assignment each worker should have (`desire`); out flow what the workers report
(`workers`) and a wake-up when that changes. Each worker is brought to its wish one `lifecycle` step at a time, by one
loop, so no two steps of a worker overlap. `close` leaves the workers running: an agent that starts later finds them by
their locks, connects to their sockets and goes on. `stop_all` ends them.
"""

import asyncio
import contextlib
import hashlib
import logging
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
from msgspec import Struct, structs

from contracts.codes import Code
from contracts.v2 import Phase
from dataplane.node import process
from dataplane.node.lifecycle import CONNECT_SECONDS, HEALTHY_SECONDS, TICK_SECONDS, Step, WorkerFacts, backoff_seconds
from dataplane.node.lifecycle import decide as decide_step
from dataplane.node.process import RunFolder, WorkerFiles, WorkerKey
from dataplane.worker.protocol import SOCKET_LINE_BYTES_MAX, Assignment, Half, WorkerStatus

WORKER_COMMAND = (sys.executable, "-m", "dataplane.worker")
RECONCILE_COMMAND = (sys.executable, "-m", "dataplane.reconcile")
STEPS_AT_ONCE_MAX = 4
"""Steps of one worker before the others get their turn."""
STARVED_SECONDS = 3 * TICK_SECONDS
"""When the agent itself had no time for so long, the workers are not blamed for their silence."""
REMOVED_RETRY_SECONDS = 10.0
"""A worker that ended after a removal is not started again before the reconciler has had time to see it."""

_log = logging.getLogger(__name__)
_statuses = msgspec.json.Decoder(WorkerStatus)
_assignments = msgspec.json.Decoder(Assignment)


class WorkerView(Struct, frozen=True, kw_only=True):
    """What is known of one worker."""

    alive: bool
    stopping: bool
    status: WorkerStatus | None
    """The last one; it may be that of a process that has ended."""
    fresh: bool
    """`status` comes from the living process."""
    trouble: Code | None
    """Why there is no answering process although one is wished: WORKER_EXITED or WORKER_STALLED."""
    since: float = 0.0
    """Since when `status` is as it is but for its numbers, monotonic seconds."""
    exits_total: int = 0
    stalls_total: int = 0
    adopted: bool = False
    """An agent before this one started the process: its counters did not begin in this agent's sight."""


@dataclass
class _Slot:
    """One worker's wish, process and connection. Times are monotonic seconds."""

    key: WorkerKey
    files: WorkerFiles
    desired: Assignment | None = None
    desired_digest: str | None = None
    alive: bool = False
    child: int | None = None
    acting: str | None = None
    acting_restarts: int = 0
    reader: asyncio.Task[None] | None = None
    writer: asyncio.StreamWriter | None = None
    started_at: float = 0.0
    heard_at: float = 0.0
    connect_at: float = 0.0
    retry_at: float = 0.0
    stop_asked_at: float | None = None
    killed: Code | None = None
    kill_sent: bool = False
    failures: int = 0
    status: WorkerStatus | None = None
    status_since: float = 0.0
    spoken: bool = False
    trouble: Code | None = None
    exits_total: int = 0
    stalls_total: int = 0
    adopted: bool = False
    rotate_at: float = 0.0

    def born(self, now: float, *, adopted: bool) -> None:
        self.alive, self.adopted, self.spoken = True, adopted, False
        self.started_at = self.heard_at = now
        self.stop_asked_at, self.kill_sent, self.killed = None, False, None

    def facts(self) -> WorkerFacts:
        return WorkerFacts(
            desired=self.desired_digest,
            desired_restarts=self.desired.restarts if self.desired else 0,
            alive=self.alive,
            acting=self.acting,
            acting_restarts=self.acting_restarts,
            connected=self.writer is not None,
            spoken=self.spoken,
            heard_at=self.heard_at,
            connect_at=self.connect_at,
            stop_asked_at=self.stop_asked_at,
            killed=self.kill_sent,
            retry_at=self.retry_at,
        )

    def view(self) -> WorkerView:
        return WorkerView(
            alive=self.alive,
            stopping=self.stop_asked_at is not None,
            status=self.status,
            fresh=self.alive and self.spoken,
            trouble=self.trouble,
            since=self.status_since,
            exits_total=self.exits_total,
            stalls_total=self.stalls_total,
            adopted=self.adopted,
        )


class Supervisor:
    """Owns the worker processes below `folder`. `on_change` is called, on the loop, when `workers()` has changed."""

    def __init__(self, folder: Path, *, on_change: Callable[[], None], command: Sequence[str] = WORKER_COMMAND) -> None:
        self._run = RunFolder(folder)
        self._on_change = on_change
        self._command = tuple(command)
        self._slots: dict[WorkerKey, _Slot] = {}
        self._wake = asyncio.Event()
        self._begun = asyncio.Event()
        self._loop: asyncio.Task[None] | None = None
        self._looked_at = time.monotonic()

    def start(self) -> asyncio.Task[None]:
        """Adopt the workers that live, and begin to look after all when `desire` is first called.

        The task that is returned ends only by `close` or by a fault of the program.
        """
        for key in self._run.living():
            self._adopt(self._slot(key))
        self._loop = asyncio.create_task(self._look_after(), name="supervisor")
        return self._loop

    def desire(self, wanted: Mapping[WorkerKey, Assignment], keep: frozenset[WorkerKey] = frozenset()) -> None:
        """Wish for exactly these workers, each with this assignment. Those in `keep` stay as they are; others stop."""
        for key, assignment in wanted.items():
            slot = self._slot(key)
            slot.desired, slot.desired_digest = assignment, digest_of(assignment)
        for key, slot in self._slots.items():
            if key not in wanted and key not in keep:
                slot.desired = slot.desired_digest = None
        self._begun.set()
        self._wake.set()

    def workers(self) -> dict[WorkerKey, WorkerView]:
        """Return what is known of each worker that lives or is wished for."""
        return {key: slot.view() for key, slot in self._slots.items()}

    async def stop_all(self) -> None:
        """End every worker, at a transaction's end if it gets there in time, and return when none lives."""
        self.desire({})
        while any(slot.alive for slot in self._slots.values()):
            await asyncio.sleep(CONNECT_SECONDS / 2)
            self._wake.set()

    async def close(self) -> None:
        """Stop looking after the workers. They go on."""
        tasks = [slot.reader for slot in self._slots.values() if slot.reader is not None]
        if self._loop is not None:
            tasks.append(self._loop)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # ---- The loop ---------------------------------------------------------------------------------------------------

    async def _look_after(self) -> None:
        await self._begun.wait()
        while True:
            self._wake.clear()
            now = time.monotonic()
            self._forgive(now)
            again_at = min(
                [self._advance(slot, now) for slot in list(self._slots.values())], default=now + TICK_SECONDS
            )
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.005, min(again_at, now + TICK_SECONDS) - time.monotonic())):
                    await self._wake.wait()

    def _forgive(self, now: float) -> None:
        starved = now - self._looked_at
        self._looked_at = now
        if starved >= STARVED_SECONDS:
            for slot in self._slots.values():
                slot.heard_at += starved

    def _advance(self, slot: _Slot, now: float) -> float:
        """Take the steps that are due for one worker and return when to look again."""
        self._observe(slot, now)
        for _ in range(STEPS_AT_ONCE_MAX):
            decision = decide_step(slot.facts(), now)
            match decision.step:
                case Step.WAIT:
                    return decision.again_at
                case Step.FORGET:
                    self._run.forget(slot.key)
                    del self._slots[slot.key]
                    self._on_change()
                    return decision.again_at + TICK_SECONDS
                case Step.START:
                    self._start(slot, now)
                case Step.CONNECT:
                    slot.connect_at = now + CONNECT_SECONDS
                    if slot.reader is None:
                        slot.reader = asyncio.create_task(self._listen(slot), name=f"listen {slot.key}")
                case Step.HAND_OVER:
                    self._hand_over(slot)
                case Step.ASK_STOP:
                    if not process.send_signal(slot.files, signal.SIGTERM):
                        return now + CONNECT_SECONDS
                    slot.stop_asked_at = now
                    self._on_change()
                case Step.KILL:
                    if not process.send_signal(slot.files, signal.SIGKILL):
                        return now + CONNECT_SECONDS
                    slot.kill_sent, slot.killed = True, decision.code
                    _log.warning("worker_killed", extra={"worker": str(slot.key), "code": _value(decision.code)})
        return now

    def _observe(self, slot: _Slot, now: float) -> None:
        """Notice that a process has ended, and bound its log."""
        if slot.child is not None and process.reap(slot.child):
            slot.child = None
        if slot.alive and not process.is_alive(slot.files.lock):
            self._ended(slot, now)
        if now >= slot.rotate_at:
            slot.rotate_at = now + HEALTHY_SECONDS
            process.bound_log(slot.files.log)

    # ---- Steps ------------------------------------------------------------------------------------------------------

    def _slot(self, key: WorkerKey) -> _Slot:
        return self._slots.setdefault(key, _Slot(key, self._run.files(key)))

    def _adopt(self, slot: _Slot) -> None:
        """Take over a worker that an agent before us started."""
        now = time.monotonic()
        slot.born(now, adopted=True)
        try:
            assignment = _assignments.decode(slot.files.assignment.read_bytes())
        except (FileNotFoundError, msgspec.DecodeError):
            # It gets its assignment again, and says by its status what it had.
            slot.acting, slot.acting_restarts = None, slot.desired.restarts if slot.desired else 0
        else:
            slot.acting, slot.acting_restarts = digest_of(assignment), assignment.restarts
            if slot.desired is None:
                slot.desired, slot.desired_digest = assignment, slot.acting
        _log.info("worker_adopted", extra={"worker": str(slot.key), "pid": process.pid_of(slot.files)})
        self._on_change()

    def _start(self, slot: _Slot, now: float) -> None:
        assert slot.desired is not None
        program = RECONCILE_COMMAND if slot.key.half is Half.RECONCILE else self._command
        command = (*program, "--assignment", str(slot.files.assignment), "--socket", str(slot.files.socket))
        try:
            write_assignment(slot.files.assignment, slot.desired)
            slot.child = process.start(command, slot.files)
        except BlockingIOError:
            self._adopt(slot)
            return
        except OSError as error:
            _log.error("worker_not_started", extra={"worker": str(slot.key), "reason": str(error)})
            self._failed(slot, Code.WORKER_EXITED, now)
            return
        slot.born(now, adopted=False)
        slot.acting, slot.acting_restarts = slot.desired_digest, slot.desired.restarts
        _log.info("worker_started", extra={"worker": str(slot.key), "pid": slot.child})
        self._on_change()

    def _hand_over(self, slot: _Slot) -> None:
        """Send the assignment. The worker notes it in its file when it has it, so the file is its word to a new agent."""
        assert slot.desired is not None
        assert slot.writer is not None
        slot.writer.write(msgspec.json.encode(slot.desired) + b"\n")
        slot.acting = slot.desired_digest
        _log.info("worker_reassigned", extra={"worker": str(slot.key)})

    def _ended(self, slot: _Slot, now: float) -> None:
        slot.alive = False
        if slot.reader is not None:
            slot.reader.cancel()
        removed = slot.status is not None and slot.status.phase is Phase.REMOVED
        if slot.stop_asked_at is not None or (removed and slot.killed is None):
            slot.failures, slot.retry_at, slot.trouble = 0, now + (REMOVED_RETRY_SECONDS if removed else 0.0), None
            _log.info("worker_stopped", extra={"worker": str(slot.key)})
        else:
            self._failed(slot, slot.killed or Code.WORKER_EXITED, now)
        self._on_change()

    def _failed(self, slot: _Slot, code: Code, now: float) -> None:
        lived = now - slot.started_at
        slot.failures = 1 if slot.started_at and lived >= HEALTHY_SECONDS else slot.failures + 1
        # Jitter needs no secrecy.
        slot.retry_at = now + backoff_seconds(slot.failures, random.random())  # noqa: S311
        slot.trouble = code
        if code is Code.WORKER_STALLED:
            slot.stalls_total += 1
        else:
            slot.exits_total += 1
        _log.warning(
            "worker_failed",
            extra={"worker": str(slot.key), "code": code.value, "retry_seconds": round(slot.retry_at - now, 3)},
        )
        self._on_change()

    # ---- What a worker says -----------------------------------------------------------------------------------------

    async def _listen(self, slot: _Slot) -> None:
        """Read a worker's statuses until either end closes."""
        writer: asyncio.StreamWriter | None = None
        try:
            reader, writer = await asyncio.open_unix_connection(slot.files.socket, limit=SOCKET_LINE_BYTES_MAX)
            slot.writer = writer
            self._wake.set()
            while line := await reader.readline():
                self._heard(slot, _statuses.decode(line))
        except (OSError, ValueError, msgspec.DecodeError) as error:
            # A line that is no status counts as silence: the worker is replaced if nothing better comes.
            if slot.writer is not None:
                _log.warning("worker_connection_lost", extra={"worker": str(slot.key), "reason": type(error).__name__})
        finally:
            if writer is not None:
                if writer.transport.get_write_buffer_size():
                    slot.acting = None
                writer.close()
            slot.writer = slot.reader = None
            slot.connect_at = time.monotonic() + CONNECT_SECONDS / 2
            self._wake.set()

    def _heard(self, slot: _Slot, status: WorkerStatus) -> None:
        if (status.pipeline, status.half) != slot.key:
            raise ValueError("the status of another worker")
        before = _summary(slot.status) if slot.spoken else None
        slot.status, slot.spoken, slot.trouble, slot.heard_at = status, True, None, time.monotonic()
        if _summary(status) != before:
            slot.status_since = slot.heard_at
            self._on_change()


def digest_of(assignment: Assignment) -> str:
    """Return what two assignments have in common that are the same to a living worker."""
    return hashlib.sha256(msgspec.json.encode(structs.replace(assignment, leased=True))).hexdigest()


def write_assignment(path: Path, assignment: Assignment) -> None:
    """Replace the file whole; only its owner may read it."""
    draft = path.with_name(f".{path.name}.agent")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(msgspec.json.encode(assignment))
    draft.replace(path)


def _summary(status: WorkerStatus | None) -> tuple[object, ...] | None:
    """Return what the reconciler looks at: all but the numbers that change every second."""
    if status is None:
        return None
    return (
        (status.pid, status.epoch, status.generation, status.restarts, status.phase, status.code),
        (status.sql_state, status.table, status.column, status.telemetry.tables_copied),
        tuple(sorted(status.error_counts.items())),
        tuple((each.table, tuple(each.columns)) for each in status.schemas),
        tuple((each.table, each.number, each.state) for each in status.reconciles),
    )


def _value(code: Code | None) -> str | None:
    return code.value if code else None
