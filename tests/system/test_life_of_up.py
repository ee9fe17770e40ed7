"""`pointsman up`: stopped, started, killed and widened, and nothing is lost."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from tests.system.databases import Databases, Pair
from tests.system.stack import Stack, eventually

pytestmark = [pytest.mark.system, pytest.mark.timeout(240)]

COMPONENTS = {"postgres", "hub", "control-plane", "leaf", "node-1"}


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    """A stack of this module's own, with two nodes: it is stopped and killed."""
    path = Path(tempfile.mkdtemp(prefix="pm-life-"))
    running = Stack(path / "up", "--nodes", "2")
    try:
        running.start()
        yield running
    finally:
        running.end()
        shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="module")
def pair(stack: Stack, databases: Databases) -> Pair:
    """A pipeline that is ready."""
    made = databases.pair("life", stack.secrets)
    made.source.execute("CREATE TABLE rows (id int PRIMARY KEY)")
    stack.apply(made.manifest("public.rows"))
    stack.wait(made.name)
    return made


def flows(pair: Pair, number: int, *, within: float = 20) -> None:
    pair.source.execute("INSERT INTO rows VALUES (%s)", number)
    eventually(lambda: pair.equal("rows"), within=within, what=f"row {number}")


def test_every_component_is_a_process_of_its_own(stack: Stack, pair: Pair) -> None:
    """pointsman.json names each with its pid and its log, and `ps` says the same."""
    components = stack.components
    assert set(components) == COMPONENTS | {"node-2"}
    assert len({each["pid"] for each in components.values()}) == len(components)
    for each in components.values():
        assert psutil.pid_exists(each["pid"])
        assert Path(each["log"]).exists()
    listed = stack.cli("ps", "-o", "json").json
    listed = listed["items"] if isinstance(listed, dict) else listed
    pids = {each["name"]: each["pid"] for each in listed}
    assert {name: pids[name] for name in components} == {name: each["pid"] for name, each in components.items()}


def test_two_nodes_never_run_one_pipeline_twice(stack: Stack, pair: Pair) -> None:
    """One of the nodes holds it; both are alive."""
    with stack.api() as api:
        nodes = api.get("/nodes").json()["items"]
    assert {each["name"] for each in nodes} == {"node-1", "node-2"}
    assert len(stack.workers(pair.name)) == 1
    flows(pair, 1)


def test_another_node_takes_over_a_dead_ones_work(stack: Stack, pair: Pair) -> None:
    """The node that ran the pipeline, its worker and the control plane die at once; the other node goes on alone."""
    holder = stack.pipeline(pair.name)["status"]["node"]
    # Without `up` nobody starts again what is killed now.
    stack.kill()
    stack.kill_component("control-plane")
    stack.kill_component(holder)
    for worker in stack.workers(pair.name):
        worker.kill()
    flows(pair, 2, within=30)
    stack.start()
    stack.wait(pair.name)
    # The control plane was away as well: until it hears of the nodes again, it shows what it heard last.
    eventually(
        lambda: stack.pipeline(pair.name)["status"]["node"] not in (None, holder),
        within=60,
        what="the status names the other node",
    )
    stack.wait(pair.name)
    flows(pair, 3)


def test_a_stop_ends_every_process_and_a_start_brings_everything_back(stack: Stack, pair: Pair) -> None:
    """After SIGTERM nothing of the folder runs; after the next `up` rows that were written meanwhile arrive."""
    generation = stack.pipeline(pair.name)["generation"]
    assert stack.stop() == 0
    assert stack.processes() == []
    pair.source.execute("INSERT INTO rows VALUES (10)")
    stack.start()
    stack.wait(pair.name)
    flows(pair, 11)
    assert stack.pipeline(pair.name)["generation"] == generation


def test_a_killed_up_can_be_started_again(stack: Stack, pair: Pair) -> None:
    """After kill -9 of `up` itself the next one takes over whatever is left, and rows flow."""
    stack.kill()
    pair.source.execute("INSERT INTO rows VALUES (20)")
    stack.start()
    stack.wait(pair.name)
    flows(pair, 21)
    assert set(stack.components) == COMPONENTS | {"node-2"}
    assert len(stack.workers(pair.name)) == 1


def test_a_second_up_in_the_same_folder_is_refused(stack: Stack) -> None:
    """It says so, and the first goes on."""
    refused = stack.cli("up", "--dir", str(stack.folder), expect=None)
    assert refused.code not in (0, 64)
    assert "already_running" in refused.err
    assert psutil.pid_exists(stack.pid("hub"))


def test_an_unknown_component_is_refused(stack: Stack) -> None:
    """With a stable code."""
    for verb in ("stop", "start"):
        assert "unknown_component" in stack.cli(verb, "nonsense", expect=None).err


def test_the_audit_log_verifies_after_all_this(stack: Stack) -> None:
    """What happened can be proven, also after stops and kills."""
    stack.cli("audit", "verify")
