"""The agent of one node: the parts put together, and the loop that reconciles.

Documents come from the link's store, leases from the leaf, what runs from the supervisor. Whatever changes sets one
event; the loop then looks at everything, decides (`reconciler.plan`) and carries the plan out: leases, record, workers,
reports. It looks again every few seconds as well, so that nothing depends on an event.

Order matters in one place: the record is on the disk before the workers that it speaks of are touched.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from importlib import metadata
from pathlib import Path

from msgspec import UNSET, structs

from contracts.codes import Code
from contracts.envelope import EnvelopeError
from contracts.reconciling import ReconcileState
from contracts.v2 import (
    BufferType,
    ConnectionDocument,
    ErrorReport,
    Fact,
    Heartbeat,
    PipelineDocument,
    PipelineStatus,
    ReconcileStatus,
)
from dataplane.config import NodeConfig
from dataplane.link.link import Link
from dataplane.link.store import DocumentStore
from dataplane.node import record as records
from dataplane.node import standing, statuses
from dataplane.node.facts import FactLog, clean
from dataplane.node.leases import Leases
from dataplane.node.metrics import MetricsServer, PipelineReading, Readings
from dataplane.node.questions import Questions
from dataplane.node.reconciler import Desired, Facts, NodeFacts, Plan, plan
from dataplane.node.record import Record
from dataplane.node.signatures import Signatures
from dataplane.node.slot_care import Kept, SlotCare
from dataplane.node.supervisor import Supervisor
from dataplane.policy import Policy, PolicyFile, PolicyInvalid, Violation, judge
from dataplane.worker.protocol import BufferAccess, Half, WorkerStatus

LOOK_AGAIN_SECONDS = 5.0
PENDING_SECONDS = 0.5
"""When something waits for its turn: a worker to start, a report to be due."""
ROUND_SECONDS_MIN = 0.01
CONTROL_PLANE_SILENT = timedelta(seconds=50)
"""A sync is asked for every 30 s; without an answer for this long the control plane counts as away."""
RESTART_REPORT_SECONDS = 10.0
"""An agent that is started again and again reports it once in this time."""

CLOSE_SECONDS_MAX = 5.0
"""For saying goodbye to the leaf. What was to be sent lies on the disk."""

_log = logging.getLogger(__name__)


class Agent:
    """One node's agent. `folder` is the node's own; only one agent runs from it (`__main__` sees to that)."""

    def __init__(self, folder: Path, config: NodeConfig) -> None:
        self._folder = folder
        self._config = config
        self._wake = asyncio.Event()
        self._record = records.load(folder / "state")
        self._store = DocumentStore(folder / "documents")
        self._link = Link(config, self._store, folder / "link")
        self._supervisor = Supervisor(folder / "run", on_change=self._wake.set)
        self._leases = Leases(
            config.node,
            contract=config.contract_max,
            leaf=lambda: self._link.leaf,
            record=self._record,
            on_change=self._wake.set,
        )
        self._policy = PolicyFile(folder)
        self._signatures = Signatures(folder / "state")
        self._refused: dict[str, Violation] = {}
        self._fact_log = FactLog()
        self._questions = Questions(
            config.secrets_folder,
            connections=self._store.connections,
            pipelines=lambda: [each.document for each in self._pipelines().values()],
            policy=self._policy.current,
            signatures=self._signatures,
        )
        self._care = SlotCare(config.secrets_folder, self._kept, self._wake.set)
        self._progress = standing.Progress()
        self._metrics = (
            MetricsServer(config.metrics_host, config.metrics_port, self._readings)
            if config.metrics_port is not None
            else None
        )
        self._statuses: dict[str, PipelineStatus] = {}
        self._started_at = datetime.now(UTC)
        self._version = metadata.version("pointsman")
        self._me = NodeFacts(
            node=config.node,
            tenant=config.tenant,
            secrets_folder=config.secrets_folder,
            buffer=BufferAccess(url=config.leaf_url, seed_file=config.data_seed_file),
        )

    async def run(self, stop: asyncio.Event, *, end_workers: asyncio.Event, restarted: bool = False) -> None:
        """Run until `stop` is set. The workers go on, unless `end_workers` is set as well.

        Raises:
            Exception: a fault of the program; the workers go on, and the process should be started again.
        """
        self._link.heartbeat_source = self._heartbeat
        self._link.answer = self._questions.answer
        supervising = self._supervisor.start()
        await self._link.start()
        leasing = self._leases.start()
        if self._metrics is not None:
            self._metrics.start()
        if restarted:
            await self._send(ErrorReport(code=Code.NODE_RESTARTED, at=datetime.now(UTC)))
        _log.info("agent_started", extra={"node": self._config.node, "data_plane": self._config.data_plane})
        works = [
            supervising,
            leasing,
            *(asyncio.create_task(each) for each in (self._follow_link(), self._reconcile(), self._care.run())),
        ]
        stopping = asyncio.create_task(stop.wait())
        try:
            done, _ = await asyncio.wait([stopping, *works], return_when=asyncio.FIRST_COMPLETED)
            for task in done - {stopping}:
                task.result()
            for task in works[2:]:
                task.cancel()
            if end_workers.is_set():
                await self._supervisor.stop_all()
        finally:
            for task in (*works[2:], stopping):
                task.cancel()
            await asyncio.gather(*works[2:], stopping, return_exceptions=True)
            await self._close(release=end_workers.is_set())

    async def _close(self, *, release: bool) -> None:
        if self._metrics is not None:
            await self._metrics.stop()
        await self._leases.stop(release=release)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_SECONDS_MAX):
                await self._link.stop()
        await self._supervisor.close()
        _log.info("agent_stopped", extra={"workers_go_on": not release})

    # ---- The loop ---------------------------------------------------------------------------------------------------

    async def _follow_link(self) -> None:
        while True:
            await self._link.changed.wait()
            self._link.changed.clear()
            self._wake.set()

    async def _reconcile(self) -> None:
        while True:
            self._wake.clear()
            decided = plan(self._facts())
            await self._carry_out(decided)
            pending = bool(decided.waiting) or self._fact_log.pending
            await asyncio.sleep(ROUND_SECONDS_MIN)
            try:
                async with asyncio.timeout(PENDING_SECONDS if pending else LOOK_AGAIN_SECONDS):
                    await self._wake.wait()
            except TimeoutError:
                continue

    def _facts(self) -> Facts:
        view = self._leases.view
        policy = self._policy.current()
        pipelines, connections = self._pipelines(), self._store.connections()
        return Facts(
            me=self._me,
            now=datetime.now(UTC),
            complete=self._store.index() is not None,
            pipelines=pipelines,
            needs_upgrade=self._store.needs_upgrade(),
            connections=connections,
            mine=view.mine,
            leaving=view.leaving,
            leaf_reachable=view.reachable and self._leases.is_fresh,
            leases_read_at=self._leases.read_at,
            shared=len(view.members) > 1,
            workers=self._supervisor.workers(),
            ended=self._record.ended,
            reconciled=self._record.reconciled,
            refusals=self._refusals(policy, pipelines, connections),
            masks=policy.mask if isinstance(policy, Policy) else (),
            before=self._statuses,
        )

    def _refusals(
        self,
        policy: Policy | PolicyInvalid,
        pipelines: Mapping[str, Desired],
        connections: Mapping[str, ConnectionDocument],
    ) -> dict[str, Violation]:
        """Return the first thing that the policy holds against each pipeline, and log it when it is new."""
        found: dict[str, Violation] = {}
        for name, desired in pipelines.items():
            if isinstance(policy, PolicyInvalid):
                found[name] = Violation(code=Code.POLICY_UNREADABLE, what=str(policy))
                continue
            source, sink = (
                connections.get(each) for each in (desired.document.source.connection, desired.document.sink.connection)
            )
            if source is None or sink is None:
                continue
            violations = judge(policy, desired.document, source, sink)
            violations += self._signatures.judge(policy.documents, (desired.document, source, sink))
            if violations:
                found[name] = violations[0]
        for name, violation in found.items():
            if self._refused.get(name) != violation:
                _log.error("refused_by_policy", extra={"pipeline": name, "reason": violation.what})
        self._refused = found
        return found

    def _pipelines(self) -> dict[str, Desired]:
        return {
            name: Desired.of(stored.contract, stored.raw, stored.document)
            for name, stored in self._store.pipelines().items()
        }

    async def _carry_out(self, decided: Plan) -> None:
        if decided.given_up:
            _log.warning("pipelines_given_up", extra={"pipelines": sorted(decided.given_up)})
            self._leases.give_up(decided.given_up)
        self._leases.want(decided.wanted, busy=decided.busy, ready=self._store.index() is not None)
        await self._remember(decided)
        if self._signatures.unsaved:
            await asyncio.to_thread(self._signatures.save)
        self._supervisor.desire(decided.run, decided.keep)
        said = {
            name: statuses.dated(
                self._under(clean(status)), before=self._statuses.get(name), started_at=self._started_at
            )
            for name, status in self._judged(decided.statuses).items()
        }
        changed = said != self._statuses
        self._statuses = said
        now, at = time.monotonic(), datetime.now(UTC)
        handed_on: dict[str, dict[str, int]] = {}
        for fact in self._fact_log.round(said, self._supervisor.workers(), now=now, at=at):
            kept = await self._send(fact)
            if isinstance(fact, ReconcileStatus) and not kept:
                self._fact_log.not_kept(fact)
            elif isinstance(fact, ReconcileStatus) and fact.state is not ReconcileState.RUNNING:
                handed_on.setdefault(fact.pipeline, {})[fact.table] = fact.number
        await self._note_reconciled(handed_on)
        if changed:
            self._link.beat()

    def _judged(self, said: Mapping[str, PipelineStatus]) -> dict[str, PipelineStatus]:
        gone = self._care.gone()
        stalled = self._progress.stalled({name: self._workers_of(name) for name in said}, time.monotonic())
        return {
            name: standing.judged(status, gone=gone.get(name), stalled=name in stalled) for name, status in said.items()
        }

    def _under(self, status: PipelineStatus) -> PipelineStatus:
        """Say under which policy of the customer's a status holds."""
        return structs.replace(status, policy=self._policy.digest or UNSET)

    async def _remember(self, decided: Plan) -> None:
        """Write the record if it changed. A disk that is full must not stop what runs: the leaf knows the same."""
        view, held = self._leases.view, self._leases.held
        unclaimed = {name: each for name, each in self._record.ended.items() if name in held - view.mine}
        reconciled = {name: each for name, each in self._record.reconciled.items() if name in decided.wanted}
        wanted = Record(held=held, members=view.members, ended={**unclaimed, **decided.ended}, reconciled=reconciled)
        await self._save(wanted)

    async def _note_reconciled(self, handed_on: Mapping[str, Mapping[str, int]]) -> None:
        """Remember that the ends of these comparisons are on their way up: the process that made them may go."""
        if handed_on:
            known = self._record.reconciled
            merged = {name: {**known.get(name, {}), **tables} for name, tables in handed_on.items()}
            await self._save(structs.replace(self._record, reconciled={**known, **merged}))
            self._wake.set()

    async def _save(self, wanted: Record) -> None:
        if wanted == self._record:
            return
        self._record = wanted
        try:
            await asyncio.to_thread(records.save, self._folder / "state", wanted)
        except OSError as error:
            _log.error("record_not_written", extra={"reason": str(error)})

    async def _send(self, fact: Fact) -> bool:
        """Hand a report to the link, and return whether it kept it. The next heartbeat tells how things stand, too."""
        try:
            await self._link.send_fact(fact)
        except (OSError, EnvelopeError) as error:
            _log.error("report_not_kept", extra={"kind": type(fact).__name__, "reason": str(error)})
            return False
        return True

    def _kept(self) -> dict[str, Kept]:
        """Return the pipelines whose slots are this node's to care for."""
        connections = self._store.connections()
        views = self._supervisor.workers()
        return {
            name: Kept(
                document=desired.document,
                connection=connections.get(desired.document.source.connection),
                workers=[
                    view.status for key, view in views.items() if key.pipeline == name and view.fresh and view.status
                ],
            )
            for name, desired in self._pipelines().items()
            if name in self._leases.view.mine and name not in self._refused
        }

    # ---- What others ask for ----------------------------------------------------------------------------------------

    def _workers_of(self, pipeline: str) -> list[WorkerStatus]:
        views = self._supervisor.workers()
        return [
            view.status
            for key, view in views.items()
            if key.pipeline == pipeline and key.half is not Half.RECONCILE and view.status is not None
        ]

    def _heartbeat(self) -> Heartbeat:
        slots = self._care.slots()
        telemetry = [
            statuses.measure(name, workers, slots.get(name))
            for name in self._statuses
            if (workers := self._workers_of(name)) or name in slots
        ]
        return Heartbeat(
            at=datetime.now(UTC),
            started_at=self._started_at,
            agent_version=self._version,
            contract=self._config.contract_max,
            index_digest=self._store.index_digest,
            pipelines=list(self._statuses.values()),
            telemetry=telemetry,
        )

    def _readings(self) -> Readings:
        index, synced_at = self._store.index(), self._link.synced_at
        views = self._supervisor.workers()
        held = self._leases.view.mine
        slots = self._care.slots()
        return Readings(
            node=self._config.node,
            data_plane=self._config.data_plane,
            version=self._version,
            pipelines={
                name: PipelineReading(
                    status=self._statuses.get(name),
                    workers=self._workers_of(name),
                    slot=slots.get(name),
                    desired_generation=desired.document.generation,
                    buffer_capacity_bytes=_capacity(desired.document),
                    worker_restarts_total=sum(
                        view.exits_total + view.stalls_total for key, view in views.items() if key.pipeline == name
                    ),
                )
                for name, desired in self._pipelines().items()
                if name in held
            },
            errors_total=self._fact_log.errors_total,
            control_plane_connected=synced_at is not None and datetime.now(UTC) - synced_at < CONTROL_PLANE_SILENT,
            leaf_connected=self._link.leaf is not None,
            documents_held=len(index.entries) if index is not None else 0,
            documents_refused_total=self._link.refused,
            facts_waiting=self._link.facts_waiting,
            nodes_seen=len(self._leases.view.members),
            names_withheld_total=self._fact_log.names_withheld_total,
        )


def _capacity(document: PipelineDocument) -> int:
    return 0 if document.buffer.type is BufferType.DIRECT else document.buffer.size_bytes_max
