"""How every write runs: decide on what is known, commit if nobody was faster, otherwise look again.

A decision is a function of an `Attempt` (the time, who asks, the tenant's catalogue, aggregates on demand). It gives
events and an answer, or raises `Refused`. The events, the catalogue's rows and the record of an Idempotency-Key commit
in one transaction. Everything slow is done before it. Called on worker threads, never on the event loop.
"""

import logging
import random
import threading
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from secrets import token_hex
from typing import Any, TypeVar

import msgspec
import psycopg
from eventsourcing.domain import datetime_now_with_tzinfo
from eventsourcing.persistence import PersistenceError
from msgspec import Struct
from psycopg_pool import PoolTimeout

from controlplane import manifests
from controlplane.access.roles import Principal
from controlplane.commands import catalogue
from controlplane.commands.catalogue import Catalogue
from controlplane.commit_rows import IdempotencyRecord, PersonalData
from controlplane.domain import Aggregate, Context, DomainEvent
from controlplane.domain.aggregate import HistoryUnreadableError, fold
from controlplane.projection import Pool
from controlplane.refusals import Refused
from controlplane.row_security import Scope, scoped
from controlplane.store import ConflictError, EventStore, IdempotencyConflictError

ATTEMPTS_MAX = 12
RETRY_SECONDS_MAX = 0.005
TURNS = 64
"""Locks that tenants' repeated writes share by the hash of the tenant."""
IDEMPOTENCY_HOURS = 24
"""How long an Idempotency-Key is remembered."""
PURGE_ROWS_MAX = 1000
PURGE_EVERY_SECONDS = 600.0

DATABASE_ERRORS = (PersistenceError, psycopg.OperationalError, psycopg.InterfaceError, PoolTimeout)
"""What the library and the driver raise when the database does not answer."""

_log = logging.getLogger(__name__)

SomeAggregate = TypeVar("SomeAggregate", bound=Aggregate)


class WriteOptions(Struct, frozen=True, kw_only=True):
    """What a request says about how it wants to be carried out."""

    if_match: tuple[str, ...] = ()
    """ETags of which one must be the current one; `*` asks only that the resource exists."""
    if_none_match: bool = False
    """The resource must not exist yet."""
    idempotency_key: str | None = None
    request_digest: str = ""
    """SHA-256 of method, address and body: what may be repeated under one Idempotency-Key."""
    dry_run: bool = False


class Step(Struct, frozen=True):
    """An aggregate as it was, and the events that it decided on."""

    before: Aggregate
    events: Sequence[DomainEvent]

    @property
    def after(self) -> Aggregate:
        """The aggregate as the events make it."""
        return fold(self.before, self.events)


class Decision(Struct, frozen=True, kw_only=True):
    """What a command decided: steps to commit, and what to answer. `body` holds no secret."""

    steps: Sequence[Step]
    body: dict[str, Any]
    status: int = 200
    subject: Aggregate | None = None
    """The resource that the answer shows, as it is after the steps."""
    person: PersonalData | None = None
    """What is to be known, or forgotten, of a person with the same commit. It is neither in the events nor in `body`."""

    @classmethod
    def showing(
        cls,
        subject: Aggregate,
        steps: Sequence[Step],
        *,
        status: int = 200,
        warnings: Sequence[str] = (),
        effects: Sequence[str] = (),
        person: PersonalData | None = None,
    ) -> "Decision":
        """Return a decision whose answer is a resource."""
        body = {**manifests.resource(subject, revision=0), "warnings": list(warnings)}
        if effects:
            body["effects"] = list(effects)
        return cls(steps=steps, body=body, status=status, subject=subject, person=person)


class Outcome(Struct, frozen=True, kw_only=True):
    """What came of a write. `nonce` gives back the secret of a key or token that was made, if one was."""

    status: int
    body: dict[str, Any]
    revision: int
    changed: bool
    replayed: bool = False
    nonce: str = ""
    subject: Aggregate | None = None
    """The resource as it is after the write; None for a repeated request, whose resource may be gone."""


class Attempt:
    """One try to decide: what was read for it, and whether the catalogue was looked at."""

    def __init__(self, store: EventStore, pool: Pool, principal: Principal, at: datetime, nonce: str) -> None:
        self.principal = principal
        self.context = Context(principal.actor, at)
        self.nonce = nonce
        self._store = store
        self._pool = pool
        self._catalogue: Catalogue | None = None

    @property
    def tenant(self) -> str:
        """The tenant that the caller was authenticated for."""
        return self.principal.tenant

    @property
    def at(self) -> datetime:
        """The moment of the decision, which its events carry."""
        return self.context.at

    @property
    def catalogue(self) -> Catalogue:
        """The tenant's live documents. Looking at them makes the commit depend on them."""
        if self._catalogue is None:
            self._catalogue = catalogue.read(self._pool, self.tenant)
        return self._catalogue

    @property
    def catalogue_seen(self) -> Catalogue | None:
        """The catalogue, if the decision looked at it."""
        return self._catalogue

    def load(self, fresh: SomeAggregate) -> SomeAggregate:
        """Return an aggregate as its events made it."""
        return self._store.load(fresh)

    def revision_of(self, aggregate: Aggregate) -> int:
        """Return the id of an aggregate's newest event."""
        return self._store.revision_of(aggregate.id)


Decide = Callable[[Attempt], Decision]


class WritePath:
    """Runs decisions. `committed` is called after each commit of events, with the id of the last one."""

    def __init__(
        self,
        store: EventStore,
        pool: Pool,
        committed: Callable[[int], None],
        *,
        clock: Callable[[], datetime] = datetime_now_with_tzinfo,
        observe: Callable[[str], None] = lambda outcome: None,
    ) -> None:
        self._store = store
        self._pool = pool
        self._committed = committed
        self._clock = clock
        self._observe = observe
        self._purged_at = 0.0
        self._turns = [threading.Lock() for _ in range(TURNS)]

    def run(self, principal: Principal, decide: Decide, options: WriteOptions | None = None) -> Outcome:
        """Carry out a write.

        Raises:
            Refused: the decision's own refusals; idempotency_key_reused; write_conflict after ATTEMPTS_MAX tries;
                database_unavailable; history_unreadable.
        """
        options = options or WriteOptions()
        try:
            outcome = self._run(principal, decide, options)
        except Refused as refusal:
            self._observe(refusal.code)
            raise
        except DATABASE_ERRORS as error:
            self._observe("database_unavailable")
            _log.warning("a write did not reach the database: %s", type(error).__name__)
            raise Refused("database_unavailable", "The write's outcome is unknown.") from error
        except HistoryUnreadableError as error:
            self._observe("history_unreadable")
            _log.error("%s", error)
            raise Refused("history_unreadable", "An event of the resource cannot be read.") from error
        self._observe("replayed" if outcome.replayed else "changed" if outcome.changed else "unchanged")
        return outcome

    def _run(self, principal: Principal, decide: Decide, options: WriteOptions) -> Outcome:
        nonce = token_hex(16)
        outcome = self._try(principal, decide, options, nonce)
        if outcome is not None:
            return outcome
        # Somebody was faster. From here on the writers of this process take turns within a tenant, so that they lose only
        # to other processes and to those who try for the first time.
        with self._turns[hash(principal.tenant) % len(self._turns)]:
            for _ in range(1, ATTEMPTS_MAX):
                time.sleep(random.uniform(0, RETRY_SECONDS_MAX))  # noqa: S311 - spreads retries, protects nothing
                outcome = self._try(principal, decide, options, nonce)
                if outcome is not None:
                    return outcome
        raise Refused("write_conflict", f"{ATTEMPTS_MAX} tries met other writes.")

    def _try(self, principal: Principal, decide: Decide, options: WriteOptions, nonce: str) -> Outcome | None:
        """Decide and commit once; None if somebody else committed in between."""
        if options.idempotency_key is not None and not options.dry_run:
            replay = self._replay(principal.tenant, options)
            if replay is not None:
                return replay
        attempt = Attempt(self._store, self._pool, principal, self._clock(), nonce)
        decision = decide(attempt)
        try:
            return self._commit(attempt, decision, options)
        except (ConflictError, IdempotencyConflictError):
            return None

    def _commit(self, attempt: Attempt, decision: Decision, options: WriteOptions) -> Outcome:
        events = [event for step in decision.steps for event in step.events]
        if options.dry_run:
            return Outcome(
                status=200,
                body=decision.body,
                revision=0,
                changed=bool(events),
                nonce=attempt.nonce,
                subject=decision.subject,
            )
        afters = [step.after for step in decision.steps]
        changes = [
            change
            for step, after in zip(decision.steps, afters, strict=True)
            if (change := catalogue.change(step.before, after)) is not None
        ]
        guard = None
        if events and (changes or attempt.catalogue_seen is not None):
            guard = attempt.catalogue.guard
        seen = 0 if events or not decision.steps else attempt.revision_of(decision.steps[0].before)
        record = self._record(attempt, decision, options, seen)
        revision = seen
        if events or record is not None:
            saved = self._store.save(
                afters,
                events,
                tenant=attempt.tenant,
                guard=guard,
                catalogue=changes,
                idempotency=record,
                person=decision.person,
            )
            revision = saved or seen
        if events:
            self._committed(revision)
        return Outcome(
            status=decision.status,
            body=decision.body,
            revision=revision,
            changed=bool(events),
            nonce=attempt.nonce,
            subject=decision.subject,
        )

    def _record(
        self, attempt: Attempt, decision: Decision, options: WriteOptions, seen: int
    ) -> IdempotencyRecord | None:
        if options.idempotency_key is None:
            return None
        self._purge()
        return IdempotencyRecord(
            tenant=attempt.tenant,
            key=options.idempotency_key,
            request_digest=options.request_digest,
            nonce=attempt.nonce,
            status=decision.status,
            body=msgspec.json.encode(decision.body).decode(),
            revision=seen,
            at=attempt.at,
        )

    def _replay(self, tenant: str, options: WriteOptions) -> Outcome | None:
        """Return what was answered before under this key, if it was.

        Raises:
            Refused: idempotency_key_reused, for another request under the same key.
        """
        with self._pool.connection() as connection, scoped(connection, Scope(tenant=tenant)):
            row = connection.execute(
                "SELECT request_digest, nonce, status, body, revision FROM idempotency_records"
                " WHERE tenant = %s AND key = %s AND at > %s",
                [tenant, options.idempotency_key, self._clock() - timedelta(hours=IDEMPOTENCY_HOURS)],
            ).fetchone()
        if row is None:
            return None
        digest, nonce, status, body, revision = row
        if digest != options.request_digest:
            raise Refused("idempotency_key_reused", "The key belongs to a request with another address or body.")
        return Outcome(
            status=status,
            body=msgspec.json.decode(body),
            revision=revision,
            changed=False,
            replayed=True,
            nonce=nonce,
        )

    def _purge(self) -> None:
        """Forget old keys, whosever they are, a bounded number at a time and rarely."""
        if time.monotonic() - self._purged_at < PURGE_EVERY_SECONDS and self._purged_at:
            return
        self._purged_at = time.monotonic()
        with self._pool.connection() as connection:
            connection.execute(
                "DELETE FROM idempotency_records WHERE (tenant, key) IN"
                " (SELECT tenant, key FROM idempotency_records WHERE at <= %s ORDER BY at LIMIT %s)",
                [self._clock() - timedelta(hours=IDEMPOTENCY_HOURS), PURGE_ROWS_MAX],
            )


def check_preconditions(options: WriteOptions, aggregate: Aggregate) -> None:
    """Compare If-Match and If-None-Match with a resource as it is now.

    Raises:
        Refused: stale_generation or already_exists.
    """
    if options.if_none_match and aggregate.exists:
        raise Refused("already_exists", f"{aggregate.KIND} {aggregate.name} exists.")
    if not options.if_match:
        return
    if not aggregate.exists:
        raise Refused("stale_generation", f"{aggregate.KIND} {aggregate.name} does not exist.")
    current = str(getattr(aggregate, "generation", aggregate.version))
    if "*" not in options.if_match and current not in options.if_match:
        raise Refused("stale_generation", f"{aggregate.KIND} {aggregate.name} is at generation {current}.")


def check_exists(aggregate: Aggregate) -> None:
    """Refuse to act on a resource that is not there.

    Raises:
        Refused: not_found.
    """
    if not aggregate.exists:
        raise Refused("not_found", f"{aggregate.KIND} {aggregate.name} does not exist.")
