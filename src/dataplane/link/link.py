"""One node's way to its control plane: documents come down into the store, reports go up through the gate.

The link talks to the leaf only; whether the hub is there shows in whether a sync is answered. Every message from above
is a hint: it is taken if it is acceptable, and what it did not bring is asked for by a sync, on connect, when the newest
index is not whole, and every 30 s. With leaf or hub away the link goes on trying for ever, and the agent goes on with
what the store holds.

The agent starts the link, sets `heartbeat_source` and `answer`, waits for `changed` (which carries nothing: it reads the
store), and sends facts. Everything runs on the agent's event loop.
"""

import asyncio
import contextlib
import logging
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import nats.errors
from msgspec import UNSET, structs
from nats.aio.client import Client
from nats.aio.msg import Msg

from contracts import subjects, v2
from contracts.codes import Code
from contracts.envelope import EnvelopeError, Purpose, open_signed, verify
from contracts.keys import KeyPair
from dataplane.config import NodeConfig
from dataplane.link import ledger, mirror
from dataplane.link.admission import Expected, Refused, admit
from dataplane.link.checkpoints import Checkpoints, WentBack
from dataplane.link.facts import Outbox
from dataplane.link.forwarder import Forwarder, HubAway
from dataplane.link.ledger import Ledger
from dataplane.link.renewal import Renewal
from dataplane.link.store import DocumentStore
from dataplane.link.uplink import SequenceCounter, Uplink

SYNC_SECONDS = 30.0
SYNC_RETRY_SECONDS_MAX = 5.0
SYNC_ROUNDS_MAX = 200
ANSWER_SECONDS_MAX = 5.0
HEARTBEAT_SECONDS = 10.0
HEARTBEAT_SECONDS_MIN = 0.02
HEARTBEAT_PIPELINES_MAX = 40
"""Pipelines in one heartbeat, so that it stays below the channel's bound; more go into several."""
CONNECT_SECONDS_MAX = 2.0
RECONNECT_SECONDS_MAX = 3.0
HINTS_MAX = 512
QUESTIONS_MAX = 4
CANCEL_SECONDS = 1.0

log = logging.getLogger(__name__)
_REPLIES: msgspec.json.Decoder[v2.SyncReply | v2.Receipt] = msgspec.json.Decoder(v2.SyncReply | v2.Receipt)
_QUESTIONS = msgspec.json.Decoder(v2.Question)
_NATS_ERRORS = (nats.errors.Error, OSError, TimeoutError)


class NotServed(Exception):
    """The control plane answered a sync, and will not serve this node: it was revoked, or is not known."""


class Link:
    """The link of one node. `folder` keeps its sequence numbers and outbox; `store` is where documents go."""

    def __init__(self, config: NodeConfig, store: DocumentStore, folder: Path) -> None:
        self._config = config
        self._store = store
        folder.mkdir(parents=True, exist_ok=True)
        self._outbox = Outbox(folder / "outbox")
        self._ledger = Ledger(folder / ledger.FOLDER)
        self._checkpoints = Checkpoints(folder)
        self._folder = folder
        self._renewal = Renewal(config, store.trust)
        self._contract = config.contract_max
        self._uplink: Uplink | None = None
        self._client: Client | None = None
        self._forwarder: Forwarder | None = None
        self._task: asyncio.Task[None] | None = None
        self._stopping = False
        self._look_again = asyncio.Event()
        self._beat_due = asyncio.Event()
        self._facts_due = asyncio.Event()
        self._mirror_due = asyncio.Event()
        self._refused_unreported = 0
        self._overflowed = False
        self._questions: set[asyncio.Task[None]] = set()
        self.changed = asyncio.Event()
        """Set when what the store shows has changed. The agent clears it, then reads the store."""
        self.heartbeat_source: Callable[[], v2.Heartbeat] | None = None
        """Gives the heartbeat of now, with every pipeline's status and telemetry. Set by the agent before `start`."""
        self.answer: Callable[[v2.Question], Awaitable[v2.Answer | v2.Diagnosis]] | None = None
        """Answers an interactive question. Set by the agent before `start`."""
        self.refused: Counter[str] = Counter()
        """Documents refused since the start, by reason."""
        self.synced_at: datetime | None = None
        """When a sync was last answered: whether the control plane is there, as far as this node knows."""

    # ---- What the agent uses ----------------------------------------------------------------------------------------

    @property
    def leaf(self) -> Client | None:
        """The connection to the leaf's CTL account; None while there is none. A new connection is a new object."""
        return self._client if self._client is not None and self._client.is_connected else None

    @property
    def facts_waiting(self) -> int:
        """How many facts have no receipt yet."""
        return len(self._outbox)

    async def start(self) -> None:
        """Begin, in the background. It neither waits for the leaf nor fails without it.

        Raises:
            OSError: the node's own seed cannot be read.
            ValueError: the seed file holds no seed.
        """
        key_pair = _read_key(self._config.seed_file)
        counter = SequenceCounter(self._folder)
        self._uplink = Uplink(self._config.node, key_pair, counter, self._ledger, contract=self._contract)
        if len(self._outbox):
            self._facts_due.set()
        self._task = asyncio.create_task(self._run(), name="link")
        self._task.add_done_callback(_report_end)

    async def stop(self) -> None:
        """End the connection. Facts without a receipt stay in the outbox."""
        self._stopping = True
        if self._task is not None:
            await _end({self._task})
            self._task = None

    def beat(self) -> None:
        """Say that a status changed: a heartbeat goes up at once, or as soon as its rate allows."""
        self._beat_due.set()

    async def send_fact(self, message: v2.Fact) -> None:
        """Take a fact into the outbox; it is durable when this returns, and arrives whatever happens afterwards.

        When the outbox is full, everything in it collapses into one REPORTS_OVERFLOWED and the next heartbeat.

        Raises:
            TypeError: it is not a message that goes up.
        """
        if self._outbox.is_full:
            await self._collapse()
        self._keep(message)

    # ---- The connection ---------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        failures = 0
        while not self._stopping:
            began = asyncio.get_running_loop().time()
            try:
                await self._connected_once()
            except _NATS_ERRORS as error:
                log.debug("no connection to the leaf: %s", error)
            if asyncio.get_running_loop().time() - began > RECONNECT_SECONDS_MAX:
                failures = 0
            await asyncio.sleep(_jittered(min(RECONNECT_SECONDS_MAX, 0.1 * 2 ** min(failures, 8))))
            failures += 1

    async def _connected_once(self) -> None:
        """Connect, and serve the connection until it ends."""
        ended = asyncio.Event()

        async def on_closed() -> None:
            ended.set()

        async def on_error(error: Exception) -> None:
            log.debug("leaf: %s", error)
            self._look_again.set()  # such as a slow consumer: a hint was lost

        client = Client()
        try:
            await client.connect(
                self._config.leaf_url,
                name=f"agent-{self._config.node}",
                nkeys_seed=self._config.ctl_seed_file,
                inbox_prefix=f"_INBOX.{self._config.data_plane}.{self._config.node}",
                allow_reconnect=False,
                connect_timeout=int(CONNECT_SECONDS_MAX),
                ping_interval=5,
                max_outstanding_pings=2,
                error_cb=on_error,
                closed_cb=on_closed,
            )
        except BaseException:
            await client.close()  # a connect that fails leaves its socket open
            raise
        log.info("connected to the leaf")
        self._client = client
        self._forwarder = Forwarder(client, self._outbox, data_plane=self._config.data_plane, node=self._config.node)
        loops = {
            asyncio.create_task(each)
            for each in (
                ended.wait(),
                self._sync(client),
                self._heartbeat(client),
                self._forward(),
                self._mirror(client),
                self._renew(client),
            )
        }
        try:
            done, _ = await asyncio.wait(loops, return_when=asyncio.FIRST_COMPLETED)
            for each in done:
                each.result()
        finally:
            self._client = self._forwarder = None
            await _end(loops)
            with contextlib.suppress(*_NATS_ERRORS):
                await client.close()
            log.info("disconnected from the leaf")

    # ---- Down -------------------------------------------------------------------------------------------------------

    def _expected(self) -> Expected:
        trust = self._store.trust()
        return Expected(
            tenant=self._config.tenant,
            data_plane=self._config.data_plane,
            root_key=self._config.root_key,
            contract=self._contract,
            trusted=frozenset(trust.keys) if trust else frozenset(),
            trust_generation=trust.generation if trust else 0,
        )

    def _take(self, text: bytes | str, *, origin: str, count: bool = True) -> None:
        """Admit one document into the store, or refuse it, say so and count it."""
        try:
            accepted = admit(text, self._expected())
            if self._store.put(accepted):
                self.changed.set()
                self._mirror_due.set()
            if isinstance(accepted.document, v2.TrustDocument):
                self._renewal.wake()
        except Refused as refused:
            if count:
                self.refused[refused.reason.value] += 1
                self._refused_unreported += 1
                log.warning("refused a document from %s: %s (%s)", origin, refused, refused.reason.value)

    async def _on_message(self, message: Msg) -> None:
        if message.subject.startswith(f"desired.v{self._contract}.{self._config.data_plane}.question."):
            if message.subject.endswith(f".{self._config.node}"):
                self._take_question(message.data)
            return
        before = self._store.newest_index()
        self._take(message.data, origin="the subscription")
        if message.subject.endswith(f".{v2.Kind.INDEX.value}") and self._store.newest_index() == before:
            self._beat_due.set()  # nothing new, so the control plane is back: tell it how things stand
            self._facts_due.set()
        if self._store.missing() or self._refused_unreported:
            self._look_again.set()

    async def _sync(self, client: Client) -> None:
        subject = subjects.desired_all(self._contract, self._config.data_plane)
        await client.subscribe(subject, cb=self._on_message, pending_msgs_limit=HINTS_MAX)
        await self._take_mirrored(client)
        failures = 0
        while True:
            self._look_again.clear()
            try:
                await self._sync_once(client)
                if failures or self.synced_at is None:
                    self._facts_due.set()
                    self._beat_due.set()
                self.synced_at = datetime.now(UTC)
                failures = 0
            except NotServed as error:
                # Asked again soon: a node that has just joined is not known yet.
                log.warning("the control plane does not serve this node: %s", error)
                failures += 1
            except (*_NATS_ERRORS, msgspec.DecodeError) as error:
                log.debug("sync was not answered: %s", error)
                failures += 1
            self._report_refusals()
            wait = min(SYNC_RETRY_SECONDS_MAX, 0.25 * 2 ** min(failures, 8)) if failures else SYNC_SECONDS
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_jittered(wait)):
                    await self._look_again.wait()
                    if failures:
                        await asyncio.sleep(_jittered(wait) / 2)  # a hint must not turn a retry into a loop
            self._mirror_due.set()

    async def _sync_once(self, client: Client) -> None:
        for _ in range(SYNC_ROUNDS_MAX):
            newest = self._store.newest_index()
            missing = self._store.missing()
            wanted = [
                v2.Wanted(kind=each.kind, name=each.name, generation=each.generation, digest=each.digest)
                for each in missing[: v2.WANTED_MAX]
            ]
            request = v2.SyncRequest(
                index_digest=newest[1] if newest else None,
                index_epoch=newest[0].epoch if newest else 0,
                index_revision=newest[0].revision if newest else 0,
                wanted=wanted,
            )
            reply = await client.request(self._up("sync"), self._seal(request), timeout=ANSWER_SECONDS_MAX)
            match _REPLIES.decode(reply.data):
                case v2.Receipt(code=code):
                    raise NotServed(code or "no reason given")
                case v2.SyncReply(index=index, documents=documents, more=more, checkpoint=checkpoint):
                    for text in documents:
                        self._take(text, origin="a sync")
                    if index is not None:
                        self._take(index, origin="a sync")
                    if checkpoint is not UNSET:
                        self._take_checkpoint(checkpoint)
            still_missing = self._store.missing()
            if not more and (not still_missing or still_missing == missing):
                return

    def _take_checkpoint(self, sealed: str) -> None:
        """Keep the head of the control plane's audit log for the customer; tell when it does not go on from the last."""
        try:
            self._checkpoints.take(sealed, tenant=self._config.tenant, keys=self._expected().trusted)
        except WentBack as error:
            log.error("the audit log of the control plane went back: %s", error)
            if not self._outbox.is_full:
                self._keep(v2.ErrorReport(code=Code.AUDIT_WENT_BACK, at=datetime.now(UTC)))
        except EnvelopeError as error:
            self.refused["checkpoint"] += 1
            log.warning("refused a checkpoint: %s", error)
        except OSError as error:
            log.error("a checkpoint of the audit log was not kept: %s", error)

    async def _take_mirrored(self, client: Client) -> None:
        """Take what other nodes left in the leaf: with the hub away it is all there is for a new node."""
        try:
            for text in await mirror.load(client.jetstream(), self._contract):
                self._take(text, origin="the leaf", count=False)
        except (nats.errors.Error, TimeoutError) as error:
            log.debug("no documents from the leaf: %s", error)

    async def _mirror(self, client: Client) -> None:
        while True:
            await self._mirror_due.wait()
            self._mirror_due.clear()
            try:
                await self._take_mirrored(client)
                await mirror.save(client.jetstream(), self._store, self._contract)
            except (nats.errors.Error, TimeoutError) as error:
                log.debug("the leaf's copy of the documents was not renewed: %s", error)

    # ---- Up ---------------------------------------------------------------------------------------------------------

    def _up(self, kind: str) -> str:
        return subjects.up(self._contract, self._config.data_plane, self._config.node, kind)

    def _seal(self, message: v2.AnyUp) -> bytes:
        return self._sealed(message)[1]

    def _sealed(self, message: v2.AnyUp) -> tuple[int, bytes]:
        if self._uplink is None:
            raise RuntimeError("the link was not started")
        try:
            return self._uplink.seal(message)
        except OSError as error:
            log.error("nothing goes up, because the ledger of what leaves cannot be written: %s", error)
            raise

    def _keep(self, message: v2.Fact) -> None:
        self._outbox.add(*self._sealed(message))
        self._facts_due.set()

    async def _collapse(self) -> None:
        count = self._outbox.clear()
        log.error("%d reports waited for the control plane; they were replaced by the latest state", count)
        if self._forwarder is not None:
            with contextlib.suppress(*_NATS_ERRORS):
                await self._forwarder.discard()
        self._keep(v2.ErrorReport(code=Code.REPORTS_OVERFLOWED, at=datetime.now(UTC), count=count))
        self._beat_due.set()

    def _report_refusals(self) -> None:
        """Send one report for all refusals since the last sync, so that nobody can fill the outbox with them."""
        if self._refused_unreported and not self._outbox.is_full:
            count, self._refused_unreported = self._refused_unreported, 0
            self._keep(v2.ErrorReport(code=Code.DOCUMENT_REFUSED, at=datetime.now(UTC), count=count))

    async def _forward(self) -> None:
        failures = 0
        while True:
            if not failures:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_jittered(SYNC_SECONDS)):
                        await self._facts_due.wait()
            self._facts_due.clear()
            forwarder = self._forwarder
            if forwarder is None:
                return
            try:
                had_facts = bool(len(self._outbox))
                await forwarder.forward()
                if had_facts:
                    self._beat_due.set()
                else:
                    await forwarder.forward_for_others()
                failures = 0
            except (HubAway, nats.errors.Error, TimeoutError) as error:
                log.debug("reports wait: %s", error)
                failures += 1
                await asyncio.sleep(_jittered(min(SYNC_RETRY_SECONDS_MAX, 0.1 * 2 ** min(failures, 8))))

    async def _heartbeat(self, client: Client) -> None:
        while True:
            self._beat_due.clear()
            if self.heartbeat_source is not None:
                for part in self._parts(self.heartbeat_source()):
                    await client.publish(self._up("heartbeat"), self._seal(part))
            await asyncio.sleep(HEARTBEAT_SECONDS_MIN)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_jittered(HEARTBEAT_SECONDS)):
                    await self._beat_due.wait()

    def _parts(self, beat: v2.Heartbeat) -> list[v2.Heartbeat]:
        """Split a heartbeat to the size of a message. While facts wait it says no statuses: it must not overtake them."""
        statuses = [] if len(self._outbox) else beat.pipelines
        size = HEARTBEAT_PIPELINES_MAX
        return [
            structs.replace(
                beat, pipelines=statuses[start : start + size], telemetry=beat.telemetry[start : start + size]
            )
            for start in range(0, max(len(statuses), len(beat.telemetry), 1), size)
        ]

    async def _renew(self, client: Client) -> None:
        async def ask(request: v2.CertificateRequest) -> bytes:
            subject = subjects.up(v2.CONTRACT, self._config.data_plane, self._config.node, "certificate")
            reply = await client.request(subject, self._seal(request), timeout=ANSWER_SECONDS_MAX)
            return reply.data

        await self._renewal.keep_valid(ask)
        await asyncio.Event().wait()  # the leaf is another machine's: nothing to do here, for ever

    # ---- Questions --------------------------------------------------------------------------------------------------

    def _take_question(self, data: bytes) -> None:
        try:
            raw = verify(open_signed(data), keys=self._expected().trusted, purpose=Purpose.DOCUMENT)
            question = _QUESTIONS.decode(raw)
        except (EnvelopeError, msgspec.DecodeError) as error:
            self.refused["question"] += 1
            log.warning("refused a question: %s", error)
            return
        if question.deadline <= datetime.now(UTC) or len(self._questions) >= QUESTIONS_MAX or self.answer is None:
            return
        task = asyncio.create_task(self._answer(question, self.answer))
        self._questions.add(task)
        task.add_done_callback(self._questions.discard)

    async def _answer(
        self, question: v2.Question, answer: Callable[[v2.Question], Awaitable[v2.Answer | v2.Diagnosis]]
    ) -> None:
        with contextlib.suppress(*_NATS_ERRORS):
            async with asyncio.timeout((question.deadline - datetime.now(UTC)).total_seconds()):
                found = await answer(question)
                if self._client is not None:
                    await self._client.publish(self._up("answer"), self._seal(found))


def _read_key(seed_file: str) -> KeyPair:
    return KeyPair(Path(seed_file).read_text())


def _jittered(seconds: float) -> float:
    """Return `seconds` ± 20%, so that nodes that lost the same hub do not come back in step."""
    return seconds * random.uniform(0.8, 1.2)  # noqa: S311  # spreads load, keeps no secret


async def _end(tasks: set[asyncio.Task[Any]]) -> None:
    """Cancel tasks until they have ended: a wait within the NATS client may swallow one cancellation."""
    while tasks:
        for each in tasks:
            each.cancel()
        _, tasks = await asyncio.wait(tasks, timeout=CANCEL_SECONDS)


def _report_end(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.critical("the link ended by a fault of the program", exc_info=error)
