"""Who runs what follows from the bucket alone: every pipeline on one node, evenly, moving as little as possible."""

from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dataplane.node.placement import (
    RANK_WAIT_SECONDS,
    RETURN_SECONDS,
    STEADY_SECONDS,
    Decision,
    Member,
    Owner,
    Situation,
    decide,
    rank,
)

NOBODY: dict[str, float] = {}


def member(*, contract: int = 2, ready: bool = True) -> Member:
    return Member(contract=contract, ready=ready, instance="x")


def situation(me: str = "a", **fields: object) -> Situation:
    values: dict[str, object] = {
        "now": 1000.0,
        "members": {"a": member()},
        "owners": {},
        "wanted": {"p": 1},
        "mine": frozenset(),
        "busy": frozenset(),
        **fields,
    }
    return Situation(me=me, **values)  # type: ignore[arg-type]


def test_a_lone_node_takes_everything_at_once() -> None:
    """Without another node there is nothing to wait for."""
    assert decide(situation(wanted={"p": 1, "q": 2})).acquire == {"p": 0, "q": 0}


def test_a_living_owner_is_left_alone() -> None:
    """What another living node owns is elsewhere, even if it was ours."""
    decision = decide(
        situation(members={"a": member(), "b": member()}, owners={"p": Owner("b", 7)}, mine=frozenset({"p"}))
    )
    assert (decision.acquire, decision.mine, decision.elsewhere) == ({}, frozenset(), {"p": "b"})


def test_a_dead_owner_is_replaced_at_its_revision() -> None:
    """The entry is taken over as it was read, so that one of two racers fails."""
    assert decide(situation(owners={"p": Owner("dead", 7)})).acquire == {"p": 7}


def test_the_first_in_rank_takes_at_once_and_the_next_waits() -> None:
    """Each further rank waits longer, counted from when the pipeline became free."""
    members = {"a": member(), "b": member()}
    first, second = rank("p", members, {}, 1)
    assert decide(situation(first, members=members)).acquire == {"p": 0}
    assert decide(situation(second, members=members)).acquire == {}
    waited = {"p": 1000.0 - RANK_WAIT_SECONDS}
    assert decide(situation(second, members=members, free_since=waited)).acquire == {"p": 0}


def test_after_the_leaf_was_away_only_former_holders_take() -> None:
    """A restart of the leaf moves nothing, though it has forgotten who owned what."""
    members = {"a": member(), "b": member()}
    back = {"members": members, "returned_at": 1000.0, "wanted": {"p": 1, "q": 1}}
    assert decide(situation("a", mine=frozenset({"p", "q"}), **back)).acquire == {"p": 0, "q": 0}
    assert decide(situation("b", **back)).acquire == {}
    late = {**back, "returned_at": 1000.0 - RETURN_SECONDS, "free_since": {"p": 0.0, "q": 0.0}}
    assert decide(situation("b", **late)).acquire == {"p": 0, "q": 0}


def test_what_is_not_wanted_is_released_once_nothing_runs() -> None:
    """A lease outlives its document until the worker has ended."""
    owned = {"owners": {"p": Owner("a", 7)}, "wanted": {}}
    assert decide(situation(busy=frozenset({"p"}), **owned)).release == {}
    assert decide(situation(**owned)).release == {"p": 7}


def test_too_much_is_given_away_one_at_a_time_and_only_when_all_is_steady() -> None:
    """A node that came gets its share; the giver first stops its worker, then releases."""
    members = {"a": member(), "b": member()}
    held = {"owners": {name: Owner("a", 1) for name in "pqrs"}, "wanted": dict.fromkeys("pqrs", 1), "members": members}
    busy = frozenset("pqrs")
    assert decide(situation(busy=busy, steady_since=1000.0 - STEADY_SECONDS + 1, **held)).leaving == frozenset()
    decision = decide(situation(busy=busy, **held))
    assert len(decision.leaving) == 1
    assert decision.leaving <= decision.mine
    assert decision.release == {}
    stopped = decide(situation(busy=busy - decision.leaving, leaving=decision.leaving, **held))
    assert stopped.release.keys() == decision.leaving
    assert stopped.mine == frozenset("pqrs") - decision.leaving


def test_nothing_is_given_to_a_node_that_holds_no_whole_index() -> None:
    """A node that cannot run anything yet has no share."""
    members = {"a": member(), "b": member(ready=False)}
    held = {"owners": {name: Owner("a", 1) for name in "pq"}, "wanted": dict.fromkeys("pq", 1)}
    assert decide(situation(members=members, **held)).leaving == frozenset()


def test_a_pipeline_goes_to_a_node_that_can_express_it() -> None:
    """A node pinned to the older contract leaves newer documents to others, unless there are none."""
    members = {"a": member(contract=1), "b": member(contract=2)}
    assert decide(situation("a", members=members, wanted={"p": 2}, free_since={"p": 0.0})).acquire == {}
    assert decide(situation("b", members=members, wanted={"p": 2})).acquire == {"p": 0}
    assert decide(situation("a", members={"a": member(contract=1)}, wanted={"p": 2})).acquire == {"p": 0}
    held = {"owners": {"p": Owner("a", 1)}, "wanted": {"p": 2}, "members": members}
    assert decide(situation("a", busy=frozenset({"p"}), **held)).leaving == {"p"}


@pytest.mark.parametrize("count", [2, 3, 5])
def test_many_pipelines_spread_evenly(count: int) -> None:
    """When all nodes see all pipelines free, no node takes more than its share."""
    nodes = [f"node-{number}" for number in range(count)]
    members = {name: member() for name in nodes}
    wanted = {f"pipeline-{number}": 1 for number in range(20)}
    taken = [decide(situation(node, members=members, wanted=wanted)).acquire for node in nodes]
    assert sorted(name for each in taken for name in each) == sorted(wanted)
    assert max(len(each) for each in taken) <= -(-20 // count)


class Bucket:
    """The leaf's bucket on a virtual clock: whoever names an old revision is refused."""

    def __init__(self) -> None:
        self.owners: dict[str, Owner] = {}
        self.revision = 0

    def apply(self, node: str, decision: Decision) -> None:
        for name, revision in decision.acquire.items():
            if (self.owners[name].revision if name in self.owners else 0) == revision:
                self.revision += 1
                self.owners[name] = Owner(node, self.revision)
        for name, revision in decision.release.items():
            if name in self.owners and self.owners[name].revision == revision:
                del self.owners[name]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    pipelines=st.integers(1, 12),
    order=st.lists(st.lists(st.sampled_from("abc"), min_size=1, max_size=3, unique=True), min_size=2, max_size=6),
)
def test_whatever_comes_and_goes_all_settles_on_one_node_each_and_evenly(
    pipelines: int, order: list[list[str]]
) -> None:
    """Nodes live and die in any order; in the end every pipeline has one living owner, and nobody too many."""
    wanted = {f"p{number}": 1 for number in range(pipelines)}
    bucket, now = Bucket(), 0.0
    memory = {
        node: Decision(acquire={}, release={}, mine=frozenset(), leaving=frozenset(), elsewhere={}, free=frozenset())
        for node in "abc"
    }
    free_since: dict[str, dict[str, float]] = {node: {} for node in "abc"}
    for living in order:
        steady_since = now
        for _ in range(60):
            now += 1.0
            for node in living:
                before = memory[node]
                decision = decide(
                    situation(
                        node,
                        now=now,
                        members={each: member() for each in living},
                        owners=dict(bucket.owners),
                        wanted=wanted,
                        mine=before.mine,
                        busy=before.mine - before.leaving,
                        leaving=before.leaving,
                        free_since=free_since[node],
                        steady_since=steady_since,
                        patience=2.0,
                    )
                )
                if decision.release:
                    steady_since = now
                free_since[node] = {name: free_since[node].get(name, now) for name in decision.free}
                memory[node] = decision
                bucket.apply(node, decision)
        loads = Counter(owner.node for owner in bucket.owners.values())
        assert bucket.owners.keys() == wanted.keys()
        assert set(loads) <= set(living)
        assert max(loads.values()) <= -(-pipelines // len(living))
