"""The control plane's connection to the hub: kept up for ever, and the hub's claims kept right.

Two users of two accounts: one may push claims and nothing else, the other sees what tenants send and publishes to them.
Every connect may be to a hub that was just started, perhaps with an empty folder, so each one pushes every tenant's
claims again before it counts as connected; again every few minutes, in case a hub lost them unseen. Where leaves come by
certificates, a revoked one that is connected is cut here too: claims alone would only keep it from coming back.
"""

import asyncio
import contextlib
import logging
import random
from collections.abc import Awaitable, Callable, Mapping

import msgspec
import nats.errors
from msgspec import Struct
from nats.aio.client import Client, RawCredentials
from nats.aio.msg import Msg

from contracts.keys import KeyPair
from controlplane.channel import jwt
from controlplane.channel.accounts import Accounts
from controlplane.channel.leaf_links import LeafLinks, Link
from controlplane.channel.metrics import ChannelMetrics

CLAIMS_SUBJECT = "$SYS.REQ.CLAIMS.UPDATE"
LEAVES_SUBJECT = "$SYS.REQ.SERVER.PING.LEAFZ"
CONNECTS_SUBJECT = "$SYS.ACCOUNT.*.CONNECT"
CLAIMS_SECONDS_MAX = 5.0
CLAIMS_IN_FLIGHT_MAX = 16
CLAIMS_AGAIN_SECONDS = 300.0
RECONNECT_SECONDS_MAX = 3.0
CANCEL_SECONDS = 1.0
SENDING_BYTES_MAX = 16 << 20
"""What may wait to be written to the hub; beyond it messages are dropped, and nodes find out by their next sync."""
PENDING_MESSAGES_MAX = 4_096

_log = logging.getLogger(__name__)
_NATS_ERRORS = (nats.errors.Error, OSError, TimeoutError)

Handler = Callable[[Msg], Awaitable[None]]
TenantClaims = Callable[[], Awaitable[Mapping[str, Mapping[str, int]]]]
"""Every tenant, and of each the leaves' keys that are revoked with the time since when."""


class _ClaimsError(Struct, frozen=True):
    code: int = 0
    description: str = ""


class _ClaimsAnswer(Struct, frozen=True):
    error: _ClaimsError | None = None


class HubLink:
    """The connection. `handlers` maps (subject, queue group or '') to what takes its messages."""

    def __init__(
        self,
        url: str,
        accounts: Accounts,
        claims: TenantClaims,
        handlers: Mapping[tuple[str, str], Handler],
        metrics: ChannelMetrics,
    ) -> None:
        self._url = url
        self._accounts = accounts
        self._claims = claims
        self._handlers = handlers
        self._metrics = metrics
        self._client: Client | None = None
        self._system: Client | None = None
        self._task: asyncio.Task[None] | None = None
        self._stopping = False
        self._leaves = LeafLinks()
        self.connects_total = 0

    @property
    def is_connected(self) -> bool:
        """Whether messages pass in both directions and the hub has every tenant's claims."""
        return self._client is not None and self._client.is_connected

    def start(self) -> None:
        """Begin to connect, in the background and for ever."""
        self._task = asyncio.create_task(self._run(), name="hub-link")

    async def stop(self) -> None:
        """End the connection."""
        self._stopping = True
        if self._task is not None:
            while not self._task.done():  # a wait within the NATS client may swallow one cancellation
                self._task.cancel()
                await asyncio.wait({self._task}, timeout=CANCEL_SECONDS)
            self._task = None

    async def publish(self, subject: str, data: bytes) -> None:
        """Publish, if the hub is there and keeps up; otherwise the message is dropped and counted."""
        client = self._client
        if client is None or not client.is_connected or client.pending_data_size > SENDING_BYTES_MAX:
            self._metrics.not_sent.inc()
            return
        try:
            await client.publish(subject, data)
        except _NATS_ERRORS:
            self._metrics.not_sent.inc()

    async def push_claims(self, tenant: str, revoked: Mapping[str, int]) -> bool:
        """Give the hub a tenant's claims; return whether it took them. A hub that is away gets them at its return."""
        system = self._system
        if system is None:
            return False
        token = self._accounts.tenant_jwt(tenant, revoked)
        try:
            reply = await system.request(CLAIMS_SUBJECT, token.encode(), timeout=CLAIMS_SECONDS_MAX)
            answer = msgspec.json.decode(reply.data, type=_ClaimsAnswer)
        except (*_NATS_ERRORS, msgspec.DecodeError) as error:
            _log.warning("the hub did not take the claims of tenant %s: %s", tenant, type(error).__name__)
            return False
        if answer.error is not None:
            _log.error(
                "the hub refused the claims of tenant %s: %d %s", tenant, answer.error.code, answer.error.description
            )
            return False
        self._metrics.claims_pushed.inc()
        if self._accounts.certificates:
            await self._cut_revoked(system, tenant, revoked)
        return True

    async def _cut_revoked(self, system: Client, tenant: str, revoked: Mapping[str, int]) -> None:
        account = self._accounts.account_key(tenant)
        if not self._leaves.revoke(account, revoked):
            return
        try:
            asked = msgspec.json.encode({"account": account})
            listed = await system.request(LEAVES_SUBJECT, asked, timeout=CLAIMS_SECONDS_MAX)
            for link in self._leaves.to_cut(account, listed.data):
                await self._cut(system, link)
        except _NATS_ERRORS as error:
            _log.warning("the hub did not say who of tenant %s is connected: %s", tenant, type(error).__name__)

    async def _cut(self, system: Client, link: Link) -> None:
        _log.info("cutting connection %d of a revoked leaf", link.number)
        cut = msgspec.json.encode({"cid": link.number})
        # A request, because the hub does nothing for a message that names nobody to answer.
        await system.request(f"$SYS.REQ.SERVER.{link.server}.KICK", cut, timeout=CLAIMS_SECONDS_MAX)

    async def _on_connect(self, message: Msg) -> None:
        link = self._leaves.connected(message.data)
        system = self._system
        if link is not None and system is not None:
            with contextlib.suppress(*_NATS_ERRORS):
                await self._cut(system, link)

    async def _run(self) -> None:
        failures = 0
        while not self._stopping:
            try:
                await self._connected_once()
                failures = 0
            except _NATS_ERRORS as error:
                _log.debug("no connection to the hub: %s", error)
                failures += 1
            wait = min(RECONNECT_SECONDS_MAX, 0.1 * 2 ** min(failures, 8))
            await asyncio.sleep(wait * random.uniform(0.8, 1.2))  # noqa: S311 - spreads load, keeps no secret

    async def _connected_once(self) -> None:
        ended = asyncio.Event()
        opened: list[Client] = []
        try:
            system = await self._connect("claims", *self._accounts.system_user(), ended)
            opened.append(system)
            self._system = system
            if self._accounts.certificates:
                await system.subscribe(CONNECTS_SUBJECT, cb=self._on_connect, pending_msgs_limit=PENDING_MESSAGES_MAX)
            await self._push_all()
            client = await self._connect("control-plane", *self._accounts.control_user(), ended)
            opened.append(client)
            for (subject, queue), handler in self._handlers.items():
                await client.subscribe(subject, queue=queue, cb=handler, pending_msgs_limit=PENDING_MESSAGES_MAX)
            await client.flush()
            self._client = client
            self._metrics.hub_connects.inc()
            self.connects_total += 1
            _log.info("connected to the hub")
            while not ended.is_set():
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(CLAIMS_AGAIN_SECONDS):
                        await ended.wait()
                if not ended.is_set():
                    await self._push_all()
            _log.warning("the connection to the hub has ended")
        finally:
            self._client = self._system = None
            for each in opened:
                with contextlib.suppress(*_NATS_ERRORS):
                    await each.close()

    async def _connect(self, name: str, token: str, key: KeyPair, ended: asyncio.Event) -> Client:
        async def on_closed() -> None:
            ended.set()

        async def on_error(error: Exception) -> None:
            _log.debug("hub: %s", error)

        client = Client()
        try:
            await client.connect(
                self._url,
                name=name,
                user_credentials=RawCredentials(jwt.credentials(token, key.seed)),
                allow_reconnect=False,
                connect_timeout=2,
                ping_interval=5,
                max_outstanding_pings=2,
                error_cb=on_error,
                closed_cb=on_closed,
            )
        except BaseException:
            await client.close()  # a connect that fails leaves its socket open
            raise
        return client

    async def _push_all(self) -> None:
        """Push every tenant's claims, a few at a time.

        Raises:
            OSError: the database does not answer, or the hub refused: the connection does not count as one.
        """
        waiting = asyncio.Semaphore(CLAIMS_IN_FLIGHT_MAX)

        async def push(tenant: str, revoked: Mapping[str, int]) -> bool:
            async with waiting:
                return await self.push_claims(tenant, revoked)

        taken = await asyncio.gather(*(push(tenant, revoked) for tenant, revoked in (await self._claims()).items()))
        if not all(taken):
            raise ConnectionError("the hub did not take every tenant's claims")
