"""A connection: a system that pipelines read or write, with references to the secrets that open it."""

from typing import ClassVar

from msgspec import UNSET, UnsetType, structs

from contracts.v2 import CustomerSignature, SystemConfig
from controlplane.domain.aggregate import Aggregate, Context
from controlplane.domain.event import DomainEvent, registered


@registered
class ConnectionConfigured(DomainEvent, frozen=True, kw_only=True):
    """The connection is now as said here, as a whole. `secrets` are references that only a node can resolve."""

    KIND: ClassVar[str] = "Connection"

    generation: int
    type: str
    config: SystemConfig
    secrets: dict[str, str]
    signature: CustomerSignature | UnsetType = UNSET


@registered
class ConnectionDeleted(DomainEvent, frozen=True, kw_only=True):
    """The connection is gone. Its name may be used again, with a higher generation."""

    KIND: ClassVar[str] = "Connection"

    generation: int


class Connection(Aggregate, frozen=True, kw_only=True):
    """One connection. `config` is None while it does not exist."""

    KIND: ClassVar[str] = "Connection"

    generation: int = 0
    type: str = ""
    config: SystemConfig | None = None
    secrets: dict[str, str] = {}
    signature: CustomerSignature | UnsetType = UNSET
    """The customer's own, under configuration and references; passed on as it is."""

    @property
    def exists(self) -> bool:
        """Say whether the connection is configured and not deleted."""
        return self.config is not None

    def configure(
        self,
        context: Context,
        *,
        type_: str,
        config: SystemConfig,
        secrets: dict[str, str],
        signature: CustomerSignature | UnsetType = UNSET,
    ) -> list[DomainEvent]:
        """Decide to make the connection as asked; nothing if it is so already."""
        if (self.type, self.config, self.secrets, self.signature) == (type_, config, secrets, signature):
            return []
        configured = self.event(
            ConnectionConfigured,
            context,
            generation=self.generation + 1,
            type=type_,
            config=config,
            secrets=dict(sorted(secrets.items())),
            signature=signature,
        )
        return [configured]

    def delete(self, context: Context) -> list[DomainEvent]:
        """Decide to delete the connection; nothing if it does not exist."""
        return [self.event(ConnectionDeleted, context, generation=self.generation + 1)] if self.exists else []

    def applied(self, event: DomainEvent) -> "Connection":
        """Return what `event` changes."""
        match event:
            case ConnectionConfigured():
                return structs.replace(
                    self,
                    generation=event.generation,
                    type=event.type,
                    config=event.config,
                    secrets=event.secrets,
                    signature=event.signature,
                )
            case ConnectionDeleted():
                return structs.replace(
                    self, generation=event.generation, type="", config=None, secrets={}, signature=UNSET
                )
            case _:
                return self
