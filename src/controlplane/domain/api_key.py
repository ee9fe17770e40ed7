"""An API key: who may call the API for a tenant, and in which role. Only the hash of its secret is ever stored."""

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, ClassVar

from msgspec import structs

from controlplane.domain.aggregate import Aggregate, Context
from controlplane.domain.event import DomainEvent, registered


@registered
class ApiKeyIssued(DomainEvent, frozen=True, kw_only=True):
    """A key was made. `name` is the key's id; `label` is what people call it; `hash` is the secret's SHA-256 in hex.

    `member` is the id of the person whose key it is, empty for a machine's. A `read_only` key changes nothing, whatever its role.
    """

    KIND: ClassVar[str] = "ApiKey"
    SCHEMA: ClassVar[int] = 2
    UPCASTS: ClassVar[Mapping[int, Callable[[dict[str, Any]], dict[str, Any]]]] = {
        1: lambda fields: {**fields, "member": "", "read_only": False}
    }

    key_id: str
    label: str
    hash: str
    role: str
    expires_at: datetime | None
    member: str
    read_only: bool


@registered
class ApiKeyRevoked(DomainEvent, frozen=True, kw_only=True):
    """The key opens nothing any more."""

    KIND: ClassVar[str] = "ApiKey"


class ApiKey(Aggregate, frozen=True, kw_only=True):
    """One key; its name is its id."""

    KIND: ClassVar[str] = "ApiKey"

    active: bool = False
    label: str = ""
    hash: str = ""
    role: str = ""
    expires_at: datetime | None = None
    member: str = ""
    read_only: bool = False

    @property
    def exists(self) -> bool:
        """Say whether the key was issued and not revoked. It may have expired."""
        return self.active

    def issue(
        self,
        context: Context,
        *,
        label: str,
        hash_: str,
        role: str,
        expires_at: datetime | None,
        member: str = "",
        read_only: bool = False,
    ) -> list[DomainEvent]:
        """Decide to issue the key. `hash_` is the SHA-256 of its secret, in hex."""
        issued = self.event(
            ApiKeyIssued,
            context,
            key_id=self.name,
            label=label,
            hash=hash_,
            role=role,
            expires_at=expires_at,
            member=member,
            read_only=read_only,
        )
        return [issued]

    def revoke(self, context: Context) -> list[DomainEvent]:
        """Decide to revoke the key; nothing if it is revoked already."""
        return [self.event(ApiKeyRevoked, context)] if self.active else []

    def applied(self, event: DomainEvent) -> "ApiKey":
        """Return what `event` changes."""
        match event:
            case ApiKeyIssued():
                return structs.replace(
                    self,
                    active=True,
                    label=event.label,
                    hash=event.hash,
                    role=event.role,
                    expires_at=event.expires_at,
                    member=event.member,
                    read_only=event.read_only,
                )
            case _:
                return structs.replace(self, active=False)
