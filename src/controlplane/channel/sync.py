"""Answers nodes that ask what differs: the index if it is another, and of what they want as much as fits.

Constant work: a node asks every 30 s whether or not something changed, and a node that was away for a year asks the
same question. Called by the intake with a batch, on a worker thread.
"""

import logging
import time
from collections.abc import Sequence
from typing import Any

import msgspec
import psycopg
from msgspec import UNSET, UnsetType, structs

from contracts import v1, v2
from contracts.subjects import UpAddress
from controlplane.audit.chain import read_checkpoint
from controlplane.channel.directory import Directory, KnownNode, Refusal, open_report
from controlplane.channel.intake import Answer, Arrived
from controlplane.channel.metrics import ChannelMetrics
from controlplane.channel.publisher import Signer
from controlplane.projection import Pool

REPLY_BYTES_MAX = 48 * 1024
"""Documents in one reply, as they count in its JSON. One that is larger goes alone."""

_log = logging.getLogger(__name__)

Connection = psycopg.Connection[tuple[Any, ...]]


class SyncServer:
    """Answers syncs, and notices nodes that are ahead of the log."""

    def __init__(self, pool: Pool, directory: Directory, signer: Signer, metrics: ChannelMetrics) -> None:
        self._pool = pool
        self._directory = directory
        self._signer = signer
        self._metrics = metrics
        self._ahead: set[tuple[str, str]] | None = None

    def handle(self, batch: Sequence[Arrived]) -> list[Answer]:
        """Answer a batch of syncs.

        Raises:
            psycopg.OperationalError: the database does not answer; nobody gets an answer.
        """
        answers: list[Answer] = []
        checkpoints: dict[str, str | UnsetType] = {}
        with self._pool.connection() as connection:
            known = self._directory.find(connection, [each.address for each in batch])
            for each in batch:
                node = known.get((each.address.account, each.address.node))
                report = open_report(each.data, each.address, node)
                if isinstance(report, Refusal) or node is None:
                    code = report.value if isinstance(report, Refusal) else Refusal.UNKNOWN_NODE.value
                    self._metrics.syncs.labels(result=code).inc()
                    refused = v2.Receipt(sequence=0, accepted=False, code=code)
                    answers.append(Answer(each.reply, msgspec.json.encode(refused)))
                    continue
                reply = self._answer(connection, each.address, node, report)
                self._metrics.syncs.labels(result="answered" if reply is not None else Refusal.MALFORMED.value).inc()
                if reply is not None:
                    if node.tenant not in checkpoints:
                        checkpoints[node.tenant] = self._checkpoint(connection, node.tenant)
                    reply = structs.replace(reply, checkpoint=checkpoints[node.tenant])
                    answers.append(Answer(each.reply, msgspec.json.encode(reply)))
                self._metrics.sync_seconds.observe(time.monotonic() - each.at)
        return answers

    def ahead(self, connection: Connection) -> list[tuple[str, str, str, int, int]]:
        """Return the nodes that hold a newer index than this log ever made: tenant, data plane, node, epoch, revision."""
        rows = connection.execute(
            "SELECT tenant, data_plane, node, epoch, revision FROM channel_ahead ORDER BY tenant, data_plane, node"
        ).fetchall()
        return [(tenant, plane, node, epoch, revision) for tenant, plane, node, epoch, revision in rows]

    def _answer(
        self, connection: Connection, address: UpAddress, node: KnownNode, report: v1.Report | v2.Report
    ) -> v2.SyncReply | None:
        request = report.message
        if not isinstance(request, v2.SyncRequest):
            return None
        row = connection.execute(
            "SELECT d.digest, d.body, s.epoch, d.generation FROM channel_documents d, channel_state s"
            " WHERE d.tenant = %s AND d.data_plane = %s AND d.contract = %s AND d.kind = 'index'",
            [node.tenant, node.data_plane, address.contract],
        ).fetchone()
        if row is None:
            return v2.SyncReply()
        digest, body, epoch, revision = row
        self._note_ahead(connection, node, request, (epoch, revision))
        if request.index_digest == digest:
            documents, more = self._wanted(connection, address, node, request, used=0)
            return v2.SyncReply(documents=documents, more=more)
        # The list of trusted keys goes along, because it may name the key that signed this index.
        index = self._sign(body, v2.Kind.INDEX.value, address.contract)
        trust = self._trust(connection, address, node)
        documents, more = self._wanted(connection, address, node, request, used=len(index) + len(trust))
        return v2.SyncReply(index=index, documents=[trust, *documents][: v2.WANTED_MAX], more=more)

    def _checkpoint(self, connection: Connection, tenant: str) -> str | UnsetType:
        """Return the signed head of the tenant's audit log as it is now, if it has one yet."""
        head = read_checkpoint(connection, tenant)
        return self._signer.sign_checkpoint(head).decode() if head is not None else UNSET

    def _trust(self, connection: Connection, address: UpAddress, node: KnownNode) -> str:
        row = connection.execute(
            "SELECT body FROM channel_documents"
            " WHERE tenant = %s AND data_plane = %s AND contract = %s AND kind = 'trust'",
            [node.tenant, node.data_plane, address.contract],
        ).fetchone()
        if row is None:
            raise RuntimeError("an index without a trust list")
        return self._sign(row[0], v2.Kind.TRUST.value, address.contract)

    def _wanted(
        self, connection: Connection, address: UpAddress, node: KnownNode, request: v2.SyncRequest, *, used: int
    ) -> tuple[list[str], bool]:
        if not request.wanted:
            return [], False
        rows = connection.execute(
            "SELECT d.kind, d.name, d.body FROM channel_documents d"
            " JOIN unnest(%s::text[], %s::text[]) AS w (kind, name) USING (kind, name)"
            " WHERE d.tenant = %s AND d.data_plane = %s AND d.contract = %s ORDER BY d.kind, d.name",
            [
                [each.kind.value for each in request.wanted],
                [each.name for each in request.wanted],
                node.tenant,
                node.data_plane,
                address.contract,
            ],
        ).fetchall()
        documents: list[str] = []
        for kind, _, body in rows:
            text = self._sign(body, kind, address.contract)
            size = len(msgspec.json.encode(text))
            if used + size > REPLY_BYTES_MAX and (documents or used):
                return documents, True
            documents.append(text)
            used += size
        return documents, False

    def _sign(self, body: str, kind: str, contract: int) -> str:
        return self._signer.sign(body.encode(), kind=kind, contract=contract).decode()

    def _note_ahead(
        self, connection: Connection, node: KnownNode, request: v2.SyncRequest, ours: tuple[int, int]
    ) -> None:
        """Write down that a node holds a newer index than we have, or that it no longer does."""
        if self._ahead is None:
            self._ahead = {(tenant, name) for tenant, _, name, _, _ in self.ahead(connection)}
        theirs = (request.index_epoch, request.index_revision)
        key = (node.tenant, node.node)
        if theirs > ours:
            if key not in self._ahead:
                _log.error(
                    "node %s of tenant %s holds index %d.%d while the newest one here is %d.%d: this control plane was restored"
                    " from an old backup; stop it, raise the epoch, start it again",
                    node.node,
                    node.tenant,
                    *theirs,
                    *ours,
                )
            self._ahead.add(key)
            connection.execute(
                "INSERT INTO channel_ahead (tenant, data_plane, node, epoch, revision) VALUES (%s, %s, %s, %s, %s)"
                " ON CONFLICT (tenant, data_plane, node) DO UPDATE SET epoch = excluded.epoch,"
                " revision = excluded.revision",
                [node.tenant, node.data_plane, node.node, *theirs],
            )
            connection.commit()
        elif key in self._ahead:
            self._ahead.discard(key)
            connection.execute("DELETE FROM channel_ahead WHERE tenant = %s AND node = %s", key)
            connection.commit()
        self._metrics.nodes_ahead.set(len(self._ahead))
