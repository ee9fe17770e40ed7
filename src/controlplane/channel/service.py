"""The channel as the control plane's composition root starts it: everything between the log and the hub.

`start` never waits for the hub and never fails without it. Work on the database runs on a few threads behind bounded
queues; the event loop only moves messages. Several processes may run one: the hub deals nodes' messages among them, and
the publisher's runner holds a lock.
"""

import asyncio
import contextlib
import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import nats.errors
from msgspec import structs
from nats.aio.msg import Msg
from prometheus_client import CollectorRegistry

from contracts import subjects, v2
from contracts.convert import report_to_v2
from contracts.envelope import Purpose, sign
from contracts.subjects import parse_up
from controlplane.channel import certificates, keys
from controlplane.channel.accounts import Accounts
from controlplane.channel.certificates import Certificates, Renewals
from controlplane.channel.directory import Directory, Refusal, open_report
from controlplane.channel.hub_link import HubLink
from controlplane.channel.intake import DATABASE_ERRORS, Intake
from controlplane.channel.leaf_admission import LeafAdmission
from controlplane.channel.metrics import ChannelMetrics
from controlplane.channel.publisher import Publisher, Signer
from controlplane.channel.reports import ReportConsumer, StatusCommand
from controlplane.channel.sync import SyncServer
from controlplane.log import EventLog
from controlplane.projection import Pool, Projection
from controlplane.settings import Settings

QUEUE_GROUP = "control-plane"
THREADS = 4
SENDING_MAX = 10_000
"""Messages that wait for the event loop to send them; more are dropped and counted."""
ISSUE_RETRY_SECONDS = 1.0
HINT_PAUSES_SECONDS = (0.0, 1.5, 3.0)
HINT_LOOK_SECONDS = 0.1
ANSWER_SECONDS_MAX = 10.0

Answer = v2.Answer | v2.Diagnosis

_log = logging.getLogger(__name__)


class NodeSilent(Exception):
    """A node did not answer a question in time, or the hub is away."""


class Channel:
    """Both directions. It is made before the event loop runs, and started on it."""

    def __init__(
        self,
        settings: Settings,
        log: EventLog,
        pool: Pool,
        commands: StatusCommand,
        *,
        registry: CollectorRegistry | None = None,
    ) -> None:
        """Read the keys and put the parts together; connect to nothing.

        Raises:
            OSError: a key file cannot be read.
            ValueError: a key file does not hold what it should.
        """
        channel_keys = keys.read(Path(settings.keys_folder))
        self.accounts = Accounts(channel_keys, certificates=settings.hub.leaf_certificates)
        self.certificates = Certificates(channel_keys.authorities, hours=settings.hub.certificate_hours)
        self._keys = channel_keys
        self._log = log
        self._pool = pool
        metrics = ChannelMetrics(registry)
        self._metrics = metrics
        signer = Signer(channel_keys)
        self._directory = Directory(self.accounts)
        self._publisher = Publisher(
            self.accounts, signer, pool, metrics, send=self._send, push_claims=self._push_claims
        )
        self._syncs = SyncServer(pool, self._directory, signer, metrics)
        reports = ReportConsumer(pool, self._directory, commands, metrics)
        self.renewals = Renewals(pool, self.accounts, self._directory, self.certificates, metrics)
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="channel")
        self._intakes = {
            "sync": Intake("sync", self._syncs.handle, self._threads, metrics),
            "report": Intake("report", reports.handle_facts, self._threads, metrics),
            "heartbeat": Intake("heartbeat", reports.handle_heartbeats, self._threads, metrics),
            certificates.KIND: Intake(certificates.KIND, self.renewals.handle, self._threads, metrics),
        }
        handlers = {(_every_tenant(kind), QUEUE_GROUP): intake.take for kind, intake in self._intakes.items()}
        self._admission = LeafAdmission(self.accounts, channel_keys.authorities, self._directory)
        handlers[subjects.EVERY_TENANT_ADMISSION, QUEUE_GROUP] = self._take_admission
        # Every process gets every answer, because only one of them has the question.
        handlers[_every_tenant("answer"), ""] = self._take_answer
        self._hub = HubLink(settings.hub.url, self.accounts, self._claims, handlers, metrics)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._sending: asyncio.Queue[tuple[str, bytes]] = asyncio.Queue(SENDING_MAX)
        self._tasks: list[asyncio.Task[None]] = []
        self._issued = False
        self._questions: dict[str, tuple[str, str, asyncio.Future[Answer]]] = {}

    # ---- What the composition root uses -----------------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        """Whether the hub is connected and knows every tenant, and every document was issued in the present epoch."""
        return self._hub.is_connected and self._issued

    def projections(self) -> list[Projection]:
        """Return the projections that a `ProjectionRunner` has to run."""
        return [self._publisher]

    def notes(self) -> list[str]:
        """Return what an operator should know, for readyz. Reads the database; call it on a thread."""
        with self._pool.connection() as connection:
            ahead = self._syncs.ahead(connection)
        if not ahead:
            return []
        note = (
            f"{len(ahead)} nodes hold a newer index than this control plane's log, which was restored from an old backup:"
            " stop it, run `python -m controlplane.channel.epoch --settings FILE`, and start it again"
        )
        return [note]

    async def start(self) -> None:
        """Begin. Waits for nothing."""
        self._loop = asyncio.get_running_loop()
        for intake in self._intakes.values():
            intake.start()
        self._hub.start()
        self._tasks = [
            asyncio.create_task(self._send_all(), name="channel-sending"),
            asyncio.create_task(self._issue(), name="channel-issue"),
            asyncio.create_task(self._hint(), name="channel-hint"),
        ]

    async def stop(self) -> None:
        """End: first the messages, then the threads."""
        await self._hub.stop()
        for intake in self._intakes.values():
            await intake.stop()
        for task in self._tasks:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        self._loop = None
        self._threads.shutdown(wait=True, cancel_futures=True)

    async def ask(
        self,
        tenant: str,
        data_plane: str,
        node: str,
        topic: v2.QuestionTopic,
        name: str,
        seconds_max: float | None = None,
    ) -> Answer:
        """Ask a node something interactive and return its answer: a diagnosis if that was asked for in version 2.

        Raises:
            NodeSilent: no answer came within `seconds_max`, which is ANSWER_SECONDS_MAX if not given.
        """
        patience = ANSWER_SECONDS_MAX if seconds_max is None else seconds_max
        deadline = datetime.now(UTC) + timedelta(seconds=patience)
        question = v2.Question(id=uuid4().hex, topic=topic, name=name, deadline=deadline)
        account = self.accounts.account_key(tenant)
        waiting: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._questions[question.id] = (account, node, waiting)
        try:
            # In every version: a node listens to its own only.
            for contract in (1, v2.CONTRACT):
                subject = subjects.for_tenant(account, subjects.question(contract, data_plane, node))
                spoken = question if contract > 1 else structs.replace(question, topic=v2.QuestionTopic.CONNECTION_TEST)
                envelope = sign(spoken, self._keys.signing, contract=contract, purpose=Purpose.DOCUMENT)
                await self._hub.publish(subject, envelope)
            async with asyncio.timeout(patience):
                return await waiting
        except TimeoutError as error:
            raise NodeSilent(f"node {node} did not answer within {patience:.0f} s") from error
        finally:
            del self._questions[question.id]

    # ---- Down -------------------------------------------------------------------------------------------------------

    def _send(self, subject: str, data: bytes) -> None:
        loop = self._loop
        if loop is None:
            self._metrics.not_sent.inc()
            return
        with contextlib.suppress(RuntimeError):  # the loop has just ended
            loop.call_soon_threadsafe(self._enqueue, subject, data)

    def _enqueue(self, subject: str, data: bytes) -> None:
        try:
            self._sending.put_nowait((subject, data))
        except asyncio.QueueFull:
            self._metrics.not_sent.inc()

    async def _send_all(self) -> None:
        while True:
            subject, data = await self._sending.get()
            await self._hub.publish(subject, data)

    async def _hint(self) -> None:
        """After each connect to the hub, have every node look again, as soon as its leaf is back."""
        loop = asyncio.get_running_loop()
        connects = 0
        while True:
            if self._issued and self._hub.connects_total != connects:
                connects = self._hub.connects_total
                for pause in HINT_PAUSES_SECONDS:
                    await asyncio.sleep(pause)
                    with contextlib.suppress(*DATABASE_ERRORS):  # nodes ask by themselves, a little later
                        await loop.run_in_executor(self._threads, self._publisher.publish_hints)
            await asyncio.sleep(HINT_LOOK_SECONDS)

    async def _issue(self) -> None:
        """Make everything again if the epoch was raised or other keys are trusted; wait for the database if need be."""
        loop = asyncio.get_running_loop()
        while not self._issued:
            try:
                if await loop.run_in_executor(self._threads, self._publisher.issue):
                    _log.info("every document was issued again")
                self._issued = True
            except DATABASE_ERRORS as error:
                _log.warning("the channel waits for the database: %s", type(error).__name__)
                await asyncio.sleep(ISSUE_RETRY_SECONDS)

    # ---- Claims -----------------------------------------------------------------------------------------------------

    async def _claims(self) -> Mapping[str, Mapping[str, int]]:
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._threads, self._read_claims, None)
        except DATABASE_ERRORS as error:
            raise ConnectionError("the tenants cannot be read") from error

    def _read_claims(self, tenant: str | None) -> dict[str, dict[str, int]]:
        with self._pool.connection() as connection:
            tenants = connection.execute(
                "SELECT tenant FROM channel_tenants WHERE %s::text IS NULL OR tenant = %s", [tenant, tenant]
            ).fetchall()
            revoked = connection.execute(
                "SELECT tenant, leaf_key, revoked_at FROM channel_leaves WHERE revoked_at IS NOT NULL"
                " AND (%s::text IS NULL OR tenant = %s)",
                [tenant, tenant],
            ).fetchall()
        claims: dict[str, dict[str, int]] = {each: {} for (each,) in tenants}
        for each, leaf_key, revoked_at in revoked:
            claims.setdefault(each, {})[leaf_key] = revoked_at
        return claims

    def _push_claims(self, tenant: str) -> None:
        """Called by the publisher after a commit, on its thread."""
        loop = self._loop
        if loop is None:
            return
        claims = self._read_claims(tenant)
        for each, revoked in claims.items():
            with contextlib.suppress(RuntimeError):  # the loop has just ended
                asyncio.run_coroutine_threadsafe(self._push(each, revoked), loop)

    async def _push(self, tenant: str, revoked: Mapping[str, int]) -> None:
        await self._hub.push_claims(tenant, revoked)

    # ---- Leaves that connect ----------------------------------------------------------------------------------------

    async def _take_admission(self, message: Msg) -> None:
        """Answer the hub about a leaf. Without an answer, as while the database is away, the leaf is refused."""
        loop = asyncio.get_running_loop()
        try:
            answer = await loop.run_in_executor(self._threads, self._admit, message.subject, message.data)
        except DATABASE_ERRORS as error:
            _log.warning("a leaf waits for the database: %s", type(error).__name__)
            return
        if answer is not None:
            with contextlib.suppress(nats.errors.Error, OSError):
                await message.respond(answer)

    def _admit(self, subject: str, data: bytes) -> bytes | None:
        try:
            account = subjects.parse_admission(subject)
        except ValueError:
            return None
        with self._pool.connection() as connection:
            found = self._admission.answer(connection, account, data, datetime.now(UTC))
        result = "unreadable" if found is None else "let_in" if found[1] is None else found[1].value
        self._metrics.leaf_admissions.labels(result=result).inc()
        return found[0] if found is not None else None

    # ---- Answers ----------------------------------------------------------------------------------------------------

    async def _take_answer(self, message: Msg) -> None:
        loop = asyncio.get_running_loop()
        try:
            answer = await loop.run_in_executor(self._threads, self._read_answer, message.subject, message.data)
        except DATABASE_ERRORS:
            return
        if answer is None or answer[1].id not in self._questions:
            return
        sender, found = answer
        account, node, waiting = self._questions[found.id]
        if sender == (account, node) and not waiting.done():
            waiting.set_result(found)

    def _read_answer(self, subject: str, data: bytes) -> tuple[tuple[str, str], Answer] | None:
        try:
            address = parse_up(subject)
        except ValueError:
            return None
        with self._pool.connection() as connection:
            known = self._directory.find(connection, [address]).get((address.account, address.node))
        report = open_report(data, address, known)
        if isinstance(report, Refusal):
            self._metrics.reports.labels(kind="answer", result=report.value).inc()
            return None
        message = report_to_v2(report).message
        return ((address.account, address.node), message) if isinstance(message, Answer) else None


def _every_tenant(kind: str) -> str:
    """Return the part of EVERY_TENANT_UP that carries one kind of message."""
    return subjects.EVERY_TENANT_UP.removesuffix(">") + f"*.*.*.{kind}"
