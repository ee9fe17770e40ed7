"""Who is who: from the account in a subject to the tenant, from a node's name to its key. Read from the channel's tables.

Only the subject that the hub wrote says who speaks; a signature by the node's registered key proves it. Both must agree,
and with them the name of the data plane and of the node.
"""

from collections.abc import Sequence
from enum import Enum
from typing import Any

import psycopg
from msgspec import Struct

from contracts import v1, v2
from contracts.envelope import EnvelopeError, Purpose, decode_report, open_signed, verify
from contracts.subjects import UpAddress
from controlplane.channel.accounts import Accounts


class Refusal(Enum):
    """Why a message from a node is not believed. The value crosses in receipts."""

    MALFORMED = "malformed"
    UNKNOWN_NODE = "unknown_node"
    """Never believed, but perhaps later: the log may not have been projected yet, so no receipt is given."""
    NODE_REVOKED = "node_revoked"
    OTHER_DATA_PLANE = "other_data_plane"
    BAD_SIGNATURE = "bad_signature"


class KnownNode(Struct, frozen=True, kw_only=True):
    """A node as it was enrolled."""

    tenant: str
    node: str
    data_plane: str
    key: str
    revoked: bool


class KnownLeaf(Struct, frozen=True):
    """A leaf as it was enrolled."""

    data_plane: str
    revoked: bool


class Directory:
    """Looks up who sends. Used from worker threads, each with a connection of its own."""

    def __init__(self, accounts: Accounts) -> None:
        self._accounts = accounts
        self._tenants: dict[str, str] = {}

    def find(
        self, connection: psycopg.Connection[tuple[Any, ...]], addresses: Sequence[UpAddress]
    ) -> dict[tuple[str, str], KnownNode]:
        """Return the enrolled nodes among `addresses`, by account and node name, as they are right now."""
        tenants = self._tenants_of(connection, {address.account for address in addresses})
        rows = connection.execute(
            "SELECT tenant, node, data_plane, key, revoked FROM channel_nodes"
            " WHERE tenant = ANY(%s) AND node = ANY(%s)",
            [sorted(set(tenants.values())), sorted({address.node for address in addresses})],
        ).fetchall()
        known = {
            (tenant, node): KnownNode(tenant=tenant, node=node, data_plane=plane, key=key, revoked=revoked)
            for tenant, node, plane, key, revoked in rows
        }
        return {
            (address.account, address.node): known[tenants[address.account], address.node]
            for address in addresses
            if (tenants.get(address.account, ""), address.node) in known
        }

    def tenant_of(self, connection: psycopg.Connection[tuple[Any, ...]], account: str) -> str | None:
        """Return the tenant whose account at the hub this is; None if it is nobody's."""
        return self._tenants_of(connection, {account}).get(account)

    def _tenants_of(self, connection: psycopg.Connection[tuple[Any, ...]], accounts: set[str]) -> dict[str, str]:
        if accounts - self._tenants.keys():
            for (tenant,) in connection.execute("SELECT tenant FROM channel_tenants").fetchall():
                self._tenants.setdefault(self._accounts.account_key(tenant), tenant)
        return {account: self._tenants[account] for account in accounts if account in self._tenants}


def find_leaf(connection: psycopg.Connection[tuple[Any, ...]], tenant: str, leaf_key: str) -> KnownLeaf | None:
    """Return a tenant's leaf, revoked or not, as it is right now."""
    row = connection.execute(
        "SELECT data_plane, revoked_at IS NOT NULL FROM channel_leaves WHERE tenant = %s AND leaf_key = %s",
        [tenant, leaf_key],
    ).fetchone()
    return None if row is None else KnownLeaf(*row)


def open_report(data: bytes, address: UpAddress, known: KnownNode | None) -> v1.Report | v2.Report | Refusal:
    """Return the report in `data` if the node of `address` made it; otherwise why it is not believed."""
    if known is None:
        return Refusal.UNKNOWN_NODE
    if known.revoked:
        return Refusal.NODE_REVOKED
    if known.data_plane != address.data_plane:
        return Refusal.OTHER_DATA_PLANE
    try:
        signed = open_signed(data)
    except EnvelopeError:
        return Refusal.MALFORMED
    try:
        raw = verify(signed, keys=frozenset((known.key,)), purpose=Purpose.REPORT)
    except EnvelopeError:
        return Refusal.BAD_SIGNATURE
    try:
        report = decode_report(raw, signed.contract)
    except EnvelopeError:
        return Refusal.MALFORMED
    if signed.contract != address.contract:
        return Refusal.MALFORMED
    if report.node != address.node or report.key != known.key:
        return Refusal.BAD_SIGNATURE
    return report
