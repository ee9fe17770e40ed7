"""What this node should run and what it may say about it, decided without I/O: facts go in, one plan comes out.

The agent collects the facts (documents, leases, workers, the durable record) whenever something said 'look again', and
carries the plan out. Nothing here knows what the something was, and the same facts always give the same plan.

- A pipeline runs here if the index names it and its lease is ours. What runs and is not wanted is stopped; a slot is
  dropped only when the document says `removed`.
- What cannot be acted on (a missing connection, a document for newer nodes) leaves running what runs.
- What the customer's policy does not allow does not run, whatever ran before; only a pause needs no permission.
- Without a whole index nothing is started and nothing is stopped.
- `observed_generation` is what the workers say they act on. The node says a document's generation itself only where no
  worker is needed for it (paused, removed) or where it says that something is wrong; so green is never early.
- A pipeline whose lease another node has is that node's to speak of.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

from msgspec import Struct, structs

from contracts import convert, v1
from contracts.codes import Code, Family, explain
from contracts.names import resource_id
from contracts.v2 import (
    BufferType,
    ConnectionDocument,
    Phase,
    PipelineDocument,
    PipelineStatus,
    Position,
    RequiresDocument,
    RunState,
)
from dataplane.node.process import WorkerKey
from dataplane.node.record import Ended
from dataplane.node.statuses import combine, halves_of
from dataplane.node.supervisor import WorkerView
from dataplane.policy import MaskRule, Violation
from dataplane.worker.protocol import Assignment, BufferAccess, Half, WorkerStatus

STARTING_MAX = 8
"""Workers that start at the same time; the others wait, so that a node that boots does not choke itself."""
PAUSED_LINGER = timedelta(minutes=5)
"""A paused pipeline's worker stays this long, so that resuming is quick; then it makes room."""
FENCED_SECONDS = 5.0
"""So long after its fence a worker is started afresh at the earliest: two data planes that share a pipeline by mistake
must not end each other's sessions as fast as they can."""
PIPELINE_KIND = "Pipeline"


class Desired(Struct, frozen=True, kw_only=True):
    """A pipeline's document as the store holds it."""

    contract: int
    raw: str
    document: PipelineDocument

    @classmethod
    def of(cls, contract: int, raw: str, document: v1.PipelineDocument | PipelineDocument) -> "Desired":
        """Take a document of either contract version."""
        newest = convert.to_v2(document)
        assert isinstance(newest, PipelineDocument)
        return cls(contract=contract, raw=raw, document=newest)


class NodeFacts(Struct, frozen=True, kw_only=True):
    """What does not change while the agent runs."""

    node: str
    tenant: str
    secrets_folder: str
    buffer: BufferAccess


class Facts(Struct, frozen=True, kw_only=True):
    """All that the plan depends on."""

    me: NodeFacts
    now: datetime
    complete: bool
    """The store holds all that its index names."""
    pipelines: Mapping[str, Desired] = {}
    needs_upgrade: Mapping[str, RequiresDocument] = {}
    connections: Mapping[str, ConnectionDocument] = {}
    mine: frozenset[str] = frozenset()
    leaving: frozenset[str] = frozenset()
    leaf_reachable: bool = True
    leases_read_at: float = 0.0
    """When the leaf was last asked for the leases, monotonic seconds."""
    shared: bool = False
    """The data plane has other nodes."""
    workers: Mapping[WorkerKey, WorkerView] = {}
    ended: Mapping[str, Ended] = {}
    reconciled: Mapping[str, Mapping[str, int]] = {}
    """The newest comparison of each pipeline's tables whose end was handed on."""
    refusals: Mapping[str, Violation] = {}
    """Pipelines that the customer's policy does not allow, with what it holds against each first."""
    masks: Sequence[MaskRule] = ()
    """The policy's rules for columns; workers hold every table to them."""
    before: Mapping[str, PipelineStatus] = {}
    """The statuses of the plan before this one."""


class Plan(Struct, frozen=True, kw_only=True):
    """What to do, and what to say."""

    run: dict[WorkerKey, Assignment]
    """Workers to have, each with this assignment."""
    keep: frozenset[WorkerKey]
    """Workers that stay as they are. All others stop."""
    statuses: dict[str, PipelineStatus]
    ended: dict[str, Ended]
    """The record's entries from now on."""
    wanted: dict[str, int]
    """Pipelines that some node should run, with the contract version that each needs."""
    busy: frozenset[str]
    """Pipelines with a living worker here."""
    given_up: frozenset[str]
    """Pipelines that another node has fenced while the leaf could not be asked."""
    waiting: frozenset[str]
    """Pipelines whose workers have to wait for others to start."""


class _Draft:
    """A plan in the making."""

    def __init__(self, facts: Facts) -> None:
        self.run: dict[WorkerKey, Assignment] = {}
        self.keep: set[WorkerKey] = set()
        self.statuses: dict[str, PipelineStatus] = {}
        self.ended: dict[str, Ended] = {}
        self.waiting: set[str] = set()
        starting = sum(1 for view in facts.workers.values() if view.alive and not view.fresh)
        self.starts_left = STARTING_MAX - starting


def plan(facts: Facts) -> Plan:
    """Return what this node should do now."""
    draft = _Draft(facts)
    busy = frozenset(key.pipeline for key, view in facts.workers.items() if view.alive)
    given_up = frozenset(
        key.pipeline for key, view in facts.workers.items() if not facts.leaf_reachable and _is_fenced(view)
    )
    if facts.complete:
        for name in sorted((facts.mine - facts.leaving - given_up) & _named(facts)):
            _plan_pipeline(name, facts, draft)
    else:
        draft.keep.update(facts.workers)
        draft.ended.update(facts.ended)
        for name in sorted(facts.mine & busy):
            _say(draft, name, _observed(name, facts))
    return Plan(
        run=draft.run,
        keep=frozenset(draft.keep),
        statuses=draft.statuses,
        ended=draft.ended,
        wanted={name: _needed(name, facts) for name in sorted(_named(facts))},
        busy=busy,
        given_up=given_up,
        waiting=frozenset(draft.waiting),
    )


def _is_fenced(view: WorkerView) -> bool:
    """Say whether the worker found another owner in the checkpoint; one that has just ended said so last."""
    return bool((view.fresh or not view.alive) and view.status and view.status.code is Code.SINK_FENCED)


def _claims_again(view: WorkerView, facts: Facts) -> bool:
    """Say whether a fenced worker is to be started afresh: the leaf was asked since, and the lease is still ours.

    Whoever claimed the pipeline meanwhile did so without the lease, or has lost it.
    """
    asked = facts.leaf_reachable and facts.leases_read_at >= view.since + FENCED_SECONDS
    return view.fresh and _is_fenced(view) and asked


def _named(facts: Facts) -> frozenset[str]:
    return frozenset(facts.pipelines) | frozenset(facts.needs_upgrade)


def _needed(name: str, facts: Facts) -> int:
    """Return the contract version that a node must speak to run the newest document of the pipeline."""
    if (requires := facts.needs_upgrade.get(name)) is not None:
        return requires.contract
    document = facts.pipelines[name].document
    return document_contract(document)


def document_contract(document: PipelineDocument) -> int:
    """Return the lowest contract version that can express the document."""
    return 2 if isinstance(convert.to_v1(document), convert.Lost) else 1


# ---- One pipeline ---------------------------------------------------------------------------------------------------


def _plan_pipeline(name: str, facts: Facts, draft: _Draft) -> None:
    desired, requires = facts.pipelines.get(name), facts.needs_upgrade.get(name)
    if desired is None:
        assert requires is not None
        _say(draft, name, _wrong(name, Code.NEEDS_UPGRADE, requires.epoch, requires.generation, facts))
        return
    run = desired.document.run
    refusal = facts.refusals.get(name)
    if refusal is not None and run is not RunState.PAUSED:
        _say(draft, name, _refused(name, refusal, desired.document, facts))
        return
    if run is RunState.PAUSED:
        status = _plan_paused(name, desired, facts, draft)
    elif run is RunState.REMOVED:
        status = _plan_removed(name, desired, facts, draft)
    else:
        status = _plan_running(name, desired, facts, draft)
    if requires is not None and status is not None and status.code is None:
        status = structs.replace(status, code=Code.NEEDS_UPGRADE)
    _say(draft, name, status)


def _plan_running(name: str, desired: Desired, facts: Facts, draft: _Draft) -> PipelineStatus | None:
    document = desired.document
    if not _has_connections(document, facts):
        draft.keep.update(key for key in facts.workers if key.pipeline == name)
        observed = _observed(name, facts)
        if observed is not None and observed.code is None:
            return structs.replace(observed, code=Code.CONNECTION_MISSING)
        return observed or _wrong(name, Code.CONNECTION_MISSING, document.epoch, document.generation, facts)
    _run(name, desired, facts, draft)
    _reconcile(name, desired, facts, draft)
    return _observed(name, facts)


def _reconcile(name: str, desired: Desired, facts: Facts, draft: _Draft) -> None:
    """Wish for the process that compares both ends, until the end of all that was asked for has been handed on."""
    told = facts.reconciled.get(name, {})
    if all(told.get(table, 0) >= asked.number for table, asked in desired.document.comparisons.items()):
        return
    key = WorkerKey(name, Half.RECONCILE)
    draft.run[key] = _assignment(key, desired, facts)


def _plan_paused(name: str, desired: Desired, facts: Facts, draft: _Draft) -> PipelineStatus | None:
    """Let a living worker pause, and stop it when it has been paused for long. Start none."""
    document = desired.document
    living = [key for key, view in _workers_of(name, facts).items() if view.alive]
    if not living:
        ended = facts.ended.get(name) or Ended(epoch=document.epoch, generation=document.generation)
        ended = structs.replace(ended, epoch=document.epoch, generation=document.generation, removed=False)
        draft.ended[name] = ended
        return _at_rest(name, Phase.PAUSED, ended, document, facts)
    observed = _observed(name, facts)
    keys = _keys(name, document)
    lingering = set(keys) <= set(living) and (
        observed is None or observed.phase is not Phase.PAUSED or facts.now < observed.since + PAUSED_LINGER
    )
    if observed is not None and observed.phase is Phase.PAUSED:
        draft.ended[name] = _ended_as(observed)
    elif name in facts.ended:
        draft.ended[name] = facts.ended[name]
    if lingering and _has_connections(document, facts):
        draft.run.update({key: _assignment(key, desired, facts) for key in keys})
    return observed


def _plan_removed(name: str, desired: Desired, facts: Facts, draft: _Draft) -> PipelineStatus | None:
    """Let workers drop what the pipeline left at source and destination; remember that they did."""
    document = desired.document
    ended = facts.ended.get(name)
    if ended is not None and ended.removed and (ended.epoch, ended.generation) == (document.epoch, document.generation):
        draft.ended[name] = ended
        return _at_rest(name, Phase.REMOVED, ended, document, facts)
    said = [facts.workers[key].status for key in _keys(name, document) if key in facts.workers]
    done = [each for each in said if each and each.phase is Phase.REMOVED and each.generation == document.generation]
    if len(done) == len(_keys(name, document)):
        ended = Ended(epoch=document.epoch, generation=document.generation, removed=True)
        draft.ended[name] = ended
        return _at_rest(name, Phase.REMOVED, ended, document, facts)
    if not _has_connections(document, facts):
        return _wrong(name, Code.CONNECTION_MISSING, document.epoch, document.generation, facts)
    _run(name, desired, facts, draft)
    observed = _observed(name, facts)
    # One half may be done before the other.
    if observed is not None and observed.phase is Phase.REMOVED:
        observed = structs.replace(observed, phase=Phase.PENDING)
    return observed


def _run(name: str, desired: Desired, facts: Facts, draft: _Draft) -> None:
    """Wish for the pipeline's workers; if others of it still live (the buffer's type changed), first wait for them."""
    keys = _keys(name, desired.document)
    others = [key for key, view in _workers_of(name, facts).items() if key not in keys and view.alive]
    if others:
        return
    for key in keys:
        view = facts.workers.get(key)
        if view is not None and _claims_again(view, facts):
            continue  # it stops, and the next plan starts it
        # One that is between two tries takes no turn: it must not keep others waiting.
        if view is None or (not view.alive and view.trouble is None):
            if draft.starts_left <= 0:
                draft.waiting.add(name)
                continue
            draft.starts_left -= 1
        draft.run[key] = _assignment(key, desired, facts)


def _workers_of(name: str, facts: Facts) -> dict[WorkerKey, WorkerView]:
    """Return the processes that run the pipeline; the one that compares its ends says nothing of how it stands."""
    return {key: view for key, view in facts.workers.items() if key.pipeline == name and key.half is not Half.RECONCILE}


def _keys(name: str, document: PipelineDocument) -> list[WorkerKey]:
    return [WorkerKey(name, half) for half in halves_of(document.buffer.type is not BufferType.DIRECT)]


def _has_connections(document: PipelineDocument, facts: Facts) -> bool:
    return document.source.connection in facts.connections and document.sink.connection in facts.connections


def _assignment(key: WorkerKey, desired: Desired, facts: Facts) -> Assignment:
    document = desired.document
    return Assignment(
        pipeline_id=str(resource_id(facts.me.tenant, PIPELINE_KIND, key.pipeline)),
        tenant=facts.me.tenant,
        half=key.half,
        contract=desired.contract,
        document=desired.raw,
        source=facts.connections[document.source.connection],
        sink=facts.connections[document.sink.connection],
        secrets_folder=facts.me.secrets_folder,
        owner=facts.me.node,
        buffer=None if document.buffer.type is BufferType.DIRECT else facts.me.buffer,
        restarts=document.restarts,
        masks=list(facts.masks),
        shared=facts.shared,
        leased=facts.leaf_reachable,
    )


# ---- What may be said -----------------------------------------------------------------------------------------------


def _say(draft: _Draft, name: str, status: PipelineStatus | None) -> None:
    if status is not None:
        draft.statuses[name] = status


def _observed(name: str, facts: Facts) -> PipelineStatus | None:
    """Return what the pipeline's workers say; None before any of them has ever said a word."""
    views = _workers_of(name, facts)
    desired = facts.pipelines.get(name)
    keys = _keys(name, desired.document) if desired is not None else list(views)
    views = {key: view for key, view in views.items() if key in keys} or views
    statuses: Sequence[WorkerStatus] = [view.status for view in views.values() if view.status is not None]
    trouble = next((view.trouble for view in views.values() if view.trouble is not None), None)
    before = facts.before.get(name)
    if trouble is not None:
        document = desired.document if desired is not None else None
        known = combine(statuses) if statuses else before
        if known is None:
            return _wrong(name, trouble, document.epoch, document.generation, facts) if document else None
        return _changed(_plain(known, Phase.RETRYING, trouble), facts)
    if statuses and len(statuses) == len(keys) and all(view.fresh for view in views.values()):
        return combine(statuses)
    known = before or (combine(statuses) if statuses else None)
    if known is None:
        return None
    # Starting, or stopped in good order: what it said last holds no more.
    return _changed(_plain(known, Phase.PENDING, None), facts)


def _plain(status: PipelineStatus, phase: Phase, code: Code | None) -> PipelineStatus:
    return structs.replace(status, phase=phase, code=code, sql_state=None, table=None, column=None)


def _wrong(name: str, code: Code, epoch: int, generation: int, facts: Facts) -> PipelineStatus:
    """Return the status of a pipeline that cannot run, for a reason that the node itself found."""
    phase = Phase.RETRYING if explain(code).family is Family.RETRY else Phase.DEGRADED
    status = PipelineStatus(
        pipeline=name, epoch=epoch, observed_generation=generation, phase=phase, since=facts.now, code=code
    )
    return _changed(status, facts)


def _refused(name: str, refusal: Violation, document: PipelineDocument, facts: Facts) -> PipelineStatus:
    """Return the status of a pipeline that the customer's policy does not allow. Its workers stop."""
    status = _wrong(name, refusal.code, document.epoch, document.generation, facts)
    return structs.replace(status, table=refusal.table, column=refusal.column)


def _at_rest(name: str, phase: Phase, ended: Ended, document: PipelineDocument, facts: Facts) -> PipelineStatus:
    """Return the status of a pipeline that needs no worker to be as its document says."""
    position = Position(lsn=ended.position_lsn, ordinal=ended.position_ordinal) if ended.position_lsn else None
    status = PipelineStatus(
        pipeline=name,
        epoch=document.epoch,
        observed_generation=document.generation,
        phase=phase,
        since=facts.now,
        restarts=document.restarts,
        position=position,
        tables_total=ended.tables_total,
        tables_copied=ended.tables_copied,
    )
    return _changed(status, facts)


def _changed(status: PipelineStatus, facts: Facts) -> PipelineStatus:
    """Date a status of the node's own making: since when the pipeline has stood so."""
    before = facts.before.get(status.pipeline)
    same = before is not None and (before.phase, before.code) == (status.phase, status.code)
    return structs.replace(status, since=before.since if same and before is not None else facts.now)


def _ended_as(status: PipelineStatus) -> Ended:
    return Ended(
        epoch=status.epoch,
        generation=status.observed_generation,
        position_lsn=status.position.lsn if status.position else 0,
        position_ordinal=status.position.ordinal if status.position else 0,
        tables_total=status.tables_total,
        tables_copied=status.tables_copied,
    )
