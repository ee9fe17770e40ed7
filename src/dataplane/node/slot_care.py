"""Keep an eye on the slots of this node's pipelines, also while nobody streams: a paused pipeline's slot grows.

In flow the pipelines of the moment, with what their workers measured; out flow the slots' numbers, and which slots are
gone. A worker measures while its session lasts; for all other pipelines a short process looks (`slot_look`), one for all of
them, every `LOOK_SECONDS`. It also gives a slot up that keeps more than its pipeline may, whatever the workers are busy
with: a destination that stays away must not fill the source's disk where the owner chose otherwise.

The agent owns one `SlotCare`. With no pipeline at rest it does nothing but take measures in.
"""

import asyncio
import logging
import sys
import time
from collections.abc import Callable, Mapping, Sequence

import msgspec
from msgspec import Struct

from contracts.codes import Code
from contracts.names import resource_id
from contracts.slots import OnFull, Slot, SlotStatus
from contracts.v2 import ConnectionDocument, Phase, PipelineDocument, RunState
from dataplane.node.reconciler import PIPELINE_KIND
from dataplane.node.slot_trends import Trend
from dataplane.object_names import object_name
from dataplane.slot_measure import SlotMeasure
from dataplane.worker.protocol import Half, WorkerStatus

LOOK_COMMAND = (sys.executable, "-m", "dataplane.node.slot_look")
LOOK_SECONDS = 15.0
"""Between two looks at slots that nobody streams. How far one goes beyond its limit is what is written in this time."""
LOOK_SECONDS_MAX = 40.0
TICK_SECONDS = 2.5
STOPPED_SECONDS = 30.0
"""A pipeline that stopped for less time is about to go on: its slot is not given up yet."""
_STOPPED = (Phase.RETRYING, Phase.DEGRADED, Phase.GAP, Phase.PAUSED)
_FLOWING = (Phase.SNAPSHOTTING, Phase.STREAMING)

_log = logging.getLogger(__name__)


class Kept(Struct, frozen=True, kw_only=True):
    """A pipeline of this node, and how its workers stand."""

    document: PipelineDocument
    connection: ConnectionDocument | None
    """Where it reads; None while that has not arrived."""
    workers: Sequence[WorkerStatus] = ()
    """What its living workers said last."""

    @property
    def session(self) -> WorkerStatus | None:
        """The worker that has the source open, if one has."""
        for each in self.workers:
            if each.half is not Half.SINK and each.phase in _FLOWING:
                return each
        return None

    def gives_up_at(self, now: float) -> int | None:
        """Return what the slot may keep before it is dropped; None while it is kept whatever it keeps.

        A pipeline that is about to begin, or stopped only a moment ago, may well work its backlog off: it is let alone.
        `now` is in seconds since 1970.
        """
        log = self.document.source.log
        if log.on_full is not OnFull.STOP or self.document.run is RunState.REMOVED:
            return None
        at_rest = not self.workers and self.document.run is RunState.PAUSED
        stopped = any(
            each.half is not Half.SINK and each.phase in _STOPPED and now - each.since_seconds >= STOPPED_SECONDS
            for each in self.workers
        )
        return log.retain_bytes_max if at_rest or stopped else None

    @property
    def retain_bytes_max(self) -> int | None:
        """The pipeline's own limit, if it has one."""
        return self.document.source.log.retain_bytes_max


class Subject(Struct, frozen=True, kw_only=True):
    """A pipeline to look at. `publication` is also what its slots' names begin with."""

    pipeline: str
    publication: str
    connection: str
    give_up_bytes: int | None = None
    """What its slot may keep before it is dropped; None to drop it never."""


class Look(Struct, frozen=True, kw_only=True):
    """What `slot_look` is asked."""

    subjects: list[Subject]
    connections: dict[str, ConnectionDocument]
    secrets_folder: str
    seconds_max: float


class Seen(Struct, frozen=True, kw_only=True):
    """What was found of one pipeline: nothing for one that never had a slot, and none at all where nobody answered."""

    pipeline: str
    measure: SlotMeasure | None = None
    gave_up: bool = False


class SlotCare:
    """Cares for the slots of one node. `kept` gives the pipelines of the moment; `on_change` is called when a slot is gone."""

    def __init__(
        self,
        secrets_folder: str,
        kept: Callable[[], Mapping[str, Kept]],
        on_change: Callable[[], None],
        command: Sequence[str] = LOOK_COMMAND,
    ) -> None:
        self._secrets_folder = secrets_folder
        self._kept = kept
        self._on_change = on_change
        self._command = tuple(command)
        self._trends: dict[str, Trend] = {}
        self._gone: Mapping[str, Code] = {}

    async def run(self) -> None:
        """Care until cancelled."""
        look_at = time.monotonic()
        while True:
            kept = self._kept()
            self._take_in(kept)
            if time.monotonic() >= look_at:
                await self._look(kept)
                look_at = time.monotonic() + LOOK_SECONDS
            gone = self.gone()
            if gone != self._gone:
                self._gone = gone
                self._on_change()
            await asyncio.sleep(TICK_SECONDS)

    def slots(self) -> dict[str, Slot]:
        """Return the numbers of each slot that was ever measured."""
        told = {}
        for name, each in self._kept().items():
            slot = self._trends[name].told(each.retain_bytes_max) if name in self._trends else None
            if slot is not None:
                told[name] = slot
        return told

    def gone(self) -> dict[str, Code]:
        """Return the pipelines whose slot is of no use any more, and why."""
        found: dict[str, Code] = {}
        for name, each in self._kept().items():
            session = each.session
            trend = self._trends.get(name)
            # While a session lasts, only what it saw itself counts: it may have made a new slot a moment ago.
            measure = session.telemetry.slot if session is not None else trend.newest if trend else None
            if measure is not None and measure.is_gone and each.document.run is not RunState.REMOVED:
                found[name] = _reason(measure)
        return found

    def _take_in(self, kept: Mapping[str, Kept]) -> None:
        self._trends = {name: trend for name, trend in self._trends.items() if name in kept}
        for name, each in kept.items():
            if each.session is not None and each.session.telemetry.slot is not None:
                self._trends.setdefault(name, Trend()).note(each.session.telemetry.slot)

    async def _look(self, kept: Mapping[str, Kept]) -> None:
        look = look_of(kept, self._secrets_folder, time.time())
        if not look.subjects:
            return
        try:
            seen = await _run(self._command, look)
        except (TimeoutError, OSError) as error:
            _log.warning("slots_not_seen", extra={"reason": type(error).__name__})
            return
        for each in seen:
            if each.gave_up:
                _log.error("slot_given_up", extra={"pipeline": each.pipeline})
            if each.measure is not None:
                self._trends.setdefault(each.pipeline, Trend()).note(each.measure)
            else:
                self._trends.pop(each.pipeline, None)


def look_of(kept: Mapping[str, Kept], secrets_folder: str, now: float) -> Look:
    """Return what to look at: the slots of pipelines without a session, and which of them may be given up.

    `now` is in seconds since 1970.
    """
    subjects = []
    connections: dict[str, ConnectionDocument] = {}
    for name, each in sorted(kept.items()):
        document = each.document
        if each.session is not None or each.connection is None or document.run is RunState.REMOVED:
            continue
        identifier = str(resource_id(document.tenant, PIPELINE_KIND, name))
        subjects.append(
            Subject(
                pipeline=name,
                publication=object_name(identifier),
                connection=document.source.connection,
                give_up_bytes=each.gives_up_at(now),
            )
        )
        connections[document.source.connection] = each.connection
    return Look(
        subjects=subjects, connections=connections, secrets_folder=secrets_folder, seconds_max=LOOK_SECONDS_MAX / 2
    )


def _reason(measure: SlotMeasure) -> Code:
    return Code.GAP_LOG_LIMIT if measure.status is SlotStatus.MISSING else Code.GAP_SLOT_INVALIDATED


async def _run(command: Sequence[str], look: Look) -> list[Seen]:
    """Run one look in its process.

    Raises:
        TimeoutError: it took longer; the process was ended.
        OSError: the process could not be started.
    """
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(LOOK_SECONDS_MAX):
            output, _ = await process.communicate(msgspec.json.encode(look))
        return msgspec.json.decode(output, type=list[Seen])
    except msgspec.DecodeError:
        _log.error("slot_look_failed", extra={"exit_code": process.returncode})
        return []
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
