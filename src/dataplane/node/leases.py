"""Which pipelines this node may run: leases in the leaf, so that each pipeline of a data plane runs on one node.

The bucket `leases` in the leaf's CTL account holds one entry for each node, its session, with a time to live, and one
for each pipeline, which names its owner. An entry's owner counts while the owner's session lives; so one message every
two seconds keeps all leases of a node, however many they are. Every write names the revision that it replaces, and
whoever is second is refused. `placement` decides; this module reads the whole bucket once a second, in one request, and
carries the decision out.

Why it reads and does not watch: a watch stops without a word when the server is killed or the bucket is deleted. A read
shows what is there, at a constant cost, whatever happened in between. Why the bucket lies in memory: it says who lives
now, which nobody needs to know after a restart of the leaf, and the checkpoint's fence does not depend on it.

With the leaf away a node goes on with what it held; the fence is what keeps two from writing. One that finds itself
fenced meanwhile gives the pipeline up (`give_up`). A node that is the only one of its data plane runs all it has
documents for. The reconciler says what is wanted, and reads `view`.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping
from uuid import uuid4

import msgspec
import nats.errors
import nats.js.errors
from msgspec import Struct
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js import api

from dataplane.node import placement
from dataplane.node.placement import Decision, Member, Owner, Situation
from dataplane.node.record import Record

BUCKET = "leases"
STREAM = f"KV_{BUCKET}"
NODES = f"$KV.{BUCKET}.node."
PIPELINES = f"$KV.{BUCKET}.pipeline."
BUCKET_BYTES_MAX = 4 << 20
ENTRIES_MAX = 1024

SESSION_SECONDS = 6
"""How long a session lives without renewal; the server's time to live has whole seconds."""
RENEW_SECONDS = 2.0
READ_SECONDS = 1.0
READ_SECONDS_MIN = 0.02
LEAF_POLL_SECONDS = 0.05
"""How often a missing connection to the leaf is looked for at first, and ten times rarer later."""
ANSWER_SECONDS_MAX = 2.0
ALONE_SECONDS = 1.5
"""After this time without a leaf a starting node runs what it held before."""
PATIENCE_SECONDS_MAX = 600.0
TAKEN_BACK_SECONDS = 60.0
"""A pipeline that came back within this time was given away in vain: the next is given away later."""

_log = logging.getLogger(__name__)
_ERRORS = (nats.errors.Error, TimeoutError, OSError, msgspec.DecodeError)


class LeaseView(Struct, frozen=True, kw_only=True):
    """What the reconciler may act on."""

    mine: frozenset[str] = frozenset()
    leaving: frozenset[str] = frozenset()
    """Part of `mine`: to be stopped, so that another node can run it."""
    elsewhere: Mapping[str, str] = {}
    members: frozenset[str] = frozenset()
    reachable: bool = False


class _Bucket(Struct, frozen=True):
    """What one read gave. Revisions of sessions are kept beside them."""

    members: dict[str, Member]
    revisions: dict[str, int]
    owners: dict[str, Owner]


class _OwnerEntry(Struct, frozen=True):
    node: str


class Leases:
    """The leases of one node. `leaf` gives the connection of the moment; `on_change` is called when `view` changed."""

    def __init__(
        self,
        node: str,
        *,
        contract: int,
        leaf: Callable[[], Client | None],
        record: Record,
        on_change: Callable[[], None],
    ) -> None:
        self._node = node
        self._contract = contract
        self._leaf = leaf
        self._on_change = on_change
        self._instance = uuid4().hex
        self._held = record.held
        self._known = record.members | {node}
        self._wanted: Mapping[str, int] = {}
        self._ready = False
        self._busy: frozenset[str] = frozenset()
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._started_at = time.monotonic()
        self._client: Client | None = None
        self._settled = False
        self._returned_at = -placement.RETURN_SECONDS
        self._steady_since = self._started_at
        self._patience = placement.STEADY_SECONDS
        self._renewed_at = -RENEW_SECONDS
        self._renewed_as: Member | None = None
        self._free_since: dict[str, float] = {}
        self._given: dict[str, float] = {}
        self._given_up: frozenset[str] = frozenset()
        self._mine: frozenset[str] = frozenset()
        self._leaving: frozenset[str] = frozenset()
        self._elsewhere: Mapping[str, str] = {}
        self.view = LeaseView(members=self._known)
        self.read_at = self._started_at - SESSION_SECONDS
        """When the newest whole answer of the leaf was asked for, monotonic seconds."""

    @property
    def held(self) -> frozenset[str]:
        """What the durable record should hold: `view.mine`, and at the start what is not claimed again yet."""
        return (self._held_now() | self.view.mine) - self._given_up

    @property
    def is_fresh(self) -> bool:
        """Whether the leaf's last answer still counts: no other node can have waited for our session's end since."""
        return time.monotonic() - self.read_at < SESSION_SECONDS

    def start(self) -> asyncio.Task[None]:
        """Begin, in the background. The task that is returned ends only by `stop` or by a fault of the program."""
        self._started_at = self._steady_since = time.monotonic()
        self._task = asyncio.create_task(self._run(), name="leases")
        return self._task

    async def stop(self, *, release: bool = False) -> None:
        """End. With `release` other nodes can take over at once; without, this node's session runs out by itself."""
        # Again and again: a cancellation that meets an answer of the leaf can be lost on its way (`asyncio.wait_for`).
        while self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.wait({self._task}, timeout=READ_SECONDS)
        client = self._leaf()
        if release and client is not None:
            with contextlib.suppress(*_ERRORS):
                bucket = await self._read(client)
                for owner in bucket.owners.values() if bucket else ():
                    if owner.node == self._node:
                        await self._delete(client, owner.revision)
                if bucket and self._node in bucket.revisions:
                    await self._delete(client, bucket.revisions[self._node])

    def want(self, wanted: Mapping[str, int], *, busy: frozenset[str], ready: bool) -> None:
        """Say which pipelines should run (with the contract each needs) and which have a living worker here.

        Without a whole index (`ready` false) nothing is given back, whatever `wanted` says.
        """
        if (wanted, busy, ready) != (self._wanted, self._busy, self._ready):
            self._wanted, self._busy, self._ready = dict(wanted), busy, ready
            self._wake.set()
            self._publish(reachable=self.view.reachable)

    def give_up(self, pipelines: frozenset[str]) -> None:
        """Stop claiming pipelines that another node has fenced, until the leaf can be asked again."""
        self._given_up |= pipelines
        self._publish(reachable=self.view.reachable)

    # ---- The loop ---------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        missed = 0
        while True:
            self._wake.clear()
            client = self._leaf()
            reachable = False
            if client is not None:
                missed = 0
                try:
                    await self._cycle(client)
                    reachable = True
                except _ERRORS as error:
                    _log.debug("leases_unreachable", extra={"reason": type(error).__name__})
            self._publish(reachable=reachable)
            if client is None:
                missed += 1
                await asyncio.sleep(LEAF_POLL_SECONDS * (1 if missed < ALONE_SECONDS * 2 / LEAF_POLL_SECONDS else 10))
                continue
            await asyncio.sleep(READ_SECONDS_MIN)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(READ_SECONDS):
                    await self._wake.wait()

    async def _cycle(self, client: Client) -> None:
        """Read, decide, write."""
        now = time.monotonic()
        if client is not self._client:
            self._client = client
            self._came_back(now)
        bucket = await self._read(client)
        if bucket is None:
            await self._create(client)
            self._came_back(now)
            bucket = _Bucket({}, {}, {})
        bucket = await self._renew(client, bucket, now)
        if frozenset(bucket.members) != self._known:
            self._known, self._steady_since = frozenset(bucket.members), now
        decision = placement.decide(self._situation(bucket, now))
        await self._carry_out(client, decision, now)
        self.read_at = now

    def _came_back(self, now: float) -> None:
        """Leave the pipelines of other nodes alone for a while: they may see the bucket later than we do."""
        self._renewed_as = None
        if len(self._known) > 1:
            self._returned_at = now

    def _situation(self, bucket: _Bucket, now: float) -> Situation:
        wanted = self._wanted
        if not self._ready:
            mine = [name for name, owner in bucket.owners.items() if owner.node == self._node]
            wanted = {**dict.fromkeys([*mine, *self._held_now()], 1), **wanted}
        return Situation(
            me=self._node,
            now=now,
            members=bucket.members,
            owners=bucket.owners,
            wanted=wanted,
            mine=self._held_now(),
            busy=self._busy,
            leaving=self._leaving,
            free_since=self._free_since,
            returned_at=self._returned_at,
            steady_since=self._steady_since,
            patience=self._patience,
        )

    def _held_now(self) -> frozenset[str]:
        return self._mine if self._settled else self._held

    async def _carry_out(self, client: Client, decision: Decision, now: float) -> None:
        mine = set(decision.mine)
        for name, revision in decision.acquire.items():
            if await self._put(client, f"{PIPELINES}{name}", _OwnerEntry(self._node), revision) is not None:
                mine.add(name)
                self._note_taken(name, now)
        for name, revision in decision.release.items():
            await self._delete(client, revision)
            if name in self._wanted:
                self._given[name] = self._steady_since = now
        self._free_since = {name: self._free_since.get(name, now) for name in decision.free if name not in mine}
        self._mine, self._leaving, self._elsewhere = frozenset(mine), decision.leaving, decision.elsewhere
        self._given_up = frozenset()
        self._settled = True

    def _note_taken(self, name: str, now: float) -> None:
        given = self._given.pop(name, None)
        if given is None:
            return
        in_vain = now - given < TAKEN_BACK_SECONDS
        self._patience = min(PATIENCE_SECONDS_MAX, self._patience * 2) if in_vain else placement.STEADY_SECONDS

    def _publish(self, *, reachable: bool) -> None:
        """Make `view` of what is known, and say so if it changed."""
        alone = self._known <= {self._node}
        mine = self._mine
        if not self._settled:
            waited = time.monotonic() - self._started_at >= ALONE_SECONDS
            mine = self._held if alone or waited else self._held & self._busy
        if alone and not reachable and (self._settled or time.monotonic() - self._started_at >= ALONE_SECONDS):
            mine |= self._wanted.keys()
        mine -= self._given_up
        view = LeaseView(
            mine=mine,
            leaving=self._leaving & mine if reachable else frozenset(),
            elsewhere=self._elsewhere,
            members=self._known,
            reachable=reachable,
        )
        if view != self.view:
            self.view = view
            self._on_change()

    # ---- The bucket -------------------------------------------------------------------------------------------------

    async def _renew(self, client: Client, bucket: _Bucket, now: float) -> _Bucket:
        """Keep this node's session alive, and return the bucket with it."""
        me = Member(contract=self._contract, ready=self._ready, instance=self._instance)
        there = bucket.members.get(self._node)
        if self._renewed_as is not None and there is not None and there.instance != self._instance:
            _log.error("node_name_taken", extra={"node": self._node, "hint": "two agents run under one name"})
        if there != me or now >= self._renewed_at + RENEW_SECONDS:
            revision = bucket.revisions.get(self._node, 0)
            if await self._put(client, f"{NODES}{self._node}", me, revision, seconds=SESSION_SECONDS) is not None:
                self._renewed_at, self._renewed_as = now, me
        return _Bucket({**bucket.members, self._node: me}, bucket.revisions, bucket.owners)

    async def _read(self, client: Client) -> _Bucket | None:
        """Return the whole bucket as of one moment; None when it does not exist."""
        members: dict[str, Member] = {}
        revisions: dict[str, int] = {}
        owners: dict[str, Owner] = {}
        inbox = client.new_inbox()
        subscription = await client.subscribe(inbox)
        try:
            request = {"multi_last": [f"$KV.{BUCKET}.>"], "batch": ENTRIES_MAX}
            await client.publish(f"$JS.API.DIRECT.GET.{STREAM}", msgspec.json.encode(request), reply=inbox)
            while (status := _status(message := await subscription.next_msg(timeout=ANSWER_SECONDS_MAX))) is None:
                headers = message.headers or {}
                subject, revision = headers["Nats-Subject"], int(headers["Nats-Sequence"])
                if subject.startswith(NODES):
                    name = subject.removeprefix(NODES)
                    members[name] = msgspec.json.decode(message.data, type=Member)
                    revisions[name] = revision
                elif subject.startswith(PIPELINES):
                    owner = msgspec.json.decode(message.data, type=_OwnerEntry)
                    owners[subject.removeprefix(PIPELINES)] = Owner(owner.node, revision)
        finally:
            with contextlib.suppress(*_ERRORS):
                await subscription.unsubscribe()
        return None if status == "503" else _Bucket(members, revisions, owners)

    async def _create(self, client: Client) -> None:
        config = api.StreamConfig(
            name=STREAM,
            subjects=[f"$KV.{BUCKET}.>"],
            max_msgs_per_subject=1,
            max_bytes=BUCKET_BYTES_MAX,
            discard=api.DiscardPolicy.NEW,
            storage=api.StorageType.MEMORY,
            allow_direct=True,
            allow_rollup_hdrs=True,
            allow_msg_ttl=True,
            num_replicas=1,
        )
        await client.jetstream(timeout=ANSWER_SECONDS_MAX).add_stream(config)
        _log.info("lease_bucket_created")

    async def _put(
        self, client: Client, subject: str, entry: Struct, revision: int, *, seconds: int | None = None
    ) -> int | None:
        """Write an entry over the one of `revision`. Return the new revision; None when another node was first."""
        try:
            written = await client.jetstream(timeout=ANSWER_SECONDS_MAX).publish(
                subject,
                msgspec.json.encode(entry),
                headers={api.Header.EXPECTED_LAST_SUBJECT_SEQUENCE.value: str(revision)},
                msg_ttl=seconds,
            )
        except nats.js.errors.BadRequestError:
            return None
        return written.seq

    async def _delete(self, client: Client, revision: int) -> None:
        """Delete the entry of this revision. If another node has replaced it meanwhile, that one stays."""
        with contextlib.suppress(nats.js.errors.BadRequestError, nats.js.errors.NotFoundError):
            await client.jetstream(timeout=ANSWER_SECONDS_MAX).delete_msg(STREAM, revision)


def _status(message: Msg) -> str | None:
    """Return the status of a message that carries no entry: 204 ends a read, 404 says empty, 503 no bucket."""
    return (message.headers or {}).get("Status")
