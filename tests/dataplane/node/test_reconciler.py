"""What a node should run and may say, as tables: facts in, plan out."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs
from tests.dataplane.node.documents import (
    CONNECTIONS,
    ME,
    NOW,
    TENANT,
    connection,
    desired,
    key,
    pipeline,
    view,
    worker_status,
)

from contracts import v1
from contracts.codes import Code
from contracts.reconciling import Reconcile
from contracts.v2 import BufferType, Kind, Phase, PipelineStatus, RequiresDocument, RunState
from dataplane.node.process import WorkerKey
from dataplane.node.reconciler import FENCED_SECONDS, PAUSED_LINGER, STARTING_MAX, Desired, Facts, Plan, plan
from dataplane.node.record import Ended
from dataplane.node.supervisor import WorkerView
from dataplane.policy import Violation
from dataplane.worker.protocol import Half

WHOLE, SOURCE, SINK = key(), key(half=Half.SOURCE), key(half=Half.SINK)


def facts(**fields: object) -> Facts:
    values: dict[str, object] = {
        "me": ME,
        "now": NOW,
        "complete": True,
        "pipelines": {"orders": desired(pipeline())},
        "connections": CONNECTIONS,
        "mine": frozenset({"orders"}),
        **fields,
    }
    return Facts(**values)  # type: ignore[arg-type]


def status_of(decided: Plan) -> PipelineStatus:
    return decided.statuses["orders"]


def requires(generation: int = 3) -> RequiresDocument:
    return RequiresDocument(
        tenant=TENANT, data_plane="local", name="orders", epoch=1, generation=generation, of=Kind.PIPELINE, contract=2
    )


def test_a_pipeline_of_ours_gets_one_worker() -> None:
    """The assignment holds the document as it came, both connections, and no secret."""
    decided = plan(facts())
    assert list(decided.run) == [WHOLE]
    assignment = decided.run[WHOLE]
    assert assignment.document == desired(pipeline()).raw
    assert (assignment.source.name, assignment.sink.name) == ("shop", "warehouse")
    assert assignment.buffer is None
    assert decided.statuses == {}, "nothing is said before a worker has said something"


def test_a_buffer_makes_two_halves() -> None:
    """Each half knows how to reach the buffer."""
    decided = plan(facts(pipelines={"orders": desired(pipeline(buffer=BufferType.JETSTREAM))}))
    assert list(decided.run) == [SOURCE, SINK]
    assert all(each.buffer == ME.buffer for each in decided.run.values())


def test_a_document_of_the_older_contract_is_passed_on_as_it_is() -> None:
    """A worker reads version 1 itself; the node only needs to know what to do with it."""
    newest = pipeline()
    older = v1.PipelineDocument(
        tenant=TENANT,
        data_plane="local",
        name="orders",
        epoch=1,
        generation=1,
        run=RunState.RUNNING,
        source=newest.source,
        sink=newest.sink,
        buffer=BufferType.JETSTREAM,
    )
    decided = plan(facts(pipelines={"orders": Desired.of(1, "raw text", older)}))
    assert list(decided.run) == [SOURCE, SINK]
    assert {(each.contract, each.document) for each in decided.run.values()} == {(1, "raw text")}


def test_a_comparison_runs_beside_the_workers_until_its_end_is_handed_on() -> None:
    """It takes no part in what is said of the pipeline, and keeps a lease from going while it lives."""
    asked = structs.replace(pipeline(), reconciles={"public.orders": Reconcile(number=2, repair=True)})
    comparing = key(half=Half.RECONCILE)
    processes = {WHOLE: view(worker_status()), comparing: view(None, fresh=False, trouble=Code.WORKER_EXITED)}
    for told in ({}, {"orders": {"public.orders": 1}}):
        decided = plan(facts(pipelines={"orders": desired(asked)}, workers=processes, reconciled=told))
        assert list(decided.run) == [WHOLE, comparing]
        assert (status_of(decided).phase, status_of(decided).code) == (Phase.STREAMING, None)
    done = {"orders": {"public.orders": 2}}
    decided = plan(facts(pipelines={"orders": desired(asked)}, workers=processes, reconciled=done))
    assert list(decided.run) == [WHOLE]
    paused = structs.replace(asked, run=RunState.PAUSED)
    decided = plan(facts(pipelines={"orders": desired(paused)}, workers={comparing: view(None, fresh=False)}))
    assert (list(decided.run), status_of(decided).phase) == ([], Phase.PAUSED)
    decided = plan(facts(mine=frozenset(), pipelines={"orders": desired(asked)}, workers=processes))
    assert (decided.run, decided.busy) == ({}, {"orders"})


def test_another_nodes_pipeline_is_neither_run_nor_spoken_of() -> None:
    """Without the lease a living worker is stopped, and its status is not ours to report."""
    decided = plan(facts(mine=frozenset(), workers={WHOLE: view(worker_status())}))
    assert (decided.run, decided.keep, decided.statuses) == ({}, frozenset(), {})
    assert decided.busy == {"orders"}


def test_a_pipeline_that_leaves_is_stopped_first() -> None:
    """The lease is still ours while the worker lives."""
    decided = plan(facts(leaving=frozenset({"orders"}), workers={WHOLE: view(worker_status())}))
    assert (decided.run, decided.statuses, decided.busy) == ({}, {}, {"orders"})


def test_what_the_index_does_not_name_is_stopped() -> None:
    """Stopped, not removed: no assignment says `removed`, so the slot stays."""
    decided = plan(facts(pipelines={}, workers={WHOLE: view(worker_status())}))
    assert (decided.run, decided.keep, decided.wanted) == ({}, frozenset(), {})


def test_without_a_whole_index_everything_stays() -> None:
    """Absence is never a deletion."""
    ended = {"paused": Ended(epoch=1, generation=1)}
    decided = plan(facts(complete=False, pipelines={}, workers={WHOLE: view(worker_status())}, ended=ended))
    assert decided.keep == {WHOLE}
    assert decided.ended == ended
    assert status_of(decided).phase is Phase.STREAMING


@pytest.mark.parametrize("missing", ["shop", "warehouse"])
def test_a_missing_connection_leaves_running_what_runs(missing: str) -> None:
    """It is said, and acted on only when the connection is here."""
    connections = {name: each for name, each in CONNECTIONS.items() if name != missing}
    fresh = plan(facts(connections=connections))
    assert fresh.run == {}
    assert (status_of(fresh).phase, status_of(fresh).code) == (Phase.RETRYING, Code.CONNECTION_MISSING)
    running = plan(facts(connections=connections, workers={WHOLE: view(worker_status())}))
    assert (running.run, running.keep) == ({}, {WHOLE})
    assert (status_of(running).phase, status_of(running).code) == (Phase.STREAMING, Code.CONNECTION_MISSING)


@pytest.mark.parametrize("run", [RunState.RUNNING, RunState.REMOVED])
def test_what_the_policy_refuses_neither_runs_nor_goes_on(run: RunState) -> None:
    """What ran is stopped, and what goes up is the code with the names of table and column, no more."""
    refusal = Violation(code=Code.POLICY_MASK_MISSING, what="not for others", table="public.orders", column="note")
    workers = {WHOLE: view(worker_status())}
    pipelines = {"orders": desired(pipeline(run=run))}
    decided = plan(facts(pipelines=pipelines, workers=workers, refusals={"orders": refusal}))
    assert (decided.run, decided.keep) == ({}, frozenset())
    status = status_of(decided)
    assert (status.phase, status.code) == (Phase.DEGRADED, Code.POLICY_MASK_MISSING)
    assert (status.table, status.column) == ("public.orders", "note")


def test_a_refused_pipeline_may_still_be_paused() -> None:
    """A pause needs no permission: it only stops."""
    refusal = Violation(code=Code.POLICY_SOURCE_REFUSED, what="no rule")
    pipelines = {"orders": desired(pipeline(run=RunState.PAUSED))}
    assert status_of(plan(facts(pipelines=pipelines, refusals={"orders": refusal}))).phase is Phase.PAUSED


def test_a_changed_connection_changes_the_assignment() -> None:
    """The pipeline's own generation need not grow for its worker to be told."""
    moved = {**CONNECTIONS, "warehouse": connection("warehouse", generation=2, port=6000)}
    assert plan(facts(connections=moved)).run[WHOLE] != plan(facts()).run[WHOLE]


def test_a_document_for_newer_nodes_keeps_what_runs_and_says_so() -> None:
    """The older document goes on; the observed generation stays the older one."""
    decided = plan(facts(needs_upgrade={"orders": requires()}, workers={WHOLE: view(worker_status())}))
    assert list(decided.run) == [WHOLE]
    assert status_of(decided).code is Code.NEEDS_UPGRADE
    assert (status_of(decided).phase, status_of(decided).observed_generation) == (Phase.STREAMING, 1)
    assert decided.wanted == {"orders": 2}


def test_a_document_for_newer_nodes_with_nothing_to_keep_is_degraded() -> None:
    """A node that never had an older document runs nothing."""
    decided = plan(facts(pipelines={}, needs_upgrade={"orders": requires()}))
    assert decided.run == {}
    assert (status_of(decided).phase, status_of(decided).code) == (Phase.DEGRADED, Code.NEEDS_UPGRADE)


def test_green_is_never_early() -> None:
    """Until the worker acts on the new generation, the old one is what is observed."""
    newer = facts(pipelines={"orders": desired(pipeline(generation=2))}, workers={WHOLE: view(worker_status())})
    assert status_of(plan(newer)).observed_generation == 1
    acting = structs.replace(newer, workers={WHOLE: view(worker_status(generation=2))})
    assert status_of(plan(acting)).observed_generation == 2


def test_the_slower_half_decides() -> None:
    """Two halves are green when both are, and act on a generation when both do."""
    document = desired(pipeline(generation=2, buffer=BufferType.JETSTREAM))
    workers = {
        SOURCE: view(worker_status(half=Half.SOURCE, generation=2)),
        SINK: view(worker_status(half=Half.SINK, phase=Phase.RETRYING, code=Code.SINK_UNREACHABLE)),
    }
    status = status_of(plan(facts(pipelines={"orders": document}, workers=workers)))
    assert (status.phase, status.code, status.observed_generation) == (Phase.RETRYING, Code.SINK_UNREACHABLE, 1)
    silent = {**workers, SINK: view(None)}
    before = {"orders": status}
    status = status_of(plan(facts(pipelines={"orders": document}, workers=silent, before=before)))
    assert status.phase is Phase.PENDING


@pytest.mark.parametrize("code", [Code.WORKER_EXITED, Code.WORKER_STALLED])
def test_a_dead_worker_is_said_to_be_retried(code: Code) -> None:
    """Never green on a worker that does not run; what it had observed stays observed."""
    dead = view(worker_status(), alive=False, fresh=False, trouble=code)
    status = status_of(plan(facts(workers={WHOLE: dead})))
    assert (status.phase, status.code, status.observed_generation) == (Phase.RETRYING, code, 1)
    never_spoke = view(None, alive=False, trouble=code)
    status = status_of(plan(facts(workers={WHOLE: never_spoke})))
    assert (status.phase, status.code) == (Phase.RETRYING, code)


def test_changing_the_buffer_ends_the_old_workers_first() -> None:
    """No half starts while a worker of the other form lives."""
    document = {"orders": desired(pipeline(generation=2, buffer=BufferType.JETSTREAM))}
    assert plan(facts(pipelines=document, workers={WHOLE: view(worker_status())})).run == {}
    gone = {WHOLE: view(worker_status(), alive=False, fresh=False)}
    assert list(plan(facts(pipelines=document, workers=gone)).run) == [SOURCE, SINK]


def test_pausing_lets_the_worker_pause_and_then_go() -> None:
    """The worker acknowledges, lingers for a quick resume, and makes room after a while."""
    document = {"orders": desired(pipeline(generation=2, run=RunState.PAUSED))}
    told = plan(facts(pipelines=document, workers={WHOLE: view(worker_status())}))
    assert list(told.run) == [WHOLE]
    assert status_of(told).observed_generation == 1
    paused = worker_status(phase=Phase.PAUSED, generation=2, position_lsn=77, since_seconds=NOW.timestamp())
    lingers = facts(pipelines=document, workers={WHOLE: view(paused)})
    assert list(plan(lingers).run) == [WHOLE]
    late = plan(structs.replace(lingers, now=NOW + PAUSED_LINGER))
    assert late.run == {}
    assert late.ended["orders"].position_lsn == 77


def test_a_paused_pipeline_needs_no_worker() -> None:
    """At a boot nothing is started for it, and the last position is still known."""
    document = {"orders": desired(pipeline(generation=2, run=RunState.PAUSED))}
    decided = plan(facts(pipelines=document, ended={"orders": Ended(epoch=1, generation=1, position_lsn=77)}))
    status = status_of(decided)
    assert decided.run == {}
    assert (status.phase, status.observed_generation) == (Phase.PAUSED, 2)
    assert status.position is not None
    assert status.position.lsn == 77


def test_half_of_a_paused_pair_does_not_linger() -> None:
    """When one half has died while paused, the other is stopped, and the pipeline is paused."""
    document = {"orders": desired(pipeline(generation=2, run=RunState.PAUSED, buffer=BufferType.JETSTREAM))}
    alone = {SINK: view(worker_status(half=Half.SINK, phase=Phase.PAUSED, generation=2))}
    assert plan(facts(pipelines=document, workers=alone)).run == {}


def test_removing_is_done_once_and_remembered() -> None:
    """The worker drops what was left; when it has, it goes, and a boot starts nothing again."""
    document = {"orders": desired(pipeline(generation=2, run=RunState.REMOVED))}
    begun = plan(facts(pipelines=document))
    assert list(begun.run) == [WHOLE]
    done = plan(facts(pipelines=document, workers={WHOLE: view(worker_status(phase=Phase.REMOVED, generation=2))}))
    assert done.run == {}
    assert (status_of(done).phase, status_of(done).observed_generation) == (Phase.REMOVED, 2)
    again = plan(facts(pipelines=document, ended=done.ended))
    assert (again.run, status_of(again).phase) == ({}, Phase.REMOVED)
    recreated = {"orders": desired(pipeline(generation=3))}
    assert list(plan(facts(pipelines=recreated, ended=done.ended)).run) == [WHOLE]


def test_removing_needs_both_halves() -> None:
    """One half that is done does not make it removed."""
    document = {"orders": desired(pipeline(generation=2, run=RunState.REMOVED, buffer=BufferType.JETSTREAM))}
    source = view(worker_status(half=Half.SOURCE, phase=Phase.REMOVED, generation=2))
    sink = view(worker_status(half=Half.SINK, phase=Phase.PENDING, generation=2))
    decided = plan(facts(pipelines=document, workers={SOURCE: source, SINK: sink}))
    assert list(decided.run) == [SOURCE, SINK]
    assert status_of(decided).phase is Phase.PENDING


def test_an_old_removal_is_not_taken_for_a_new_one() -> None:
    """A status of an older generation says nothing about this removal."""
    document = {"orders": desired(pipeline(generation=9, run=RunState.REMOVED))}
    old = view(worker_status(phase=Phase.REMOVED, generation=2))
    decided = plan(facts(pipelines=document, workers={WHOLE: old}))
    assert list(decided.run) == [WHOLE]
    assert status_of(decided).phase is Phase.PENDING


def test_a_restart_is_a_number_in_the_assignment() -> None:
    """The supervisor replaces a process whose assignment has a smaller one."""
    decided = plan(facts(pipelines={"orders": desired(pipeline(generation=2, restarts=3))}))
    assert decided.run[WHOLE].restarts == 3


def test_a_fenced_pipeline_is_given_up_only_while_the_leaf_is_away() -> None:
    """With the leaf there the lease decides; without it the fence says that another node has taken over."""
    fenced = {WHOLE: view(worker_status(phase=Phase.RETRYING, code=Code.SINK_FENCED))}
    away = plan(facts(workers=fenced, leaf_reachable=False))
    assert (away.given_up, away.run) == ({"orders"}, {})
    there = plan(facts(workers=fenced))
    assert (there.given_up, list(there.run)) == (frozenset(), [WHOLE])


def test_a_worker_that_said_it_is_fenced_and_ended_counts_as_fenced() -> None:
    """Its last word is why it ended; a new process that has not spoken yet has said nothing."""
    said = worker_status(phase=Phase.RETRYING, code=Code.SINK_FENCED)
    ended = {WHOLE: view(said, alive=False, fresh=False, trouble=Code.WORKER_EXITED)}
    assert plan(facts(workers=ended, leaf_reachable=False)).given_up == {"orders"}
    begun = {WHOLE: view(said, alive=True, fresh=False)}
    assert plan(facts(workers=begun, leaf_reachable=False)).given_up == frozenset()


def test_a_fenced_worker_is_started_afresh_once_the_leaf_was_asked_again() -> None:
    """An answer from before the fence proves nothing; one from after it says that the pipeline is still ours."""
    said = worker_status(phase=Phase.RETRYING, code=Code.SINK_FENCED)
    fenced = {WHOLE: view(said, since=100.0)}
    assert list(plan(facts(workers=fenced, leases_read_at=100.0)).run) == [WHOLE]
    asked = facts(workers=fenced, leases_read_at=100.0 + FENCED_SECONDS)
    assert (plan(asked).run, plan(asked).given_up) == ({}, frozenset())
    ended = {WHOLE: view(said, alive=False, fresh=False, since=100.0)}
    assert list(plan(structs.replace(asked, workers=ended)).run) == [WHOLE]


def test_an_assignment_says_whether_the_leaf_confirmed_the_lease() -> None:
    """Without that a new process claims only what its own node held last."""
    assert plan(facts()).run[WHOLE].leased
    assert not plan(facts(leaf_reachable=False)).run[WHOLE].leased


def test_a_boot_starts_a_few_at_a_time_and_the_failing_do_not_hold_up_the_rest() -> None:
    """Workers that are starting count; workers that wait for their next try do not."""
    many = {f"p{number:02}": desired(pipeline(f"p{number:02}")) for number in range(20)}
    mine = frozenset(many)
    boot = plan(facts(pipelines=many, mine=mine))
    assert len(boot.run) == STARTING_MAX
    assert len(boot.waiting) == 20 - STARTING_MAX
    failing = {key(f"p{n:02}"): view(None, alive=False, trouble=Code.WORKER_EXITED) for n in range(STARTING_MAX)}
    later = plan(facts(pipelines=many, mine=mine, workers=failing))
    assert len(later.run) == 2 * STARTING_MAX


PHASES = st.sampled_from(list(Phase))
VIEWS = st.builds(
    lambda half, phase, generation, alive, fresh, trouble: (
        half,
        view(
            worker_status(half=half, phase=phase, generation=generation),
            alive=alive,
            fresh=alive and fresh,
            trouble=None if alive and fresh else trouble,
        ),
    ),
    st.sampled_from(list(Half)),
    PHASES,
    st.integers(1, 3),
    st.booleans(),
    st.booleans(),
    st.sampled_from([None, Code.WORKER_EXITED, Code.WORKER_STALLED]),
)


@given(
    workers=st.lists(VIEWS, max_size=3, unique_by=lambda each: each[0]),
    run=st.sampled_from(list(RunState)),
    buffer=st.sampled_from(list(BufferType)),
    mine=st.booleans(),
    complete=st.booleans(),
    connected=st.booleans(),
)
def test_whatever_is_true_the_plan_keeps_the_rules(
    workers: list[tuple[Half, WorkerView]],
    run: RunState,
    buffer: BufferType,
    mine: bool,
    complete: bool,
    connected: bool,
) -> None:
    """The same facts give the same plan; never green early, never both forms at once, never silent stops."""
    known: dict[WorkerKey, WorkerView] = {key(half=half): each for half, each in workers}
    given_facts = facts(
        workers=known,
        pipelines={"orders": desired(pipeline(generation=3, run=run, buffer=buffer))},
        mine=frozenset({"orders"}) if mine else frozenset(),
        complete=complete,
        connections=CONNECTIONS if connected else {},
    )
    decided = plan(given_facts)
    assert decided == plan(given_facts)
    assert not decided.run.keys() & decided.keep
    halves = {each.half for each in decided.run}
    assert Half.WHOLE not in halves or len(halves) == 1
    living = {each.half for each, known_view in known.items() if known_view.alive} - {Half.RECONCILE}
    if halves and run is not RunState.PAUSED:
        assert living <= ({Half.WHOLE} if buffer is BufferType.DIRECT else {Half.SOURCE, Half.SINK})
    if not complete:
        assert decided.keep == known.keys()
    if not mine:
        assert not decided.statuses
    status = decided.statuses.get("orders")
    if status is not None and status.phase is Phase.STREAMING:
        # Only the halves that the document has count: what another buffer's type left behind is on its way out.
        halves = {Half.WHOLE} if buffer is BufferType.DIRECT else {Half.SOURCE, Half.SINK}
        speaking = [each for each_key, each in known.items() if each_key.half in halves and each.alive]
        assert all(each.fresh for each in speaking) or not complete
        if status.observed_generation == 3 and complete:
            assert all(
                known_view.status is not None and known_view.status.generation == 3
                for each, known_view in known.items()
                if each.half in halves
            )
