"""Which leaf is at the other end of which of the hub's connections, and which connections must be cut.

A leaf that was let in by its certificate is known to the hub under a name that the control plane gave it, its key; pushing
claims that revoke the key then keeps it from coming back, but cuts nothing. So the hub's own messages about connects are
heard, and who is revoked is cut by the number of its connection. Decides without I/O; the connection to the hub feeds it.

Several processes of the control plane hear the same messages. A connection that was there before us is unknown: of a
tenant that has revoked leaves it is cut as well, once, and an honest leaf is back within a second.
"""

from collections.abc import Mapping

import msgspec
from msgspec import Struct

LINKS_MAX = 50_000
"""How many connections are remembered; the oldest are forgotten first, and then unknown."""


class Link(Struct, frozen=True):
    """One connection of a leaf: the hub's id and its number there."""

    server: str
    number: int


class _Server(Struct):
    id: str


class _Client(Struct):
    id: int
    acc: str = ""
    user: str = ""


class _Connected(Struct):
    server: _Server
    client: _Client


class _Leaf(Struct):
    id: int


class _Leaves(Struct):
    leafs: list[_Leaf] = []


class _Listed(Struct):
    server: _Server
    data: _Leaves = msgspec.field(default_factory=_Leaves)


class LeafLinks:
    """What is known of all connections of leaves, and which keys are revoked."""

    def __init__(self) -> None:
        self._keys: dict[Link, str] = {}
        self._revoked: dict[str, frozenset[str]] = {}

    def connected(self, data: bytes) -> Link | None:
        """Take the hub's message about a connect; return the link if it must be cut.

        A leaf may be revoked between being let in and being connected, so it is looked at here once more.
        """
        try:
            message = msgspec.json.decode(data, type=_Connected)
        except msgspec.DecodeError:
            return None
        link = Link(message.server.id, message.client.id)
        while len(self._keys) >= LINKS_MAX:
            self._keys.pop(next(iter(self._keys)))
        self._keys[link] = message.client.user
        return link if message.client.user in self._revoked.get(message.client.acc, frozenset()) else None

    def revoke(self, account: str, revoked: Mapping[str, int]) -> bool:
        """Take what keys of an account are revoked now. Return whether its connections have to be looked at."""
        self._revoked[account] = frozenset(revoked)
        return bool(revoked)

    def to_cut(self, account: str, listed: bytes) -> list[Link]:
        """Return which of an account's connections, as the hub lists them, must be cut."""
        try:
            message = msgspec.json.decode(listed, type=_Listed)
        except msgspec.DecodeError:
            return []
        revoked = self._revoked.get(account, frozenset())
        links = [Link(message.server.id, leaf.id) for leaf in message.data.leafs]
        return [link for link in links if link not in self._keys or self._keys[link] in revoked]
