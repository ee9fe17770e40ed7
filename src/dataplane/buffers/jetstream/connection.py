"""One connection of a half to the leaf's DATA account.

It is not mended: when it breaks, the session ends and the next one makes another, because what was on its way is
unknown and only the session's own rules can settle that.

Called by writer and reader. Every failure of nats-py becomes a `RetryLater` here.
"""

import asyncio
from collections.abc import Awaitable
from pathlib import Path
from typing import Any, TypeVar

import nats
import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.client import JetStreamContext

from contracts.codes import Code
from dataplane.failures import RetryLater
from dataplane.worker.protocol import BufferAccess

CONNECT_SECONDS_MAX = 5
API_SECONDS_MAX = 5.0
PENDING_BYTES_MAX = 8 << 20
"""What may wait in this process for the socket to take it."""

NO_RESPONDERS = "503"

Result = TypeVar("Result")


class LeafConnection:
    """The connection, and the one failure that ends its session."""

    def __init__(self, access: BufferAccess, name: str) -> None:
        self._access = access
        self._name = name
        self._client: Client | None = None
        self._failure: asyncio.Future[None] | None = None
        self._closing = False

    @property
    def client(self) -> Client:
        """The open client."""
        assert self._client is not None, "not open"
        return self._client

    @property
    def streams(self) -> JetStreamContext:
        """The client's JetStream calls."""
        context: JetStreamContext = self.client.jetstream(timeout=API_SECONDS_MAX)
        return context

    async def open(self) -> None:
        """Connect.

        Raises:
            RetryLater: the leaf does not answer or refuses the user, or the seed cannot be read.
        """
        self._failure = asyncio.get_running_loop().create_future()
        # Nobody has to look at it: whoever waits for something sees it there.
        self._failure.add_done_callback(lambda failure: failure.exception())
        try:
            self._client = await nats.connect(
                self._access.url,
                nkeys_seed_str=_seed(self._access),
                name=self._name,
                allow_reconnect=False,
                connect_timeout=CONNECT_SECONDS_MAX,
                error_cb=self._on_error,
                disconnected_cb=self._on_lost,
                closed_cb=self._on_lost,
                pending_size=PENDING_BYTES_MAX,
                max_outstanding_pings=2,
                ping_interval=10,
            )
        except (TimeoutError, OSError, nats.errors.Error) as error:
            raise unreachable(error) from error

    def fail(self, failure: Exception) -> None:
        """Let everyone who waits on this connection raise `failure`; the first one stays."""
        if self._failure is not None and not self._failure.done():
            self._failure.set_exception(failure)

    @property
    def failed(self) -> "asyncio.Future[None]":
        """Raises what `fail` was given; never returns."""
        assert self._failure is not None, "not open"
        return self._failure

    def check(self) -> None:
        """Raise what `fail` was given, if it was."""
        if self.failed.done():
            self.failed.result()

    async def race(self, work: Awaitable[Result], seconds_max: float | None = None) -> Result:
        """Await `work` unless the connection fails first.

        Raises:
            TimeoutError: it took longer than `seconds_max`.
        """
        task = asyncio.ensure_future(work)
        either: set[asyncio.Future[Any]] = {task, self.failed}
        try:
            await asyncio.wait(either, timeout=seconds_max, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            self.check()
            raise TimeoutError
        finally:
            if not task.done():
                task.cancel()

    async def call(self, work: Awaitable[Result]) -> Result:
        """Await a call of nats-py.

        Raises:
            RetryLater: it failed or was not answered.
        """
        try:
            return await self.race(work)
        except (TimeoutError, OSError, nats.errors.Error) as error:
            raise unreachable(error) from error

    async def close(self) -> None:
        """Flush what is on its way and disconnect."""
        self._closing = True
        if self._client is not None and not self._client.is_closed:
            await self._client.close()

    async def _on_error(self, error: Exception) -> None:
        if not self._closing:
            self.fail(unreachable(error))

    async def _on_lost(self) -> None:
        if not self._closing:
            self.fail(RetryLater(Code.BUFFER_UNREACHABLE, "the connection to the leaf was lost"))


def _seed(access: BufferAccess) -> str:
    return Path(access.seed_file).read_text().strip()


def unreachable(error: BaseException) -> RetryLater:
    """Return the failure that an error of nats-py means."""
    return RetryLater(Code.BUFFER_UNREACHABLE, f"{type(error).__name__}: {error}")


def status_of(message: Msg) -> str | None:
    """Return the server's status code, if this is a message of its own and not of a stream."""
    headers: dict[str, Any] | None = message.header
    return headers.get("Status") if headers else None
