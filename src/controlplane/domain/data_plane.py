"""A data plane: the nodes and the leaf that run a tenant's pipelines, usually in the customer's own network.

Nodes join with a token that is used once. Two requests that redeem the same token at the same moment both decide on the
same version of this aggregate, and the store lets only one of them save.
"""

from datetime import datetime
from enum import Enum
from typing import ClassVar

from msgspec import UNSET, Struct, UnsetType, structs

from controlplane.domain.aggregate import Aggregate, Context
from controlplane.domain.event import DomainEvent, registered

JOIN_TOKENS_KEPT_MAX = 500
"""How many tokens the aggregate remembers; the oldest ones are forgotten first, and a forgotten token is no token."""


class DataPlaneModel(Enum):
    """Who runs the data plane's machines."""

    MANAGED = "managed"
    BYOC = "byoc"
    SELF_MANAGED = "self_managed"


@registered
class DataPlaneCreated(DomainEvent, frozen=True, kw_only=True):
    """The data plane exists and waits for its first node."""

    KIND: ClassVar[str] = "DataPlane"

    generation: int
    model: DataPlaneModel
    region: str | UnsetType = UNSET
    """Where it is, as its owner calls it."""


@registered
class JoinTokenIssued(DomainEvent, frozen=True, kw_only=True):
    """One node may join until `expires_at` with the token whose SHA-256 in hex is `token_hash`."""

    KIND: ClassVar[str] = "DataPlane"

    token_hash: str
    expires_at: datetime


@registered
class JoinTokenRedeemed(DomainEvent, frozen=True, kw_only=True):
    """`node` joined with the token, which is used up."""

    KIND: ClassVar[str] = "DataPlane"

    token_hash: str
    node: str


@registered
class LeafEnrolled(DomainEvent, frozen=True, kw_only=True):
    """A leaf may link to the hub with the key whose public half is `leaf_key`."""

    KIND: ClassVar[str] = "DataPlane"

    leaf_key: str


@registered
class DataPlaneDeleted(DomainEvent, frozen=True, kw_only=True):
    """The data plane is gone. Its name may be used again."""

    KIND: ClassVar[str] = "DataPlane"

    generation: int


class JoinToken(Struct, frozen=True):
    """A token as the aggregate remembers it."""

    expires_at: datetime
    node: str | None = None
    """The node that used it."""


class DataPlane(Aggregate, frozen=True, kw_only=True):
    """One data plane."""

    KIND: ClassVar[str] = "DataPlane"

    created: bool = False
    generation: int = 0
    model: DataPlaneModel = DataPlaneModel.SELF_MANAGED
    region: str | UnsetType = UNSET
    tokens: dict[str, JoinToken] = {}
    leaf_keys: tuple[str, ...] = ()

    @property
    def exists(self) -> bool:
        """Say whether the data plane was created and not deleted."""
        return self.created

    def create(self, context: Context, model: DataPlaneModel, region: str | UnsetType = UNSET) -> list[DomainEvent]:
        """Decide to create the data plane, or to change its model or region; nothing if it is as asked."""
        if self.exists and (self.model, self.region) == (model, region):
            return []
        generation = self.generation + 1
        return [self.event(DataPlaneCreated, context, generation=generation, model=model, region=region)]

    def issue_token(self, context: Context, token_hash: str, expires_at: datetime) -> list[DomainEvent]:
        """Decide to let one node join."""
        return [self.event(JoinTokenIssued, context, token_hash=token_hash, expires_at=expires_at)]

    def redeem(self, context: Context, token_hash: str, node: str, leaf_key: str | None) -> list[DomainEvent]:
        """Decide that `node` joins with a token that the caller found valid, and with it perhaps the leaf."""
        events: list[DomainEvent] = [self.event(JoinTokenRedeemed, context, token_hash=token_hash, node=node)]
        if leaf_key is not None and leaf_key not in self.leaf_keys:
            events.append(self.after(events[0]).event(LeafEnrolled, context, leaf_key=leaf_key))
        return events

    def delete(self, context: Context) -> list[DomainEvent]:
        """Decide to delete the data plane; nothing if it does not exist."""
        return [self.event(DataPlaneDeleted, context, generation=self.generation + 1)] if self.exists else []

    def applied(self, event: DomainEvent) -> "DataPlane":
        """Return what `event` changes."""
        match event:
            case DataPlaneCreated():
                return structs.replace(
                    self, created=True, generation=event.generation, model=event.model, region=event.region
                )
            case JoinTokenIssued():
                tokens = {**self.tokens, event.token_hash: JoinToken(event.expires_at)}
                kept = dict(list(tokens.items())[-JOIN_TOKENS_KEPT_MAX:])
                return structs.replace(self, tokens=kept)
            case JoinTokenRedeemed():
                token = self.tokens.get(event.token_hash, JoinToken(event.at))
                tokens = {**self.tokens, event.token_hash: structs.replace(token, node=event.node)}
                return structs.replace(self, tokens=tokens)
            case LeafEnrolled():
                return structs.replace(self, leaf_keys=(*self.leaf_keys, event.leaf_key))
            case DataPlaneDeleted():
                return structs.replace(self, created=False, generation=event.generation, tokens={}, leaf_keys=())
            case _:
                return self
