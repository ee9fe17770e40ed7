"""What to do next with a worker process follows from facts and a clock that the test moves."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from contracts.codes import Code
from dataplane.node import lifecycle
from dataplane.node.lifecycle import (
    BACKOFF_SECONDS_MAX,
    BACKOFF_SECONDS_MIN,
    SILENCE_SECONDS_MAX,
    START_SECONDS_MAX,
    STOP_SECONDS_MAX,
    Step,
    WorkerFacts,
    backoff_seconds,
    decide,
)

RUNNING = WorkerFacts(desired="a", alive=True, acting="a", connected=True, spoken=True, heard_at=100.0)


@pytest.mark.parametrize(
    ("facts", "step"),
    [
        (WorkerFacts(desired=None), Step.FORGET),
        (WorkerFacts(desired="a"), Step.START),
        (WorkerFacts(desired="a", retry_at=100.5), Step.WAIT),
        (RUNNING, Step.WAIT),
        (structs.replace(RUNNING, desired="b"), Step.HAND_OVER),
        (structs.replace(RUNNING, desired="b", connected=False), Step.CONNECT),
        (structs.replace(RUNNING, connected=False, connect_at=101.0), Step.WAIT),
        (structs.replace(RUNNING, desired=None), Step.ASK_STOP),
        (structs.replace(RUNNING, desired="b", desired_restarts=1), Step.ASK_STOP),
        (structs.replace(RUNNING, desired=None, stop_asked_at=99.0), Step.WAIT),
        (structs.replace(RUNNING, stop_asked_at=99.0), Step.WAIT),
        (structs.replace(RUNNING, desired=None, stop_asked_at=100.0 - STOP_SECONDS_MAX), Step.KILL),
        (structs.replace(RUNNING, desired=None, stop_asked_at=0.0, killed=True), Step.WAIT),
        (structs.replace(RUNNING, heard_at=100.0 - SILENCE_SECONDS_MAX), Step.KILL),
        (structs.replace(RUNNING, spoken=False, heard_at=100.0 - SILENCE_SECONDS_MAX), Step.WAIT),
        (structs.replace(RUNNING, spoken=False, heard_at=100.0 - START_SECONDS_MAX), Step.KILL),
    ],
)
def test_the_next_step_follows_from_the_facts(facts: WorkerFacts, step: Step) -> None:
    """Each state of wish and process has one next step."""
    assert decide(facts, 100.0).step is step


def test_only_silence_makes_a_kill_a_failure() -> None:
    """A worker that does not stop when asked is killed without being blamed; a silent one is stalled."""
    late = structs.replace(RUNNING, desired=None, stop_asked_at=0.0)
    assert decide(late, 100.0).code is None
    assert decide(structs.replace(RUNNING, heard_at=0.0), 100.0).code is Code.WORKER_STALLED


def test_waiting_always_ends() -> None:
    """A wait names a later time, and no wait is longer than a tick unless a retry is due later."""
    decision = decide(RUNNING, 100.0)
    assert 100.0 < decision.again_at <= 100.0 + lifecycle.TICK_SECONDS
    assert decide(WorkerFacts(desired="a", retry_at=107.0), 100.0).again_at == 107.0


@given(failures=st.integers(1, 10_000), chance=st.floats(0, 1, exclude_max=True))
def test_backoff_is_bounded_and_has_jitter(failures: int, chance: float) -> None:
    """Delays double up to a bound, and lie between half and all of it."""
    full = min(BACKOFF_SECONDS_MAX, BACKOFF_SECONDS_MIN * 2.0 ** min(failures - 1, 32))
    assert full / 2 <= backoff_seconds(failures, chance) <= full


def test_a_crashing_worker_on_a_virtual_clock_is_started_ever_more_rarely() -> None:
    """In an hour of crashes at once after each start, there are about as many starts as half-minutes."""
    now, failures, retry_at, starts = 0.0, 0, 0.0, 0
    while now < 3600.0:
        decision = decide(WorkerFacts(desired="a", retry_at=retry_at), now)
        if decision.step is Step.START:
            starts, failures = starts + 1, failures + 1
            retry_at = now + backoff_seconds(failures, 0.5)
        now = max(decision.again_at, now)
    assert 120 <= starts <= 3600 / (BACKOFF_SECONDS_MAX / 2) + 12
