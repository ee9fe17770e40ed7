"""A node: one agent of a data plane, known by the public half of a key that it made itself."""

from typing import ClassVar

from msgspec import structs

from controlplane.domain.aggregate import Aggregate, Context
from controlplane.domain.event import DomainEvent, registered


@registered
class NodeEnrolled(DomainEvent, frozen=True, kw_only=True):
    """The node joined. `key` is its nkey's public half, `contract` the highest contract version that it speaks."""

    KIND: ClassVar[str] = "Node"

    data_plane: str
    key: str
    contract: int


@registered
class NodeRevoked(DomainEvent, frozen=True, kw_only=True):
    """Nothing that the node signs is believed any more. Its name may join again with a new token."""

    KIND: ClassVar[str] = "Node"


class Node(Aggregate, frozen=True, kw_only=True):
    """One node; its name is unique within the tenant."""

    KIND: ClassVar[str] = "Node"

    enrolled: bool = False
    data_plane: str = ""
    key: str = ""
    contract: int = 0

    @property
    def exists(self) -> bool:
        """Say whether the node is enrolled and not revoked."""
        return self.enrolled

    def enrol(self, context: Context, *, data_plane: str, key: str, contract: int) -> list[DomainEvent]:
        """Decide to enrol the node. The caller has checked that the name is free or that it is the same key."""
        if (self.enrolled, self.data_plane, self.key, self.contract) == (True, data_plane, key, contract):
            return []
        return [self.event(NodeEnrolled, context, data_plane=data_plane, key=key, contract=contract)]

    def revoke(self, context: Context) -> list[DomainEvent]:
        """Decide to revoke the node; nothing if it is not enrolled."""
        return [self.event(NodeRevoked, context)] if self.enrolled else []

    def applied(self, event: DomainEvent) -> "Node":
        """Return what `event` changes."""
        match event:
            case NodeEnrolled():
                return structs.replace(
                    self,
                    enrolled=True,
                    data_plane=event.data_plane,
                    key=event.key,
                    contract=event.contract,
                )
            case _:
                return structs.replace(self, enrolled=False)
