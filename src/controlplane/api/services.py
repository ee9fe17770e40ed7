"""What the controllers need, passed in by the composition root, and how they run what is synchronous.

Everything that touches the database runs on a bounded pool of threads; the event loop only waits.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Any, Protocol, TypeVar

from contracts import v2
from contracts.keys import KeyPair
from contracts.subjects import UpAddress
from controlplane.access.limits import FailureLimit, RequestLimit
from controlplane.access.secrets import SecretMaker
from controlplane.api.key_uses import KeyUses
from controlplane.commands import WritePath
from controlplane.commands.write_path import DATABASE_ERRORS
from controlplane.domain import Aggregate
from controlplane.metrics import Metrics
from controlplane.projection import Pool, ProjectionRunner
from controlplane.refusals import Refused
from controlplane.row_security import Scope, scoped

THREADS_MAX = 8
AT_LEAST_SECONDS_MAX = 2.0
AFTER_WRITE_SECONDS_MAX = 0.25
"""How long a write's answer waits for the read model, so that a read that follows finds it. Not waiting is no failure."""
_POLL_SECONDS = 0.003

Result = TypeVar("Result")


class Accounts(Protocol):
    """What enrolment needs of the channel's accounts."""

    @property
    def root_key(self) -> str:
        """The key that nodes pin."""

    def account_key(self, tenant: str) -> str:
        """The tenant's account at the hub."""

    def leaf_credentials(self, tenant: str, data_plane: str, leaf_key: str) -> str:
        """The token with which a leaf links."""

    def trust_document(self, tenant: str, data_plane: str) -> str:
        """The signed list of trusted keys."""


class Certificates(Protocol):
    """What enrolment needs of the channel's authorities."""

    def for_leaf(self, tenant: str, data_plane: str, leaf_key: str, tls_key: str, proof: str) -> str | None:
        """A leaf's certificate. Raises ValueError without a proof that the TLS key is the leaf's."""


class Renewing(Protocol):
    """Answers a node that asks for its leaf's next certificate as it does over the channel."""

    def __call__(self, address: UpAddress, data: bytes) -> bytes:
        """Return the channel's answer to the signed request `data` of the node at `address`."""


class Asking(Protocol):
    """Asks a node something interactive."""

    def __call__(
        self,
        tenant: str,
        data_plane: str,
        node: str,
        topic: v2.QuestionTopic,
        name: str,
        seconds_max: float | None = None,
    ) -> Awaitable[v2.Answer | v2.Diagnosis]:
        """Return the answer. Raises the channel's NodeSilent when none comes in time."""


class Services:
    """One per process. `resources` and `audit` are the runners whose tables the API reads.

    `pool` acts as the API's role in the database. `load` gives an aggregate as its own events make it, for a
    tenant whose read model has stopped.
    """

    def __init__(
        self,
        *,
        pool: Pool,
        write_path: WritePath,
        load: Callable[[Aggregate], Aggregate],
        secrets: SecretMaker,
        accounts: Accounts,
        checkpoint_key: KeyPair,
        certificates: Certificates,
        certificates_required: bool,
        renew: Renewing,
        hub_leaf_url: str,
        operator_key_sha256: str,
        resources: ProjectionRunner,
        audit: ProjectionRunner,
        runners: Callable[[], Sequence[ProjectionRunner]],
        latest: Callable[[], int],
        ask: Asking,
        channel_ready: Callable[[], bool],
        channel_notes: Callable[[], Sequence[str]],
        metrics: Metrics,
        key_uses: KeyUses,
        clock: Callable[[], datetime],
    ) -> None:
        self.pool = pool
        self.write_path = write_path
        self.load = load
        self.secrets = secrets
        self.accounts = accounts
        self.checkpoint_key = checkpoint_key
        self.certificates = certificates
        self.certificates_required = certificates_required
        self.renew = renew
        self.hub_leaf_url = hub_leaf_url
        self.operator_key_sha256 = operator_key_sha256
        self.resources = resources
        self.audit = audit
        self.runners = runners
        self.latest = latest
        self.ask = ask
        self.channel_ready = channel_ready
        self.channel_notes = channel_notes
        self.metrics = metrics
        self.key_uses = key_uses
        self.failures = FailureLimit()
        self.requests = RequestLimit()
        self.clock = clock
        self._threads = ThreadPoolExecutor(THREADS_MAX, thread_name_prefix="api")

    def close(self) -> None:
        """Start no more work. What runs ends by itself: every wait for the database is bounded."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def run(self, work: Callable[..., Result], *arguments: Any) -> Result:
        """Run `work` on a thread.

        Raises:
            Refused: database_unavailable, and whatever `work` refuses.
        """
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work, *arguments)
        except DATABASE_ERRORS as error:
            raise Refused("database_unavailable", "The control plane's database does not answer.") from error

    async def query(self, scope: Scope, read: Callable[..., Result], *arguments: Any) -> Result:
        """Run `read(connection, *arguments)` on a thread, in a transaction that sees the rows of `scope` only.

        Raises:
            Refused: database_unavailable.
        """

        def with_connection() -> Result:
            with self.pool.connection() as connection, scoped(connection, scope, read_only=True):
                return read(connection, *arguments)

        return await self.run(with_connection)

    async def wait_for(self, runner: ProjectionRunner, revision: int) -> None:
        """Wait until a read model has come to `revision`.

        Raises:
            Refused: projection_behind, after AT_LEAST_SECONDS_MAX.
        """
        if not await self._waited(runner, revision, AT_LEAST_SECONDS_MAX):
            raise Refused("projection_behind", f"The read model is at {runner.position}, before {revision}.")

    def check_read_model(self, tenant: str) -> None:
        """Refuse to show resources that have stopped moving: a status would stay green for ever.

        Raises:
            Refused: read_model_unavailable.
        """
        if tenant in self.resources.quarantined:
            raise Refused("read_model_unavailable", "The read model of this tenant has stopped at an event.")

    async def settle(self, revision: int) -> None:
        """Give what can be read a moment to come to what was just written."""
        for runner in (self.resources, self.audit):
            await self._waited(runner, revision, AFTER_WRITE_SECONDS_MAX)

    async def _waited(self, runner: ProjectionRunner, revision: int, seconds: float) -> bool:
        end = asyncio.get_running_loop().time() + seconds
        while runner.position < revision:
            if asyncio.get_running_loop().time() > end:
                return False
            await asyncio.sleep(_POLL_SECONDS)
        return True
