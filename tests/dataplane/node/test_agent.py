"""A real agent with a real leaf, real workers and real databases, and no control plane at all."""

import os
import signal

import pytest
from msgspec import structs
from tests.dataplane.node.documents import pipeline
from tests.dataplane.node.plane import Plane, eventually, rows
from tests.dataplane.node.shop import QUERY, Shop, worker_logs

from contracts.v2 import BufferType, RunState
from dataplane import policy


async def test_rows_flow_and_go_on_through_a_restart_of_the_agent(plane: Plane, shop: Shop) -> None:
    """Documents arrive, rows flow; the agent is restarted and killed, and the worker stays the same process."""
    node = plane.node()
    node.start()
    await shop.publish(pipeline())
    await shop.settles(node)
    await eventually(lambda: node.phase("orders") == "streaming")
    workers = node.workers()

    assert node.stop() == 0
    shop.insert(2)
    await shop.settles(node)
    assert node.workers() == workers

    node.start()
    await eventually(lambda: node.phase("orders") == "streaming", why=lambda: node.log[-3000:])
    node.kill()
    shop.insert(3)
    await shop.settles(node)
    node.start()
    await eventually(lambda: node.phase("orders") == "streaming", why=lambda: node.log[-3000:])
    assert node.workers() == workers
    assert node.metrics()['pointsman_rows_total{pipeline="orders"}'] >= 3


async def test_a_node_boots_from_its_disk_without_leaf_and_hub(plane: Plane, shop: Shop) -> None:
    """With the leaf dead, an agent that starts anew runs what it ran before, from its own disk."""
    node = plane.node()
    node.start()
    await shop.publish(pipeline())
    await shop.settles(node)
    plane.leaf.kill()
    node.kill()
    assert node.stop_workers() == 0
    assert node.workers() == {}
    shop.insert(2)

    node.start()
    await shop.settles(node)
    assert list(node.workers()) == ["orders-whole"]
    assert node.metrics()["pointsman_leaf_connected"] == 0


async def test_pausing_resuming_and_forgetting(plane: Plane, shop: Shop) -> None:
    """Paused keeps the slot and moves nothing; resumed catches up; not named any more stops and keeps the slot."""
    node = plane.node()
    node.start()
    await shop.publish(pipeline())
    await shop.settles(node)
    await shop.publish(pipeline(generation=2, run=RunState.PAUSED))
    await eventually(lambda: node.phase("orders") == "paused")
    shop.insert(2)
    assert not shop.equal()
    assert shop.slots() == 1

    await shop.publish(pipeline(generation=3))
    await shop.settles(node)

    await shop.publish(without=("orders",))
    await eventually(lambda: node.workers() == {})
    assert shop.slots() == 1


async def test_removing_drops_the_slot(plane: Plane, shop: Shop) -> None:
    """Removed is asked for explicitly; then nothing is left at the source, and no process runs."""
    node = plane.node()
    node.start()
    await shop.publish(pipeline())
    await shop.settles(node)
    await shop.publish(pipeline(generation=2, run=RunState.REMOVED))
    await eventually(lambda: node.phase("orders") == "removed", why=lambda: node.log[-2000:] + worker_logs(node))
    await eventually(lambda: node.workers() == {})
    assert shop.slots() == 0


async def test_a_buffer_makes_two_halves_and_changing_its_type_ends_the_others_first(plane: Plane, shop: Shop) -> None:
    """direct → jetstream → removed: rows go on from where they were, and nothing is left."""
    node = plane.node()
    node.start()
    await shop.publish(pipeline())
    await shop.settles(node)
    await shop.publish(pipeline(generation=2, buffer=BufferType.JETSTREAM))
    shop.insert(2)
    await shop.settles(node)
    await eventually(lambda: node.phase("orders") == "streaming", why=lambda: node.log[-2000:] + worker_logs(node))
    assert sorted(node.workers()) == ["orders-sink", "orders-source"]
    await shop.publish(pipeline(generation=3, buffer=BufferType.JETSTREAM, run=RunState.REMOVED))
    await eventually(lambda: node.phase("orders") == "removed", why=lambda: node.log[-2000:] + worker_logs(node))
    await eventually(lambda: node.workers() == {})
    assert shop.slots() == 0


@pytest.mark.system
async def test_another_node_takes_over_from_a_dead_one(plane: Plane, shop: Shop) -> None:
    """The node and its workers die; within fifteen seconds the rows flow through the other node."""
    first, second = plane.node("node-1"), plane.node("node-2")
    first.start()
    await shop.publish(pipeline())
    await shop.settles(first)
    second.start()
    await eventually(lambda: second.metrics().get("pointsman_nodes_seen") == 2)
    assert second.workers() == {}

    first.kill()
    for pid in first.workers().values():
        os.kill(pid, signal.SIGKILL)
    shop.insert(2)
    await eventually(shop.equal, seconds=15.0, why=lambda: second.log[-3000:] + worker_logs(second))
    assert list(second.workers()) == ["orders-whole"]


@pytest.mark.system
async def test_a_worker_whose_agent_is_dead_yields_to_the_node_that_takes_over(plane: Plane, shop: Shop) -> None:
    """Only the agent dies: another node takes over, and the orphan ends when it is fenced instead of fighting."""
    first, second = plane.node("node-1"), plane.node("node-2")
    first.start()
    await shop.publish(pipeline())
    await shop.settles(first)
    second.start()
    await eventually(lambda: all(each.metrics().get("pointsman_nodes_seen") == 2 for each in (first, second)))
    told = first.folder / "run" / "orders-whole.assignment.json"
    await eventually(lambda: '"shared":true' in told.read_text())
    first.kill()
    await eventually(
        lambda: second.phase("orders") == "streaming", why=lambda: second.log[-3000:] + worker_logs(second)
    )
    shop.insert(2)
    await eventually(lambda: first.workers() == {}, why=lambda: worker_logs(first))
    await shop.settles(second)
    assert second.metrics()['pointsman_worker_restarts_total{pipeline="orders"}'] == 0


async def test_ctrl_c_ends_the_workers_too(plane: Plane, shop: Shop) -> None:
    """SIGINT leaves nothing running; a second agent over a folder in use is refused."""
    node = plane.node()
    node.start()
    await shop.publish(pipeline())
    await shop.settles(node)
    refused = plane.node("node-1-again")
    refused.folder = node.folder
    refused.start()
    assert refused.process is not None
    assert refused.process.wait(20) == 75
    assert node.stop(signal.SIGINT) == 0
    assert node.workers() == {}


async def test_what_the_policy_does_not_allow_stops_and_goes_on_once_it_does(plane: Plane, shop: Shop) -> None:
    """Rules are taken away under a running pipeline: no row flows, nothing is lost, and given back it goes on."""
    node = plane.node()
    node.start()
    await shop.publish(pipeline())
    await shop.settles(node)
    for refused in (policy.PRODUCTION, "not a policy", policy.LOCAL + '[[mask]]\ncolumns = ["note"]\n'):
        (node.folder / policy.FILE_NAME).write_text(refused)
        await eventually(lambda: node.phase("orders") == "degraded", why=lambda: node.log[-3000:])
        before = rows(shop.sink.conninfo, QUERY)
        shop.insert(len(before) + 1)
        assert rows(shop.sink.conninfo, QUERY) == before
        (node.folder / policy.FILE_NAME).write_text(policy.LOCAL)
        await shop.settles(node)
    assert shop.slots() == 1


async def test_a_pipeline_to_another_host_never_starts(plane: Plane, shop: Shop) -> None:
    """A control plane that points a destination elsewhere gets a code back, and no worker ever connects there."""
    node = plane.node()
    node.start()
    shop.connections[1] = structs.replace(
        shop.connections[1], config=structs.replace(shop.connections[1].config, host="collector.evil.example")
    )
    await shop.publish(pipeline())
    await eventually(lambda: node.phase("orders") == "degraded", why=lambda: node.log[-3000:])
    assert node.workers() == {}
    assert shop.slots() == 0
    assert "collector.evil.example" in node.log
