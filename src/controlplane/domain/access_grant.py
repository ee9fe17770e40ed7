"""An access grant: a tenant lets the vendor's operators read its configuration, for a while. Every read is an event of it."""

from datetime import datetime
from typing import ClassVar

from msgspec import structs

from controlplane.domain.aggregate import Aggregate, Context
from controlplane.domain.event import DomainEvent, registered


@registered
class AccessGranted(DomainEvent, frozen=True, kw_only=True):
    """The vendor's operators may read until `expires_at`."""

    KIND: ClassVar[str] = "AccessGrant"

    expires_at: datetime


@registered
class AccessUsed(DomainEvent, frozen=True, kw_only=True):
    """The actor, who is one of the vendor's, read something: `operation` is the route's id, `subject` the name in its address."""

    KIND: ClassVar[str] = "AccessGrant"

    operation: str
    subject: str


@registered
class AccessRevoked(DomainEvent, frozen=True, kw_only=True):
    """The tenant ended the grant before its time."""

    KIND: ClassVar[str] = "AccessGrant"


class AccessGrant(Aggregate, frozen=True, kw_only=True):
    """One grant. `uses` counts what was read under it since it was given."""

    KIND: ClassVar[str] = "AccessGrant"

    given: bool = False
    expires_at: datetime | None = None
    uses: int = 0

    @property
    def exists(self) -> bool:
        """Say whether the grant was given and not revoked. It may have expired."""
        return self.given

    def opens(self, at: datetime) -> bool:
        """Say whether the grant lets somebody read at the moment `at`."""
        return self.given and self.expires_at is not None and at < self.expires_at

    def give(self, context: Context, expires_at: datetime) -> list[DomainEvent]:
        """Decide to give the grant, or to give it anew until another time."""
        return [self.event(AccessGranted, context, expires_at=expires_at)]

    def use(self, context: Context, operation: str, subject: str) -> list[DomainEvent]:
        """Decide that something is read. The caller has found the grant open."""
        return [self.event(AccessUsed, context, operation=operation, subject=subject)]

    def revoke(self, context: Context) -> list[DomainEvent]:
        """Decide to end the grant; nothing if it is ended already."""
        return [self.event(AccessRevoked, context)] if self.given else []

    def applied(self, event: DomainEvent) -> "AccessGrant":
        """Return what `event` changes."""
        match event:
            case AccessGranted():
                return structs.replace(self, given=True, expires_at=event.expires_at, uses=0)
            case AccessUsed():
                return structs.replace(self, uses=self.uses + 1)
            case _:
                return structs.replace(self, given=False)
