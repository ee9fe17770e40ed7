"""Hub, leaf and streams die in every order: facts arrive once each, documents converge, nobody has to help."""

import asyncio
import shutil
from datetime import UTC, datetime
from typing import Any

import nats.errors
import pytest
from tests.channel.conftest import ControlPlane, TestNode
from tests.channel.servers import Leaf, until

from contracts import v2
from contracts.codes import Code

pytestmark = pytest.mark.system


def _fact(number: int) -> v2.ErrorReport:
    return v2.ErrorReport(code=Code.WORKER_EXITED, at=datetime.now(UTC), count=1, pipeline=f"pipe-{number}")


def _taken(control: ControlPlane) -> dict[str, int]:
    return dict(control.rows("SELECT pipeline, count FROM node_errors WHERE code = 'worker_exited'"))


async def _send(node: TestNode, numbers: range) -> None:
    for number in numbers:
        await node.link.send_fact(_fact(number))


async def test_facts_made_during_an_outage_arrive_once_each(control: ControlPlane, make_node: Any) -> None:
    """300 facts made while the hub is killed arrive once each after its return, and none is left behind."""
    node = await make_node()
    await until(lambda: node.link.synced_at is not None)
    control.hub.kill()
    await _send(node, range(300))
    assert node.link.facts_waiting == 300
    control.hub.start()
    await until(lambda: node.link.facts_waiting == 0, 30)
    assert _taken(control) == {f"pipe-{number}": 1 for number in range(300)}


async def test_facts_survive_kills_and_the_loss_of_every_stream(
    control: ControlPlane, make_node: Any, leaf: Leaf
) -> None:
    """Kill the leaf, restart the node, delete all of CTL's streams with facts in them: each still arrives once."""
    node = await make_node()
    await until(lambda: node.link.synced_at is not None)
    control.hub.kill()
    await _send(node, range(20))
    leaf.kill()
    await _send(node, range(20, 40))
    await node.stop()
    leaf.start()
    await node.start()
    await _send(node, range(40, 60))
    await until(lambda: node.link.leaf is not None)
    await _until_in_stream(node, 60)
    context = node.link.leaf.jetstream()
    for stream in [info.config.name for info in await context.streams_info()]:
        await context.delete_stream(stream)
    control.hub.start()
    await until(lambda: node.link.facts_waiting == 0, 30)
    assert _taken(control) == {f"pipe-{number}": 1 for number in range(60)}
    control.put_pipeline("orders")
    await until(lambda: node.generations() == {"orders": 1})


async def _until_in_stream(node: TestNode, count: int) -> None:
    for _ in range(500):
        try:
            info = await node.link.leaf.jetstream().stream_info("facts")
            if info.state.messages >= count:
                return
        except (nats.errors.Error, AttributeError):
            pass
        await asyncio.sleep(0.02)
    raise AssertionError("the facts did not come into the stream")


async def test_a_leaf_whose_folder_is_lost_starts_over(control: ControlPlane, make_node: Any, leaf: Leaf) -> None:
    """JetStream's folder deleted under a killed leaf: the node makes what it needs again and converges."""
    control.put_pipeline("orders")
    node = await make_node()
    await until(lambda: node.generations() == {"orders": 1})
    leaf.kill()
    shutil.rmtree(leaf.folder / "jetstream")
    await _send(node, range(5))
    control.pause("orders")
    leaf.start()
    await until(lambda: node.generations() == {"orders": 2}, 30)
    await until(lambda: node.link.facts_waiting == 0, 30)
    assert len(_taken(control)) == 5


async def test_a_hub_that_lost_its_folder_gets_all_claims_again(
    control: ControlPlane, make_node: Any, leaf: Leaf
) -> None:
    """A wiped resolver comes back with system and control only; the control plane brings the tenants, revoked or not."""
    node = await make_node()
    await until(lambda: node.link.synced_at is not None)
    control.create_tenant("second")
    control.hub.kill()
    shutil.rmtree(control.hub.folder / "claims")
    synced = node.link.synced_at
    control.hub.start()
    await until(lambda: control.channel.ready, 20)
    while node.link.synced_at == synced:
        node.link._look_again.set()
        await asyncio.sleep(0.05)
    assert len(list((control.hub.folder / "claims").glob("*.jwt"))) >= 2


async def test_a_deleted_data_planes_leaf_is_cut(control: ControlPlane, make_node: Any, leaf: Leaf) -> None:
    """Deleting a data plane revokes its leaf at the hub, at once and for good."""
    from controlplane.commands import WriteOptions, data_planes

    node = await make_node()
    await until(lambda: node.link.synced_at is not None)
    # The hub may have closed a connection before: when it took the claims that let this leaf in.
    cuts = leaf.log.count("Leafnode connection closed")
    control.run(data_planes.delete("local", WriteOptions()))
    await until(lambda: leaf.log.count("Leafnode connection closed") > cuts)
    with pytest.raises((nats.errors.NoRespondersError, nats.errors.TimeoutError)):
        await node.link.leaf.request("up.v2.local.node-1.sync", b"", timeout=0.5)


async def test_more_facts_than_the_bound_collapse_into_one(control: ControlPlane, make_node: Any, leaf: Leaf) -> None:
    """Past the bound the waiting facts become one that says so, and a heartbeat tells how things stand."""
    control.put_pipeline("orders")
    node = await make_node()
    await until(lambda: node.generations() == {"orders": 1})
    node.statuses = [node.status("orders", 1)]
    control.hub.kill()
    node.link._outbox._facts_max = 50
    await _send(node, range(51))
    assert node.link.facts_waiting == 2
    control.hub.start()
    await until(lambda: node.link.facts_waiting == 0, 30)
    rows = control.rows("SELECT count FROM node_errors WHERE code = 'reports_overflowed'")
    assert rows == [(50,)]
    await until(lambda: any(status.pipeline == "orders" for _, _, status in control.statuses))


async def test_another_node_forwards_for_one_that_died(control: ControlPlane, make_node: Any) -> None:
    """Facts that a dead node left in the leaf are carried up by a living one, as the dead one signed them."""
    node = await make_node()
    other = await make_node("node-2")
    await until(lambda: node.link.synced_at is not None and other.link.synced_at is not None)
    control.hub.kill()
    await _send(node, range(10))
    await _until_in_stream(node, 10)
    await node.stop()
    control.hub.start()
    await until(lambda: control.channel.ready, 20)
    while len(_taken(control)) < 10:
        other.link._facts_due.set()  # what the link does by itself every 30 s
        await asyncio.sleep(0.2)
    assert control.rows("SELECT DISTINCT node FROM node_errors") == [("node-1",)]
