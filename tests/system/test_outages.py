"""What stops, and what goes on: control plane, hub, leaf, node and worker gone, one after the other and together."""

import asyncio
import itertools
import time
from collections.abc import Callable, Iterator

import httpx
import pytest
from tests.system.databases import Pair
from tests.system.leaf import delete_everything, messages_held
from tests.system.stack import Stack, eventually

pytestmark = [pytest.mark.system, pytest.mark.timeout(240)]

# From the kill of a worker or a node until rows arrive again. A source holds a killed reader's slot for a moment.
RESUME_SECONDS_MAX = 15.0
_numbers = itertools.count(1)


class Flow:
    """A pipeline that is ready, and one row after the other through it."""

    def __init__(self, stack: Stack, pair: Pair) -> None:
        self.stack = stack
        self.pair = pair
        self.name = pair.name

    def row(self, *, within: float = RESUME_SECONDS_MAX) -> float:
        """Commit a row at the source and wait until it is at the destination. Return the seconds that it took."""
        number = next(_numbers)
        begin = time.monotonic()
        self.pair.source.execute("INSERT INTO rows VALUES (%s, 'row')", number)
        eventually(
            lambda: self.pair.sink.execute("SELECT 1 FROM rows WHERE id = %s", number),
            within=within,
            what=f"row {number} through {self.name}",
            every=0.05,
        )
        return time.monotonic() - begin

    def equal(self) -> None:
        eventually(lambda: self.pair.equal("rows"), within=30, what="both sides equal")

    def status(self) -> dict[str, object]:
        found: dict[str, object] = self.stack.pipeline(self.name)["status"]
        return found


def make_flow(stack: Stack, make_pair: Callable[[str], Pair], buffer: str) -> Flow:
    pair = make_pair(f"out-{buffer}")
    pair.source.execute("CREATE TABLE rows (id int PRIMARY KEY, note text)")
    stack.apply(pair.manifest("public.rows", buffer=buffer))
    stack.wait(pair.name)
    return Flow(stack, pair)


@pytest.fixture(scope="module")
def direct(stack: Stack, make_pair: Callable[[str], Pair]) -> Flow:
    return make_flow(stack, make_pair, "direct")


@pytest.fixture(scope="module")
def buffered(stack: Stack, make_pair: Callable[[str], Pair]) -> Flow:
    return make_flow(stack, make_pair, "jetstream")


@pytest.fixture(params=["direct", "buffered"])
def flow(request: pytest.FixtureRequest) -> Flow:
    """Either pipeline of this module."""
    found: Flow = request.getfixturevalue(request.param)
    return found


@pytest.fixture(autouse=True)
def everything_runs_again(stack: Stack, direct: Flow, buffered: Flow) -> Iterator[None]:
    """Start whatever a test stopped, and end each test with both pipelines equal."""
    yield
    for component, found in stack.components.items():
        if found["state"] != "running":
            stack.cli("start", component)
    for each in (direct, buffered):
        each.equal()


def test_a_killed_worker_resumes_in_seconds(flow: Flow) -> None:
    """After kill -9 the next worker goes on where the destination's checkpoint says."""
    flow.row()
    killed = flow.stack.kill_worker(flow.name)
    flow.row()
    assert killed not in [worker.pid for worker in flow.stack.workers()]
    flow.equal()


def test_a_killed_node_leaves_its_workers_alone(flow: Flow) -> None:
    """Rows flow while there is no agent; a new agent takes the running workers over instead of starting them again."""
    before = {worker.pid for worker in flow.stack.workers(flow.name)}
    flow.stack.kill_component("node-1")
    flow.row()
    flow.stack.cli("start", "node-1")
    flow.stack.wait(flow.name)
    flow.row()
    assert {worker.pid for worker in flow.stack.workers(flow.name)} == before


def test_rows_flow_without_control_plane_and_hub(stack: Stack, direct: Flow, buffered: Flow) -> None:
    """A killed worker and a restarted node come back from the customer's side alone; later the reports catch up."""
    stack.cli("stop", "control-plane")
    stack.cli("stop", "hub")
    with pytest.raises(httpx.HTTPError):
        httpx.get(stack.state["api"]["url"] + "/livez", timeout=2)
    for each in (direct, buffered):
        each.row()
        stack.kill_worker(each.name)
        each.row()
    stack.cli("stop", "node-1")
    stack.cli("start", "node-1")
    for each in (direct, buffered):
        each.row()
    cut = time.time()
    stack.cli("start", "hub")
    stack.cli("start", "control-plane")
    for each in (direct, buffered):
        stack.wait(each.name)

    def caught_up() -> bool:
        with stack.api() as api:
            node = api.get("/nodes/node-1").json()
        seen = [
            each for each in stack.events(f"/pipelines/{direct.name}/events") if each["type"].startswith("Placement")
        ]
        return bool(node["status"]["ready"]) and bool(seen) and time.time() > cut

    eventually(caught_up, within=60, what="the node's reports after the outage")


def test_a_node_boots_while_leaf_hub_and_control_plane_are_away(stack: Stack, direct: Flow) -> None:
    """From its own disk alone a node runs its `direct` pipelines, and survives a killed worker."""
    for component in ("control-plane", "hub", "leaf", "node-1"):
        stack.cli("stop", component)
    stack.cli("start", "node-1")
    direct.row(within=30)
    stack.kill_worker(direct.name)
    direct.row(within=30)
    for component in ("leaf", "hub", "control-plane"):
        stack.cli("start", component)
    stack.wait(direct.name)


def test_a_killed_leaf_costs_no_row(stack: Stack, direct: Flow, buffered: Flow) -> None:
    """`direct` goes on without the leaf; `jetstream` goes on as soon as it is back."""
    stack.kill_component("leaf")
    direct.row()
    buffered.pair.source.execute("INSERT INTO rows VALUES (%s, 'while the leaf was away')", next(_numbers))
    stack.cli("start", "leaf")
    buffered.row(within=40)
    direct.row()


def test_a_killed_hub_and_control_plane_come_back_to_the_same_state(stack: Stack, direct: Flow) -> None:
    """Nothing is kept where it could be lost: after kill -9 of both, a change still reaches the node."""
    stack.kill_component("hub")
    stack.kill_component("control-plane")
    stack.cli("start", "hub")
    stack.cli("start", "control-plane")
    stack.cli("pause", "pipeline", direct.name)
    stack.wait(direct.name, "paused")
    stack.cli("resume", "pipeline", direct.name)
    stack.wait(direct.name)
    direct.row()


def test_the_control_planes_database_may_crash(stack: Stack, direct: Flow) -> None:
    """Rows flow without it, and changes are possible again once it is back."""
    stack.kill_component("postgres")
    direct.row()
    stack.cli("start", "postgres")
    eventually(
        lambda: stack.cli("restart", "pipeline", direct.name, expect=None).code == 0,
        within=40,
        what="a change after the database's return",
    )
    stack.wait(direct.name)
    direct.row()


async def test_every_stream_and_bucket_of_the_leafs_control_account_may_vanish(
    stack: Stack, direct: Flow, buffered: Flow
) -> None:
    """They are copies: deleted while running, they come back, and changes still arrive in both directions."""
    deleted = await delete_everything(stack, "CTL")
    assert deleted
    for each in (direct, buffered):
        each.row()
    stack.cli("pause", "pipeline", direct.name)
    stack.wait(direct.name, "paused")
    stack.cli("resume", "pipeline", direct.name)
    stack.wait(direct.name)
    await delete_everything(stack, "CTL")
    stack.cli("stop", "node-1")
    stack.cli("start", "node-1")
    stack.cli("restart", "pipeline", buffered.name)
    stack.wait(buffered.name)
    for each in (direct, buffered):
        each.row()


async def test_a_lost_buffer_means_a_replay_and_not_a_loss(stack: Stack, buffered: Flow) -> None:
    """With `confirm: sink` the source keeps what the sink has not; a buffer that is deleted full is filled again."""
    with buffered.pair.sink.connect() as blocker:
        blocker.execute("LOCK TABLE rows IN ACCESS EXCLUSIVE MODE")
        buffered.pair.source.execute("INSERT INTO rows SELECT n, 'many' FROM generate_series(100001, 105000) n")
        for _ in range(200):
            if await messages_held(stack, "DATA"):
                break
            await asyncio.sleep(0.05)
        assert await messages_held(stack, "DATA")
        assert await delete_everything(stack, "DATA")
    buffered.row(within=60)
    buffered.equal()
    assert buffered.pair.sink.execute("SELECT count(*) FROM rows WHERE id BETWEEN 100001 AND 105000") == [(5000,)]


def test_rows_of_an_outage_of_source_and_destination_connections_arrive(databases, flow: Flow) -> None:  # type: ignore[no-untyped-def]
    """Every connection of the pipeline cut on both sides: it connects again by itself."""
    for side in (flow.pair.source, flow.pair.sink):
        with databases.superuser() as connection:
            connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [side.name])
    flow.row(within=30)


def test_a_stopped_pipeline_is_never_green(stack: Stack, direct: Flow) -> None:
    """Without its node, a pipeline's status says so within the heartbeat's limit, with a reason."""
    stack.cli("stop", "node-1")
    for worker in stack.workers():
        worker.kill()
    status = eventually(
        lambda: (found := direct.status())["ready"] is False and found, within=75, what="ready is false", every=1
    )
    (ready,) = [each for each in status["conditions"] if each["type"] == "Ready"]
    assert ready["status"] == "False"
    assert ready["reason"] == "node_silent"
