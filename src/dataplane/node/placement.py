"""Which node of a data plane runs which pipeline, decided without I/O from what the leaf's bucket shows.

Every node looks at the same bucket and decides for itself alone: what to take, what it lost, and what to give away. A
lease only chooses who tries; that two never write is the work of the fence in the checkpoint. So a wrong guess here costs
a restart of a worker, and nothing more.

- A pipeline is free when nobody owns it, or its owner's session has expired.
- A node that has been running a free pipeline takes it back at once. After the leaf was away, others wait a while first,
  so that a restart of the leaf moves nothing.
- Anyone else is ranked: nodes with less than their share first, then by rendezvous hashing. The first takes the pipeline
  at once; each further rank waits longer, in case the ones before it cannot.
- A node that holds more than its share, once the set of nodes has been steady for a while, gives one pipeline away, then
  after a pause another.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping
from math import ceil
from typing import NamedTuple

from msgspec import Struct

from contracts.v2 import PIPELINES_PER_NODE_MAX

RANK_WAIT_SECONDS = 1.5
"""How much longer each further node waits before it takes a free pipeline."""
RETURN_SECONDS = 3.0
"""After the leaf was away, others leave pipelines to those who ran them for this long."""
STEADY_SECONDS = 10.0
"""No pipeline is given away within this time of a node's coming or going, or of the last one given away."""


class Member(Struct, frozen=True, kw_only=True):
    """A living node. `contract` is the highest version it speaks; `ready` says that it holds a whole index."""

    contract: int
    ready: bool
    instance: str
    """Made anew at each start of the agent: two agents under one name show by it."""


class Owner(NamedTuple):
    """Who owns a pipeline, and the revision of that entry, which a change must name."""

    node: str
    revision: int


class Situation(Struct, frozen=True, kw_only=True):
    """All that the decision depends on. Times are seconds of one monotonic clock."""

    me: str
    now: float
    members: Mapping[str, Member]
    """The living nodes, this one included."""
    owners: Mapping[str, Owner]
    wanted: Mapping[str, int]
    """Pipelines that should run in this data plane, and the contract version that each needs."""
    mine: frozenset[str]
    """What this node held before."""
    busy: frozenset[str]
    """Pipelines with a living worker here."""
    leaving: frozenset[str] = frozenset()
    """What this node was giving away already."""
    free_since: Mapping[str, float] = {}
    returned_at: float = -RETURN_SECONDS
    """Since when the bucket is as it is, if other nodes may be slower than we to see it again."""
    steady_since: float = 0.0
    """When the set of members last changed, or a pipeline was last given away."""
    patience: float = STEADY_SECONDS


class Decision(Struct, frozen=True, kw_only=True):
    """What this node does about leases now."""

    acquire: dict[str, int]
    """Pipelines to take, each with the revision that it must still have; 0 when there is no entry."""
    release: dict[str, int]
    """Entries to delete, if they still have this revision."""
    mine: frozenset[str]
    leaving: frozenset[str]
    """Still ours; its workers are to be stopped so that another node can have it."""
    elsewhere: dict[str, str]
    """Pipelines that a living node other than this one owns."""
    free: frozenset[str]


def decide(situation: Situation) -> Decision:
    """Return what to take, keep and give away."""
    owned = {name: owner for name, owner in situation.owners.items() if owner.node == situation.me}
    elsewhere = {
        name: owner.node
        for name, owner in situation.owners.items()
        if owner.node != situation.me and owner.node in situation.members
    }
    free = frozenset(situation.wanted) - owned.keys() - elsewhere.keys()
    mine = frozenset(owned)
    leaving = (situation.leaving & mine & situation.wanted.keys()) or _to_give_away(situation, mine, elsewhere)
    release = {
        name: owner.revision
        for name, owner in owned.items()
        if name not in situation.busy and (name in leaving or name not in situation.wanted)
    }
    loads = Counter(elsewhere.values())
    loads[situation.me] = len(mine)
    take = _to_take(situation, free, loads)
    return Decision(
        acquire={name: situation.owners[name].revision if name in situation.owners else 0 for name in take},
        release=release,
        mine=mine - release.keys(),
        leaving=leaving - release.keys(),
        elsewhere=elsewhere,
        free=free,
    )


def _to_take(situation: Situation, free: frozenset[str], loads: Counter[str]) -> list[str]:
    held = loads[situation.me]
    share = _share(situation)
    take: list[str] = []
    for name in sorted(free):
        ranking = rank(name, _capable(situation, name), loads, share)
        loads[ranking[0]] += 1
        if held + len(take) >= PIPELINES_PER_NODE_MAX:
            continue
        if name in situation.mine:
            take.append(name)
            continue
        if situation.now < situation.returned_at + RETURN_SECONDS or situation.me not in ranking:
            continue
        waited = situation.now - situation.free_since.get(name, situation.now)
        if waited >= ranking.index(situation.me) * RANK_WAIT_SECONDS:
            take.append(name)
    return take


def _to_give_away(situation: Situation, mine: frozenset[str], elsewhere: Mapping[str, str]) -> frozenset[str]:
    """Return at most one pipeline that another node should have."""
    if situation.now < situation.steady_since + situation.patience:
        return frozenset()
    unfit = sorted(name for name in mine & situation.wanted.keys() if situation.me not in _capable(situation, name))
    if unfit:
        return frozenset(unfit[:1])
    share = _share(situation)
    loads = Counter(elsewhere.values())
    others = [
        node
        for node, member in situation.members.items()
        if node != situation.me and member.ready and loads[node] < share
    ]
    movable = [
        (score(name, node), name)
        for name in mine & situation.wanted.keys()
        for node in others
        if node in _capable(situation, name)
    ]
    if len(mine & situation.wanted.keys()) <= share or not movable:
        return frozenset()
    return frozenset({max(movable)[1]})


def _share(situation: Situation) -> int:
    """Return how many pipelines each ready node has at most when all is even."""
    ready = sum(1 for member in situation.members.values() if member.ready)
    return ceil(len(situation.wanted) / max(1, ready))


def _capable(situation: Situation, pipeline: str) -> list[str]:
    """Return the nodes that can run what the pipeline needs; if none can, all, so that one of them says so."""
    ready = {name: each for name, each in situation.members.items() if each.ready or name == situation.me}
    needed = situation.wanted.get(pipeline, 1)
    return [name for name, member in ready.items() if member.contract >= needed] or list(ready)


def rank(pipeline: str, nodes: Iterable[str], loads: Mapping[str, int], share: int) -> list[str]:
    """Return the nodes in the order in which they should take the pipeline."""
    return sorted(nodes, key=lambda node: (loads.get(node, 0) >= share, -score(pipeline, node), node))


def score(pipeline: str, node: str) -> int:
    """Return how well node and pipeline suit each other: the same number for everyone, and as good as random."""
    return int.from_bytes(hashlib.sha256(f"{node}\0{pipeline}".encode()).digest()[:8], "big")
