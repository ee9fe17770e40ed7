"""Certificates for leaves: given at enrolment and renewed later, to a leaf that has signed for its TLS key.

The newest authority signs; how long a certificate holds is a setting. A renewal comes as a node's report, over the link or
by HTTP: the node must be known, not revoked, and of the leaf's data plane, and the leaf enrolled and not revoked.
Called by the API's enrolment, and with batches by the intake of the channel.
"""

import datetime as dt
from collections.abc import Sequence
from typing import Any

import msgspec
import psycopg

from contracts import identity, v2
from contracts.subjects import UpAddress
from controlplane.channel.accounts import Accounts
from controlplane.channel.authority import Authority
from controlplane.channel.directory import Directory, Refusal, find_leaf, open_report
from controlplane.channel.intake import Answer, Arrived
from controlplane.channel.metrics import ChannelMetrics
from controlplane.projection import Pool

KIND = "certificate"
NO_LEAF = "unknown_leaf"
"""The code of a refusal: the leaf is not of the node's data plane, is revoked, or has not signed for the key."""


class NotProven(ValueError):
    """The leaf has not signed for the TLS key, or it is none."""


class Certificates:
    """Makes certificates with the authorities of the keys folder. It keeps nothing of what it has made."""

    def __init__(self, authorities: Sequence[Authority], *, hours: float) -> None:
        self._authorities = tuple(authorities)
        self._lifetime = dt.timedelta(hours=hours)

    def for_leaf(self, tenant: str, data_plane: str, leaf_key: str, tls_key: str, proof: str) -> str | None:
        """Return a certificate in PEM for the leaf; None if the keys folder holds no authority.

        Raises:
            NotProven: `proof` is not the leaf's signature of `tls_key`, or that is no key.
        """
        if not identity.is_proven(leaf_key, tls_key, proof):
            raise NotProven("the leaf's key has not signed for the TLS key")
        if not self._authorities:
            return None
        uri = identity.leaf_uri(tenant, data_plane, leaf_key)
        try:
            return self._authorities[0].issue_leaf(uri, tls_key, now=dt.datetime.now(dt.UTC), lifetime=self._lifetime)
        except ValueError as error:
            raise NotProven("not a TLS public key") from error


class Renewals:
    """Answers nodes that ask for their leaf's next certificate, which comes with a token by the issuer of now."""

    def __init__(
        self,
        pool: Pool,
        accounts: Accounts,
        directory: Directory,
        certificates: Certificates,
        metrics: ChannelMetrics,
    ) -> None:
        self._pool = pool
        self._accounts = accounts
        self._directory = directory
        self._certificates = certificates
        self._metrics = metrics

    def handle(self, batch: Sequence[Arrived]) -> list[Answer]:
        """Answer a batch.

        Raises:
            psycopg.OperationalError: the database does not answer; nobody gets an answer.
        """
        with self._pool.connection() as connection:
            return [Answer(each.reply, self._answer(connection, each.address, each.data)) for each in batch]

    def renew(self, address: UpAddress, data: bytes) -> bytes:
        """Answer one node whose request came by HTTP. `address` is what it says of itself; its signature proves it."""
        with self._pool.connection() as connection:
            return self._answer(connection, address, data)

    def _answer(self, connection: psycopg.Connection[tuple[Any, ...]], address: UpAddress, data: bytes) -> bytes:
        node = self._directory.find(connection, [address]).get((address.account, address.node))
        report = open_report(data, address, node)
        if isinstance(report, Refusal) or node is None:
            return self._refuse(report.value if isinstance(report, Refusal) else Refusal.UNKNOWN_NODE.value)
        message = report.message
        if not isinstance(message, v2.CertificateRequest):
            return self._refuse(Refusal.MALFORMED.value)
        leaf = find_leaf(connection, node.tenant, message.leaf_key)
        if leaf is None or leaf.revoked or leaf.data_plane != node.data_plane:
            return self._refuse(NO_LEAF)
        try:
            given = self._certificates.for_leaf(
                node.tenant, leaf.data_plane, message.leaf_key, message.leaf_tls_key, message.leaf_proof
            )
        except NotProven:
            given = None
        if given is None:
            return self._refuse(NO_LEAF)
        self._metrics.reports.labels(kind=KIND, result="taken").inc()
        token = self._accounts.leaf_credentials(node.tenant, leaf.data_plane, message.leaf_key)
        return msgspec.json.encode(v2.CertificateReply(certificate=given, token=token))

    def _refuse(self, code: str) -> bytes:
        self._metrics.reports.labels(kind=KIND, result=code).inc()
        return msgspec.json.encode(v2.Receipt(sequence=0, accepted=False, code=code))
