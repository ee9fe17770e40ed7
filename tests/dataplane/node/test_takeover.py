"""Who owns a pipeline when nodes cannot ask: cut off, frozen, killed and booted, with real agents and no control plane."""

import os
import signal
from collections.abc import Iterator

import psutil
import pytest
from tests.chaos.proxy import Network
from tests.dataplane.node.documents import pipeline
from tests.dataplane.node.plane import Node, Plane, eventually
from tests.dataplane.node.shop import Shop, worker_logs

pytestmark = pytest.mark.system


@pytest.fixture
def network() -> Iterator[Network]:
    made = Network()
    yield made
    made.close()


def owner(shop: Shop) -> tuple[object, ...]:
    """Epoch and node of whoever claimed the pipeline last."""
    ((epoch, name),) = shop.sink.execute("SELECT epoch, owner FROM pointsman.checkpoints")
    return epoch, str(name).partition("/")[0]


async def two_nodes(plane: Plane, shop: Shop, *, leaf_port: int | None = None) -> tuple[Node, Node]:
    """The first carries rows, and each knows of the other."""
    first, second = plane.node("node-1", leaf_port=leaf_port), plane.node("node-2")
    first.start()
    await shop.publish(pipeline())
    await shop.settles(first)
    second.start()
    told = first.folder / "run" / "orders-whole.assignment.json"
    await eventually(lambda: '"shared":true' in told.read_text())
    await eventually(lambda: second.metrics().get("pointsman_nodes_seen") == 2)
    assert second.workers() == {}
    return first, second


async def test_a_node_cut_off_from_the_leaf_yields_to_the_one_that_took_over(
    plane: Plane, shop: Shop, network: Network
) -> None:
    """It still reaches both databases, finds that another has claimed the pipeline, and gives up instead of fighting."""
    way = network.proxy(plane.leaf.port)
    first, second = await two_nodes(plane, shop, leaf_port=way.port)
    way.stall()
    await eventually(lambda: list(second.workers()) == ["orders-whole"], why=lambda: second.log[-3000:])
    await eventually(lambda: second.phase("orders") == "streaming", why=lambda: worker_logs(second))
    claimed = owner(shop)
    shop.insert(2)
    await eventually(lambda: first.workers() == {}, why=lambda: first.log[-3000:] + worker_logs(first))
    await shop.settles(second)
    assert owner(shop) == claimed == (claimed[0], "node-2")
    assert second.metrics()['pointsman_worker_restarts_total{pipeline="orders"}'] == 0

    way.heal()
    await eventually(lambda: first.metrics().get("pointsman_leaf_connected") == 1)
    shop.insert(3)
    await shop.settles(second)
    assert first.workers() == {}
    assert owner(shop) == claimed


async def test_a_frozen_owner_that_wakes_up_writes_nothing_and_yields(plane: Plane, shop: Shop) -> None:
    """Agent and worker are stopped for longer than a lease: awake again, they find the fence raised and end."""
    first, second = await two_nodes(plane, shop)
    assert first.process is not None
    frozen = [psutil.Process(pid) for pid in (first.process.pid, *first.workers().values())]
    for each in frozen:
        each.suspend()
    shop.insert(2)
    await eventually(lambda: second.phase("orders") == "streaming", why=lambda: worker_logs(second))
    await shop.settles(second)
    claimed = owner(shop)
    for each in reversed(frozen):
        each.resume()
    await eventually(lambda: first.workers() == {}, why=lambda: first.log[-3000:] + worker_logs(first))
    shop.insert(3)
    await shop.settles(second)
    assert owner(shop) == claimed == (claimed[0], "node-2")
    assert second.metrics()['pointsman_worker_restarts_total{pipeline="orders"}'] == 0


async def test_without_the_leaf_each_node_keeps_its_work_through_kills_and_boots(plane: Plane, shop: Shop) -> None:
    """Nobody can take a lease, so the owner's new worker claims again, after kill -9 as after a boot of the node."""
    first, second = await two_nodes(plane, shop)
    plane.leaf.kill()
    await eventually(lambda: first.metrics().get("pointsman_leaf_connected") == 0)
    (killed,) = first.workers().values()
    os.kill(killed, signal.SIGKILL)
    shop.insert(2)
    await shop.settles(first)
    assert killed not in first.workers().values()

    first.kill()
    assert first.stop_workers() == 0
    shop.insert(3)
    first.start()
    await shop.settles(first)
    assert second.workers() == {}


async def test_a_worker_that_lost_its_claim_gets_it_back_while_the_lease_is_its_nodes(plane: Plane, shop: Shop) -> None:
    """Somebody claimed the pipeline without the lease and went: the agent asks the leaf and starts the worker afresh."""
    first, second = await two_nodes(plane, shop)
    (before,) = first.workers().values()
    shop.sink.execute("UPDATE pointsman.checkpoints SET epoch = nextval('pointsman.epochs'), owner = 'node-9/a'")
    shop.insert(2)
    await shop.settles(first)
    assert before not in first.workers().values()
    assert second.workers() == {}


async def test_three_nodes_share_and_take_over_the_work_of_a_dead_one(plane: Plane, shop: Shop) -> None:
    """Each runs one of three pipelines; one is killed with its worker, and within 15 s its rows flow through another."""
    names = ["orders", "bills", "visits"]
    for name in names[1:]:
        shop.source.execute(f"CREATE TABLE public.{name} (id int PRIMARY KEY)")
    nodes = [plane.node(f"node-{number}") for number in (1, 2, 3)]
    for node in nodes:
        node.start()
    await shop.publish()
    await eventually(lambda: all(node.metrics().get("pointsman_nodes_seen") == 3 for node in nodes))
    await shop.publish(*(pipeline(name, tables=[f"public.{name}"]) for name in names))
    await eventually(
        lambda: sorted(name for node in nodes for name in node.workers()) == sorted(f"{name}-whole" for name in names)
    )
    assert [len(node.workers()) for node in nodes] == [1, 1, 1]
    await shop.settles(nodes[0])

    dead = next(node for node in nodes if "orders-whole" in node.workers())
    dead.kill()
    for pid in dead.workers().values():
        os.kill(pid, signal.SIGKILL)
    shop.insert(2)
    others = [node for node in nodes if node is not dead]
    await eventually(shop.equal, seconds=15.0, why=lambda: "".join(node.log[-2000:] for node in others))
    assert sorted(len(node.workers()) for node in others) == [1, 2]
