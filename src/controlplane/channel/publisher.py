"""The projection that turns the log into documents for nodes, and publishes what has changed after each commit.

In the database lie the bodies, unsigned: the same log gives the same bodies, and a new signing key changes none. They
are signed when they leave. One process publishes at a time, because the projection's runner holds a lock; a message that
is lost costs nothing but the time until a node's next sync.
"""

import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec
import psycopg

from contracts import subjects, v2
from contracts.audit import Checkpoint
from contracts.envelope import Purpose, digest, sign, sign_bytes
from controlplane.channel.accounts import Accounts
from controlplane.channel.documents import Address, Body, ConnectionState, PipelineState, build
from controlplane.channel.fold import LeafState, NodeState, TenantState
from controlplane.channel.keys import ChannelKeys
from controlplane.channel.metrics import ChannelMetrics
from controlplane.domain import DataPlaneDeleted, LeafEnrolled, TenantCreated
from controlplane.log import LoggedEvent
from controlplane.projection import Pool

CONNECTION, PIPELINE = v2.Kind.CONNECTION.value, v2.Kind.PIPELINE.value
PLANES_REMEMBERED_MAX = 1_000

_ENCODER = msgspec.json.Encoder(order="deterministic")

Send = Callable[[str, bytes], None]
"""Publishes on a subject of the control plane's account; callable from any thread, never waits, may lose."""


class Signer:
    """Signs what leaves: the trust list with the root key, everything else with the online key."""

    def __init__(self, keys: ChannelKeys) -> None:
        self._keys = keys

    def sign(self, body: bytes, *, kind: str, contract: int) -> bytes:
        """Return the envelope of a document's body. Ed25519 is deterministic: the same key gives the same envelope."""
        key = self._keys.root if kind == v2.Kind.TRUST.value else self._keys.signing
        return sign_bytes(body, key, contract=contract, purpose=Purpose.DOCUMENT)

    def sign_checkpoint(self, checkpoint: Checkpoint) -> bytes:
        """Return the envelope of an audit log's head, as the API gives it too."""
        return sign(checkpoint, self._keys.signing, contract=v2.CONTRACT, purpose=Purpose.CHECKPOINT)


class Publisher:
    """A `controlplane.projection.Projection`. `send` publishes; `push_claims` renews a tenant's claims at the hub."""

    name = "channel"
    tables: Sequence[str] = (
        "channel_tenants",
        "channel_planes",
        "channel_leaves",
        "channel_nodes",
        "channel_resources",
        "channel_documents",
    )

    def __init__(
        self,
        accounts: Accounts,
        signer: Signer,
        pool: Pool,
        metrics: ChannelMetrics,
        *,
        send: Send,
        push_claims: Callable[[str], None],
    ) -> None:
        self._accounts = accounts
        self._signer = signer
        self._pool = pool
        self._metrics = metrics
        self._send = send
        self._push_claims = push_claims
        self._published: dict[tuple[str, str], dict[tuple[int, str, str], str]] = {}
        self._lock = threading.Lock()

    # ---- In the page's transaction ----------------------------------------------------------------------------------

    def apply(self, cursor: psycopg.Cursor[Any], events: Sequence[LoggedEvent]) -> None:
        """Fold the events into the channel's tables, and make the documents of every data plane that they touch."""
        tenants: dict[str, TenantState] = {}
        for event in events:
            if event.tenant not in tenants:
                tenants[event.tenant] = _load(cursor, event.tenant)
            tenants[event.tenant].apply(event)
        epoch = _epoch(cursor)
        for state in tenants.values():
            _write(cursor, state)
            for plane in sorted(state.touched_planes):
                self._make(cursor, state, plane, epoch)

    def _make(self, cursor: psycopg.Cursor[Any], state: TenantState, plane: str, epoch: int) -> None:
        address = Address(tenant=state.tenant, data_plane=plane, epoch=epoch, revision=state.planes[plane])
        bodies = build(address, state.connections, state.pipelines, self._accounts.trust(state.tenant, plane))
        _write_bodies(cursor, state.tenant, plane, bodies)

    # ---- After the commit -------------------------------------------------------------------------------------------

    def after_commit(self, events: Sequence[LoggedEvent]) -> None:
        """Publish what has changed, documents before the index that names them, and renew claims."""
        for tenant in sorted({each.tenant for each in events if isinstance(each.event, _CHANGES_CLAIMS)}):
            self._push_claims(tenant)
        tenants = sorted({each.tenant for each in events})
        newest = events[-1].id
        with self._pool.connection() as connection:
            rows = connection.execute(
                "SELECT tenant, data_plane FROM channel_planes"
                " WHERE tenant = ANY(%s) AND revision BETWEEN %s AND %s ORDER BY tenant, data_plane",
                [tenants, events[0].id, newest],
            ).fetchall()
            for tenant, plane in rows:
                self.publish_plane(connection, tenant, plane)

    def publish_plane(self, connection: psycopg.Connection[tuple[Any, ...]], tenant: str, plane: str) -> None:
        """Publish the data plane's documents that this process has not published in their present form.

        The trust list goes first, because it may name the key that signed the others, and the index last.
        """
        rows = connection.execute(
            "SELECT contract, kind, name, digest, body FROM channel_documents WHERE tenant = %s AND data_plane = %s"
            " ORDER BY contract DESC, kind <> 'trust', kind = 'index', kind = 'pipeline', name",
            [tenant, plane],
        ).fetchall()
        now = {(contract, kind, name): digest for contract, kind, name, digest, _ in rows}
        with self._lock:
            before = self._published.get((tenant, plane), {})
            while len(self._published) >= PLANES_REMEMBERED_MAX:
                self._published.pop(next(iter(self._published)))
            self._published[tenant, plane] = now
        account = self._accounts.account_key(tenant)
        for contract, kind, name, digest_now, body in rows:
            if before.get((contract, kind, name)) != digest_now:
                self._publish(account, plane, contract, kind, name, body)

    def publish_hints(self) -> None:
        """Publish every data plane's trust list and index, so that nodes look again: what they missed, they ask for."""
        with self._pool.connection() as connection:
            rows = connection.execute(
                "SELECT tenant, data_plane, contract, kind, name, body FROM channel_documents"
                " WHERE kind IN ('trust', 'index') ORDER BY tenant, data_plane, contract DESC, kind DESC"
            ).fetchall()
        for tenant, plane, contract, kind, name, body in rows:
            self._publish(self._accounts.account_key(tenant), plane, contract, kind, name, body)

    def _publish(self, account: str, plane: str, contract: int, kind: str, name: str, body: str) -> None:
        subject = subjects.desired(contract, plane, v2.Kind(kind), name)
        envelope = self._signer.sign(body.encode(), kind=kind, contract=contract)
        self._send(subjects.for_tenant(account, subject), envelope)
        self._metrics.published.labels(kind=kind).inc()

    # ---- When the epoch or the list of trusted keys is another ------------------------------------------------------

    def issue(self) -> bool:
        """Make every document again if the epoch was raised or other keys are trusted; return whether that was so.

        Called at the control plane's start. A node takes the result as it takes any change; what only another key
        signed keeps its digest, and is no change.
        """
        with self._pool.connection() as connection, connection.transaction(), connection.cursor() as cursor:
            row = cursor.execute("SELECT epoch, issued_epoch, issued_trust FROM channel_state FOR UPDATE").fetchone()
            if row is None:
                raise RuntimeError("the channel's schema was not made")
            epoch, issued_epoch, issued_trust = row
            trust = digest(_ENCODER.encode(self._accounts.trust("00000000-0000-0000-0000-000000000000", "any")))
            if (epoch, trust) == (issued_epoch, issued_trust):
                return False
            cursor.execute("UPDATE channel_state SET issued_epoch = epoch, issued_trust = %s", [trust])
            for (tenant,) in cursor.execute("SELECT tenant FROM channel_tenants ORDER BY tenant").fetchall():
                state = _load(cursor, tenant)
                for plane in sorted(state.planes):
                    self._make(cursor, state, plane, epoch)
        with self._lock:
            self._published.clear()
        return True


_CHANGES_CLAIMS = (TenantCreated, LeafEnrolled, DataPlaneDeleted)


def _epoch(cursor: psycopg.Cursor[Any]) -> int:
    # Shared with other pages, exclusive of `issue`: no document is made in an epoch that has just ended.
    row = cursor.execute("SELECT epoch FROM channel_state FOR SHARE").fetchone()
    if row is None:
        raise RuntimeError("the channel's schema was not made")
    return int(row[0])


def _load(cursor: psycopg.Cursor[Any], tenant: str) -> TenantState:
    with cursor.connection.pipeline():  # one round trip for all four
        connection = cursor.connection
        resources = connection.execute("SELECT kind, name, state FROM channel_resources WHERE tenant = %s", [tenant])
        nodes = connection.execute(
            "SELECT node, data_plane, key, contract, revoked FROM channel_nodes WHERE tenant = %s", [tenant]
        )
        leaves = connection.execute(
            "SELECT leaf_key, data_plane, revoked_at FROM channel_leaves WHERE tenant = %s", [tenant]
        )
        planes = connection.execute("SELECT data_plane, revision FROM channel_planes WHERE tenant = %s", [tenant])
    states = resources.fetchall()
    return TenantState(
        tenant,
        connections={
            name: msgspec.json.decode(state, type=ConnectionState) for kind, name, state in states if kind == CONNECTION
        },
        pipelines={
            name: msgspec.json.decode(state, type=PipelineState) for kind, name, state in states if kind == PIPELINE
        },
        nodes={
            node: NodeState(data_plane=plane, key=key, contract=contract, revoked=revoked)
            for node, plane, key, contract, revoked in nodes.fetchall()
        },
        leaves={
            key: LeafState(data_plane=plane, revoked_at=revoked_at) for key, plane, revoked_at in leaves.fetchall()
        },
        planes=dict(planes.fetchall()),
    )


def _write(cursor: psycopg.Cursor[Any], state: TenantState) -> None:
    tenant = state.tenant
    if state.is_new:
        cursor.execute("INSERT INTO channel_tenants (tenant) VALUES (%s) ON CONFLICT DO NOTHING", [tenant])
    _write_resources(cursor, tenant, CONNECTION, {each: state.connections[each] for each in state.changed_connections})
    _write_resources(cursor, tenant, PIPELINE, {each: state.pipelines[each] for each in state.changed_pipelines})
    for name in sorted(state.changed_nodes):
        node = state.nodes[name]
        cursor.execute(
            "INSERT INTO channel_nodes (tenant, node, data_plane, key, contract, revoked)"
            " VALUES (%s, %s, %s, %s, %s, %s) ON CONFLICT (tenant, node) DO UPDATE SET data_plane = excluded.data_plane,"
            " key = excluded.key, contract = excluded.contract, revoked = excluded.revoked",
            [tenant, name, node.data_plane, node.key, node.contract, node.revoked],
        )
    for key in sorted(state.changed_leaves):
        leaf = state.leaves[key]
        cursor.execute(
            "INSERT INTO channel_leaves (tenant, leaf_key, data_plane, revoked_at) VALUES (%s, %s, %s, %s)"
            " ON CONFLICT (tenant, leaf_key) DO UPDATE SET revoked_at = excluded.revoked_at",
            [tenant, key, leaf.data_plane, leaf.revoked_at],
        )
    for plane in sorted(state.touched_planes):
        cursor.execute(
            "INSERT INTO channel_planes (tenant, data_plane, revision) VALUES (%s, %s, %s)"
            " ON CONFLICT (tenant, data_plane) DO UPDATE SET revision = excluded.revision",
            [tenant, plane, state.planes[plane]],
        )
    for plane in sorted(state.deleted_planes):
        for table in ("channel_planes", "channel_documents"):
            cursor.execute(f"DELETE FROM {table} WHERE tenant = %s AND data_plane = %s", [tenant, plane])  # noqa: S608


def _write_resources(
    cursor: psycopg.Cursor[Any], tenant: str, kind: str, states: dict[str, ConnectionState] | dict[str, PipelineState]
) -> None:
    for name, state in sorted(states.items()):
        cursor.execute(
            "INSERT INTO channel_resources (tenant, kind, name, state) VALUES (%s, %s, %s, %s)"
            " ON CONFLICT (tenant, kind, name) DO UPDATE SET state = excluded.state",
            [tenant, kind, name, _ENCODER.encode(state).decode()],
        )


def _write_bodies(cursor: psycopg.Cursor[Any], tenant: str, plane: str, bodies: Iterable[Body]) -> None:
    """Make the table hold `bodies` for the data plane and nothing else, touching only the rows that differ."""
    rows = cursor.execute(
        "SELECT contract, kind, name, digest FROM channel_documents WHERE tenant = %s AND data_plane = %s",
        [tenant, plane],
    ).fetchall()
    before = {(contract, kind, name): digest_before for contract, kind, name, digest_before in rows}
    changed = [each for each in bodies if before.pop((each.contract, each.kind.value, each.name), None) != each.digest]
    cursor.executemany(
        "INSERT INTO channel_documents (tenant, data_plane, contract, kind, name, generation, digest, body)"
        " VALUES (%s, %s, %s, %s, %s, %s, %s, %s) ON CONFLICT (tenant, data_plane, contract, kind, name)"
        " DO UPDATE SET generation = excluded.generation, digest = excluded.digest, body = excluded.body",
        [
            (
                tenant,
                plane,
                each.contract,
                each.kind.value,
                each.name,
                each.generation,
                each.digest,
                each.body.decode(),
            )
            for each in changed
        ],
    )
    for contract, kind, name in before:
        cursor.execute(
            "DELETE FROM channel_documents"
            " WHERE tenant = %s AND data_plane = %s AND contract = %s AND kind = %s AND name = %s",
            [tenant, plane, contract, kind, name],
        )
