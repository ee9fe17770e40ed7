"""A tenant: whoever owns data planes, connections and pipelines. Nothing of one tenant is visible to another."""

from typing import ClassVar
from uuid import UUID

from msgspec import structs

from contracts.names import resource_id
from controlplane.domain.aggregate import Aggregate, Context
from controlplane.domain.event import DomainEvent, registered


@registered
class TenantCreated(DomainEvent, frozen=True, kw_only=True):
    """The vendor's operator made a tenant. `tenant` is its id, `name` what the operator calls it."""

    KIND: ClassVar[str] = "Tenant"


def tenant_id(name: str) -> UUID:
    """Return the id of the tenant of that name. Names are unique, so the id follows from the name."""
    return resource_id("operator", "Tenant", name)


class Tenant(Aggregate, frozen=True, kw_only=True):
    """One tenant."""

    KIND: ClassVar[str] = "Tenant"

    created: bool = False

    @property
    def exists(self) -> bool:
        """Say whether the tenant was created."""
        return self.created

    @classmethod
    def named(cls, name: str) -> "Tenant":
        """Return the tenant of that name as it is before its first event."""
        return cls.new(str(tenant_id(name)), name)

    @classmethod
    def address(cls, tenant: str, name: str) -> UUID:
        """Return the id of the tenant's stream: the tenant's own id."""
        return UUID(tenant)

    def create(self, context: Context) -> list[DomainEvent]:
        """Decide to create the tenant."""
        return [] if self.exists else [self.event(TenantCreated, context)]

    def applied(self, event: DomainEvent) -> "Tenant":
        """Return what `event` changes."""
        return structs.replace(self, created=True)
