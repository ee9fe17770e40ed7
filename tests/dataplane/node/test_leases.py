"""Leases in a real leaf: taken, kept, lost and moved, through kills of the leaf and of nodes."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import nats.errors
import pytest
from nats.aio.client import Client
from nats.js.errors import NotFoundError
from tests.dataplane.node.documents import until
from tests.dataplane.node.plane import Leaf

from dataplane.node import leases as leases_module
from dataplane.node import placement
from dataplane.node.leases import STREAM, Leases
from dataplane.node.record import Record

SIX = {f"pipeline-{number}": 1 for number in range(6)}


@pytest.fixture
def leaf(folder: Path) -> Iterator[Leaf]:
    made = Leaf(folder)
    made.start()
    yield made
    made.kill()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same behaviour in less time: the server's shortest time to live is a second."""
    monkeypatch.setattr(leases_module, "SESSION_SECONDS", 2)
    monkeypatch.setattr(leases_module, "RENEW_SECONDS", 0.4)
    monkeypatch.setattr(leases_module, "READ_SECONDS", 0.1)
    monkeypatch.setattr(placement, "RANK_WAIT_SECONDS", 0.3)
    monkeypatch.setattr(placement, "RETURN_SECONDS", 1.5)


class Node:
    """One node's leases over a connection of its own, which is made again as the link would."""

    def __init__(self, leaf: Leaf, name: str, record: Record | None = None) -> None:
        self.leaf = leaf
        self.client: Client | None = None
        self.changes = 0
        self.leases = Leases(name, contract=2, leaf=self._connected, record=record or Record(), on_change=self._changed)
        self.task = self.leases.start()
        self.linking = asyncio.create_task(self._link())

    def _connected(self) -> Client | None:
        return self.client if self.client is not None and self.client.is_connected else None

    def _changed(self) -> None:
        self.changes += 1

    async def _link(self) -> None:
        while True:
            if self._connected() is None:
                try:
                    self.client = await self.leaf.connect()
                except (nats.errors.Error, OSError):
                    self.client = None
            await asyncio.sleep(0.05)

    def want(self, wanted: dict[str, int], *, busy: frozenset[str] | None = None, ready: bool = True) -> None:
        """Want pipelines; by default everything that is ours and stays is run."""
        view = self.leases.view
        self.leases.want(wanted, busy=view.mine - view.leaving if busy is None else busy, ready=ready)

    @property
    def mine(self) -> frozenset[str]:
        return self.leases.view.mine

    async def close(self, *, release: bool = False) -> None:
        self.linking.cancel()
        await asyncio.gather(self.linking, return_exceptions=True)
        await self.leases.stop(release=release)
        if self.client is not None:
            await self.client.close()


class Nodes:
    """Nodes by name; the ones that a test leaves are closed."""

    def __init__(self, leaf: Leaf) -> None:
        self.leaf = leaf
        self.all: list[Node] = []

    def add(self, name: str, record: Record | None = None) -> Node:
        node = Node(self.leaf, name, record)
        self.all.append(node)
        return node


@pytest.fixture
async def nodes(leaf: Leaf) -> AsyncIterator[Nodes]:
    made = Nodes(leaf)
    yield made
    for node in made.all:
        await node.close()


async def share(a: Node, b: Node) -> None:
    """Let two nodes that know of each other want the same."""
    a.want({})
    b.want({})
    await until(lambda: {"a", "b"} == a.leases.view.members == b.leases.view.members)
    assert a.client is not None
    while not (  # noqa: ASYNC110 - the leaf has to be asked
        (bucket := await a.leases._read(a.client)) and all(each.ready for each in bucket.members.values())
    ):
        await asyncio.sleep(0.02)
    await asyncio.sleep(2 * leases_module.READ_SECONDS)
    a.want(SIX)
    b.want(SIX)
    await until(lambda: a.mine | b.mine == SIX.keys())


async def test_a_lone_node_holds_what_it_wants_within_a_tenth_of_a_second(nodes: Nodes) -> None:
    """Leases cost a single node no noticeable time at its start."""
    node = nodes.add("a")
    await until(lambda: node.client is not None)
    began = time.monotonic()
    node.want(SIX)
    await until(lambda: node.mine == SIX.keys())
    assert time.monotonic() - began < 0.5  # 20 ms alone; the machine may be busy
    assert node.leases.view.reachable


async def test_two_nodes_that_start_together_share_and_never_overlap(nodes: Nodes) -> None:
    """Each pipeline has one owner, and both nodes have work."""
    a, b = nodes.add("a"), nodes.add("b")
    await share(a, b)
    assert not a.mine & b.mine
    assert len(a.mine) == len(b.mine) == 3


async def test_the_work_of_a_node_that_vanished_is_taken_over(nodes: Nodes) -> None:
    """Without a farewell it takes the session's time; nobody has to do anything."""
    a, b = nodes.add("a"), nodes.add("b")
    a.want(SIX)
    await until(lambda: a.mine == SIX.keys())
    b.want(SIX)
    await until(lambda: b.leases.view.elsewhere.keys() == SIX.keys())
    await a.close()
    began = time.monotonic()
    await until(lambda: b.mine == SIX.keys())
    assert time.monotonic() - began < leases_module.SESSION_SECONDS + 2


async def test_a_node_that_says_farewell_is_replaced_at_once(nodes: Nodes) -> None:
    """Releasing needs no session to run out."""
    a, b = nodes.add("a"), nodes.add("b")
    a.want(SIX)
    await until(lambda: a.mine == SIX.keys())
    b.want(SIX)
    await until(lambda: b.leases.view.elsewhere.keys() == SIX.keys())
    await a.close(release=True)
    began = time.monotonic()
    await until(lambda: b.mine == SIX.keys())
    assert time.monotonic() - began < 1.0


async def test_a_killed_leaf_moves_nothing(nodes: Nodes, leaf: Leaf) -> None:
    """kill -9 of the leaf, longer than a session: both nodes go on, and hold the same afterwards."""
    a, b = nodes.add("a"), nodes.add("b")
    await share(a, b)
    before = a.mine, b.mine
    leaf.kill()
    await until(lambda: not a.leases.view.reachable and not b.leases.view.reachable)
    await asyncio.sleep(leases_module.SESSION_SECONDS + 0.5)
    assert (a.mine, b.mine) == before
    leaf.start()
    await until(lambda: a.leases.view.reachable and b.leases.view.reachable)
    await until(lambda: {"a", "b"} == a.leases.view.members == b.leases.view.members)
    await asyncio.sleep(placement.RETURN_SECONDS + 0.5)
    assert (a.mine, b.mine) == before


async def test_a_deleted_bucket_moves_nothing(nodes: Nodes, leaf: Leaf) -> None:
    """Whatever lies in the leaf's CTL account may be deleted while the system runs."""
    a, b = nodes.add("a"), nodes.add("b")
    await share(a, b)
    before = a.mine, b.mine
    client = await leaf.connect()
    await client.jetstream().delete_stream(STREAM)
    while await _messages(client) != len(SIX) + 2:  # noqa: ASYNC110 - the server gives no event
        await asyncio.sleep(0.05)
    await client.close()
    assert (a.mine, b.mine) == before


async def _messages(client: Client) -> int:
    """Return how many entries the bucket has; none while nobody has made it again."""
    try:
        return (await client.jetstream().stream_info(STREAM)).state.messages
    except NotFoundError:
        return 0


async def test_a_node_without_a_leaf_goes_on_with_what_its_record_says(folder: Path) -> None:
    """At a start with the leaf away, the record is all there is; a node that was alone takes new work too."""
    nowhere = Leaf(folder)
    alone = Node(nowhere, "a", Record(held=frozenset({"p"}), members=frozenset({"a"})))
    alone.want({"p": 1, "new": 1})
    assert alone.mine == {"p"}
    await until(lambda: alone.mine == {"p", "new"})
    one_of_two = Node(nowhere, "a", Record(held=frozenset({"p", "q"}), members=frozenset({"a", "b"})))
    one_of_two.want({"p": 1, "q": 1, "new": 1}, busy=frozenset({"q"}))
    assert one_of_two.mine == {"q"}
    await until(lambda: one_of_two.mine == {"p", "q"})
    one_of_two.leases.give_up(frozenset({"p"}))
    assert one_of_two.mine == {"q"}
    assert one_of_two.leases.held == {"q"}
    await alone.close()
    await one_of_two.close()


async def test_a_node_that_comes_gets_its_share(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    """What one node holds too much moves to the other, one by one, never owned by both."""
    monkeypatch.setattr(placement, "STEADY_SECONDS", 0.3)
    a = nodes.add("a")
    a.want(SIX)
    await until(lambda: a.mine == SIX.keys())
    b = nodes.add("b")

    def spread() -> bool:
        a.want(SIX)
        b.want(SIX)
        assert not (a.mine - a.leases.view.leaving) & b.mine
        return len(a.mine) == len(b.mine) == 3

    await until(spread)


async def test_of_two_that_take_the_same_entry_one_is_refused(nodes: Nodes) -> None:
    """A write names the revision that it replaces."""
    a, b = nodes.add("a"), nodes.add("b")
    a.want({})
    await until(lambda: a.leases.view.reachable and b.leases.view.reachable)
    for revision in (0, 99):
        wins = await asyncio.gather(
            *(
                node.leases._put(
                    node.client, f"{leases_module.PIPELINES}raced", leases_module._OwnerEntry(name), revision
                )
                for node, name in ((a, "a"), (b, "b"))
                if node.client is not None
            )
        )
        assert [win is not None for win in wins].count(True) == (1 if revision == 0 else 0)


async def test_without_a_whole_index_nothing_is_given_back(nodes: Nodes) -> None:
    """A node whose documents are not all here keeps its leases, and has no new ones."""
    node = nodes.add("a")
    node.want(SIX)
    await until(lambda: node.mine == SIX.keys())
    node.want({}, busy=frozenset(), ready=False)
    await asyncio.sleep(0.5)
    assert node.mine == SIX.keys()
