"""How a worker answers failures, new assignments, pauses and the end of its process, on a virtual clock."""

import asyncio
import dataclasses
import gc
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from tests.dataplane.buffers.changes import large_transaction, transaction
from tests.dataplane.worker import virtual
from tests.dataplane.worker.processes import document
from tests.dataplane.worker.world import PIPELINE, World, assignment

from contracts.codes import Code
from contracts.v2 import Phase, RunState
from dataplane.batch import ChangeSet
from dataplane.buffers.port import SessionReplaced
from dataplane.failures import Gap, Permanent, RetryLater
from dataplane.worker.protocol import Half
from dataplane.worker.queueing import ChangeQueue, QueueLimits
from dataplane.worker.retry import DELAY_SECONDS_MAX, FENCED_DELAY_SECONDS
from dataplane.worker.runtime import Runtime
from dataplane.worker.session import run_until_first

TABLES = ["public.orders"]


class Failing:
    """Raises what it is given, at one point, so many times."""

    def __init__(self, point: str, failure: Callable[[], Exception], times: int = 10**9) -> None:
        self._point = point
        self._failure = failure
        self.times = times

    async def __call__(self, point: str) -> None:
        if point == self._point and self.times:
            self.times -= 1
            raise self._failure()


class Gate:
    """Holds everyone who comes to one point until it is opened."""

    def __init__(self, point: str) -> None:
        self._point = point
        self.reached = asyncio.Event()
        self.opened = asyncio.Event()
        self.free = 0

    async def __call__(self, point: str) -> None:
        if point == self._point:
            if self.free:
                self.free -= 1
                return
            self.reached.set()
            await self.opened.wait()


def lived(scenario: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    """A test whose coroutine runs on a virtual clock."""

    def test() -> None:
        virtual.run(scenario())

    test.__name__, test.__doc__ = scenario.__name__, scenario.__doc__
    return test


async def phase(runtime: Runtime, wanted: Phase, generation: int = 1) -> None:
    async with asyncio.timeout(3600):
        while True:
            status = runtime.observation.status()
            if status.phase is wanted and status.generation == generation:
                return
            await asyncio.sleep(0.001)


async def end(runtime: Runtime, running: "asyncio.Task[None]") -> None:
    runtime.stop()
    async with asyncio.timeout(60):
        await running


@lived
async def test_retries_wait_longer_each_time_and_start_short_again_after_progress() -> None:
    """The first retry comes after a fifth of a second at most, later ones at most every half minute, for ever."""
    failing = Failing("sink.open", lambda: RetryLater(Code.SINK_UNREACHABLE, "away"), times=14)
    world = World(point=failing)
    runtime = world.runtime()
    running = asyncio.create_task(runtime.run())
    await phase(runtime, Phase.RETRYING)
    assert runtime.observation.status().code is Code.SINK_UNREACHABLE
    world.origin.commit([transaction(10, [1])])
    await world.until_caught_up()
    gaps = [after - before for before, after in zip(world.session_times, world.session_times[1:], strict=False)]
    assert 0.1 <= gaps[0] <= 0.2
    assert max(gaps) <= DELAY_SECONDS_MAX
    assert all(gap >= DELAY_SECONDS_MAX / 2 for gap in gaps[9:])
    assert runtime.observation.status().error_counts == {"sink_unreachable": 14}
    failing._point, failing.times = "source.changes", 1
    world.origin.commit([transaction(20, [2])])
    await world.until_caught_up()
    assert world.session_times[-1] - world.session_times[-2] < 60
    await end(runtime, running)


@lived
async def test_a_permanent_failure_waits_for_a_person() -> None:
    """The pipeline is degraded with code and names, and no session is tried until the assignment changes."""
    world = World(
        point=Failing("sink.apply", lambda: Permanent(Code.SINK_VALUE_REFUSED, "no", table="public.orders"), times=1)
    )
    world.origin.commit([transaction(10, [1])])
    runtime = world.runtime()
    running = asyncio.create_task(runtime.run())
    await phase(runtime, Phase.DEGRADED)
    status = runtime.observation.status()
    assert (status.code, status.table) == (Code.SINK_VALUE_REFUSED, "public.orders")
    await asyncio.sleep(100_000)
    assert world.sessions == 1
    assert world.origin.flushed == 0
    runtime.assign(assignment(document(TABLES, generation=2)))
    await phase(runtime, Phase.SNAPSHOTTING, 2)
    await world.until_caught_up()
    assert runtime.observation.status().code is None
    await end(runtime, running)


@lived
async def test_a_gap_is_a_phase_of_its_own() -> None:
    """Rows that may be missing are never read over: the phase says gap."""
    world = World(point=Failing("source.open", lambda: Gap(Code.GAP_SLOT_AHEAD, "moved")))
    runtime = world.runtime()
    running = asyncio.create_task(runtime.run())
    await phase(runtime, Phase.GAP)
    assert runtime.observation.status().code is Code.GAP_SLOT_AHEAD
    await end(runtime, running)


def test_a_mistake_of_ours_is_logged_and_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    """An unexpected exception is counted as internal, told with its traceback, and does not end the worker."""

    async def scenario() -> None:
        world = World(point=Failing("sink.apply", lambda: ZeroDivisionError("oops"), times=2))
        world.origin.commit([transaction(10, [1])])
        runtime = world.runtime()
        running = asyncio.create_task(runtime.run())
        await phase(runtime, Phase.RETRYING)
        assert runtime.observation.status().code is Code.INTERNAL
        await world.until_caught_up()
        assert runtime.observation.status().error_counts == {"internal": 2}
        await end(runtime, running)

    virtual.run(scenario())
    assert "ZeroDivisionError" in caplog.text


@lived
async def test_a_fenced_worker_waits_before_it_claims_again() -> None:
    """Two workers of one pipeline do not fight: the one that lost the fence stays back."""
    world = World()
    older, newer = world.runtime(), world.runtime()
    running = [asyncio.create_task(older.run())]
    await phase(older, Phase.SNAPSHOTTING)
    running.append(asyncio.create_task(newer.run()))
    await phase(newer, Phase.SNAPSHOTTING)
    world.origin.commit([transaction(10, [1])])
    await phase(older, Phase.RETRYING)
    assert older.observation.status().code is Code.SINK_FENCED
    await world.until_caught_up()
    claims = world.destination.epochs
    await asyncio.sleep(FENCED_DELAY_SECONDS)
    assert world.destination.epochs == claims
    await end(older, running[0])
    await end(newer, running[1])


@lived
async def test_a_pause_ends_the_session_between_transactions() -> None:
    """The transaction that is being applied is finished, the next one is not begun, and the process stays."""
    gate = Gate("sink.applied")
    world = World(point=gate)
    world.origin.commit(large_transaction(10, [[1], [2], [3]]), [transaction(20, [4])])
    runtime = world.runtime()
    running = asyncio.create_task(runtime.run())
    await gate.reached.wait()
    runtime.assign(assignment(document(TABLES, generation=2, run=RunState.PAUSED)))
    gate.opened.set()
    await phase(runtime, Phase.PAUSED, 2)
    assert world.rows() == {"1": "x", "2": "x", "3": "x"}
    assert world.origin.flushed == 11
    await asyncio.sleep(1000)
    assert world.sessions == 1
    runtime.assign(assignment(document(TABLES, generation=3)))
    await world.until_caught_up()
    await end(runtime, running)


@lived
async def test_a_transaction_that_does_not_end_is_rolled_back() -> None:
    """SIGTERM does not wait for ever: after five seconds the open transaction is given up, whole."""
    gate = Gate("source.changes")
    world = World(point=gate)
    world.origin.commit(large_transaction(10, [[1], [2], [3]]))
    runtime = world.runtime()
    running = asyncio.create_task(runtime.run())
    gate.free = 2
    await gate.reached.wait()
    await asyncio.sleep(1)
    assert len(world.applied) == 2
    started = asyncio.get_running_loop().time()
    await end(runtime, running)
    assert 4.9 <= asyncio.get_running_loop().time() - started <= 5.1
    assert world.rows() == {}
    assert world.origin.flushed == 0


@lived
async def test_an_assignment_that_changes_nothing_is_only_acknowledged() -> None:
    """A new generation of the same work keeps the session; a restart counter begins another."""
    world = World()
    runtime = world.runtime()
    running = asyncio.create_task(runtime.run())
    await phase(runtime, Phase.SNAPSHOTTING)
    runtime.assign(assignment(document(TABLES, generation=5)))
    assert runtime.observation.status().generation == 5
    await asyncio.sleep(10)
    assert world.sessions == 1
    runtime.assign(assignment(document(TABLES, generation=6, restarts=1)))
    await phase(runtime, Phase.SNAPSHOTTING, 6)
    assert world.sessions == 2
    assert runtime.observation.status().restarts == 1
    await end(runtime, running)


@lived
async def test_a_new_assignment_ends_a_backoff() -> None:
    """Nobody waits half a minute for a correction that has just been made."""
    failing = Failing("sink.open", lambda: RetryLater(Code.SINK_AUTH_FAILED, "no"))
    world = World(point=failing)
    runtime = world.runtime()
    running = asyncio.create_task(runtime.run())
    await asyncio.sleep(150)
    assert runtime.observation.phase is Phase.RETRYING
    failing.times = 0
    before = asyncio.get_running_loop().time()
    runtime.assign(assignment(document(TABLES, generation=2, restarts=1)))
    await phase(runtime, Phase.SNAPSHOTTING, 2)
    assert asyncio.get_running_loop().time() - before < 1
    await end(runtime, running)


@pytest.mark.parametrize("halves", [[Half.WHOLE], [Half.SINK, Half.SOURCE]], ids=["whole", "halves"])
def test_removing_drops_slot_and_checkpoint(halves: list[Half]) -> None:
    """`run: removed` lets go of what the source and the destination hold, and says so in every half."""

    async def scenario() -> None:
        world = World()
        world.origin.commit([transaction(10, [1])])
        runtimes = [world.runtime(half=half) for half in halves]
        running = [asyncio.create_task(runtime.run()) for runtime in runtimes]
        await world.until_caught_up()
        for runtime, half in zip(runtimes, halves, strict=True):
            runtime.assign(assignment(document(TABLES, generation=2, run=RunState.REMOVED), half))
        for runtime in runtimes:
            await phase(runtime, Phase.REMOVED, 2)
        assert world.origin.slots == {}
        held = world.destination.checkpoints.get(PIPELINE)
        assert held is None or held.source is None
        assert world.rows() == {"1": "x"}
        for runtime, task in zip(runtimes, running, strict=True):
            await end(runtime, task)

    virtual.run(scenario())


@lived
async def test_what_waits_is_joined_and_what_does_not_goes_alone() -> None:
    """While the destination is busy small transactions pile up and go as one; when it is idle each goes at once."""
    gate = Gate("sink.apply")
    world = World(point=gate)
    world.origin.commit([transaction(10, [1])])
    runtime = world.runtime()
    running = asyncio.create_task(runtime.run())
    await gate.reached.wait()
    world.origin.commit(*([transaction(lsn, [lsn])] for lsn in range(20, 520, 10)))
    await asyncio.sleep(1)
    gate.opened.set()
    await world.until_caught_up()
    assert [change.transactions for change in world.applied] == [1, 50]
    world.origin.commit([transaction(600, [5])])
    await world.until_caught_up()
    assert world.applied[-1].transactions == 1
    await end(runtime, running)


@lived
async def test_lag_is_zero_when_caught_up_and_grows_with_what_waits() -> None:
    """Lag is the age of the oldest transaction that is not at the destination, and not the time since the last one."""
    gate = Gate("sink.apply")
    world = World(point=gate)
    runtime = world.runtime()
    running = asyncio.create_task(runtime.run())
    now = int(virtual.wall() * 1e6)
    world.origin.commit(*([_committed_at(now, lsn)] for lsn in range(10, 60, 10)))
    await gate.reached.wait()
    await asyncio.sleep(7)
    telemetry = runtime.observation.status().telemetry
    assert 6.9 < telemetry.lag_seconds < 7.2
    assert telemetry.queue_bytes > 0
    gate.opened.set()
    await world.until_caught_up()
    await asyncio.sleep(100)
    telemetry = runtime.observation.status().telemetry
    assert telemetry.lag_seconds == 0
    assert telemetry.queue_bytes == 0
    assert (telemetry.rows_total, telemetry.transactions_total) == (5, 5)
    assert telemetry.latency_buckets["5.0"] == 0
    assert telemetry.latency_buckets["10.0"] == telemetry.latency_buckets["+Inf"] == 5
    await end(runtime, running)


def _committed_at(microseconds: int, lsn: int) -> ChangeSet:
    return dataclasses.replace(transaction(lsn, [lsn]), commit_time=microseconds)


@lived
async def test_the_queue_is_bounded_by_bytes_and_by_count() -> None:
    """A producer waits at either bound, and a set larger than the bound still passes when nothing else waits."""
    change = transaction(10, [1, 2, 3])
    queue = ChangeQueue(QueueLimits(bytes_max=change.byte_size * 2, sets_max=3, join_rows_max=1))
    await queue.put(change)
    await queue.put(change)
    third = asyncio.create_task(queue.put(change))
    await asyncio.sleep(1)
    assert not third.done()
    assert queue.byte_size == change.byte_size * 2
    await queue.take()
    await third
    small = ChangeQueue(QueueLimits(bytes_max=1))
    async with asyncio.timeout(1):
        await small.put(change)
    assert len(await small.take()) == 1


@lived
async def test_a_failure_of_the_source_comes_after_what_it_gave() -> None:
    """Sets that were read before the source failed are still delivered, so even a failing source makes progress."""
    world = World(point=Failing("source.changes", lambda: RetryLater(Code.SOURCE_UNREACHABLE, "cut"), times=0))
    world.origin.commit([transaction(10, [1])], [transaction(20, [2])])
    reads = 0

    async def cut(point: str) -> None:
        nonlocal reads
        if point == "source.changes":
            reads += 1
            if reads == 3:
                raise RetryLater(Code.SOURCE_UNREACHABLE, "cut")

    world.point = cut
    runtime = world.runtime()
    running = asyncio.create_task(runtime.run())
    await world.until_caught_up()
    world.origin.commit([transaction(30, [3])])
    await phase(runtime, Phase.RETRYING)
    assert world.rows().keys() == {"1", "2"}
    await world.until_caught_up()
    await end(runtime, running)


@lived
async def test_a_cancellation_that_gets_lost_ends_nothing_in_a_hang() -> None:
    """A library that swallows a cancellation once does not keep a session from ending."""
    world = World()
    lost = 0

    async def deaf(point: str) -> None:
        nonlocal lost
        if point == "source.changes" and len(world.applied) == 1:
            try:
                await asyncio.sleep(1e9)
            except asyncio.CancelledError:
                lost += 1
                if lost > 1:
                    raise

    world.point = deaf
    world.origin.commit([transaction(10, [1])])
    runtime = world.runtime()
    running = asyncio.create_task(runtime.run())
    await world.until_caught_up()
    world.origin.commit([transaction(20, [2])], [transaction(30, [3])])
    await asyncio.sleep(1)
    await end(runtime, running)
    assert lost == 2


async def test_of_two_failures_at_the_same_moment_one_is_told_and_none_is_left_unheard() -> None:
    """Both halves of a session may find at once that it was replaced; nothing of it is printed when it is forgotten."""
    unheard: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unheard.append(context))

    async def fail(late: bool) -> None:
        try:
            await asyncio.sleep(0 if not late else 60)
        finally:
            raise SessionReplaced("replaced")

    with pytest.raises(SessionReplaced):
        await run_until_first(fail(False), fail(False), fail(True))
    gc.collect()
    await asyncio.sleep(0)
    assert unheard == []
