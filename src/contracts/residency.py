"""Evidence of where a pipeline's rows were: one signed report, which anyone checks offline with a key that they know.

The control plane makes it from a tenant's audit log and nothing else, and puts the log's checkpoint into it: whoever doubts it
takes `audit export` and folds the same entries. What it says of nodes is what they reported, signed by each of them. Times are
those of the log's entries. Pure; made by the control plane's audit room, checked by `pointsman audit verify-residency`.
"""

from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from contracts import envelope
from contracts.audit import Checkpoint, open_checkpoint
from contracts.envelope import EnvelopeError, Purpose
from contracts.keys import KeyPair
from contracts.names import Count, Digest, Instant, PublicKey, Region, ResourceName, TenantId

REPORT_BYTES_MAX = 1 << 20
PERIODS_MAX = 500
"""Of each kind; the oldest are left off first, and counted."""


class Route(Struct, frozen=True, kw_only=True):
    """From `since` on the pipeline led from one database to another, in this generation. `until` is absent for the newest."""

    generation: Count
    since: Instant
    until: Instant | None = None
    source: str
    """The connection, and where it led: as `host:port/database`, or a cluster's brokers."""
    destination: str
    tables: list[str]
    masked_or_dropped: list[str] = []
    """Columns that a transform changes or leaves out, as `schema.table.column`."""
    customers_key: PublicKey | None = None
    """Whose own signature the document had, if any."""


class Carrier(Struct, frozen=True, kw_only=True):
    """A node that carried the pipeline, and where: from its first report to its last, under one policy."""

    node: ResourceName
    key: PublicKey
    contract: Count
    data_plane: ResourceName
    region: Region | None
    """Where the data plane is, as its owner says."""
    policy: Digest | None
    """SHA-256 of the customer's policy file on the node; `pointsman node policy show` prints it there."""
    since: Instant
    last: Instant
    reports: Count


class Residency(Struct, frozen=True, kw_only=True):
    """The body that is signed. `at` is when it was made."""

    tenant: TenantId
    pipeline: ResourceName
    at: Instant
    routes: list[Route]
    carriers: list[Carrier]
    left_off: Count
    crossed: dict[str, Count]
    """What nodes reported of this pipeline and the log keeps, by type of event. All that ever left a node, its own ledger counts."""
    checkpoint: Annotated[str, Meta(max_length=4_096)]
    """The signed head of the audit log that this was made from."""


def seal(report: Residency, key_pair: KeyPair) -> str:
    """Return the report, signed.

    Raises:
        EnvelopeError: it is larger than REPORT_BYTES_MAX.
    """
    sealed = envelope.sign(report, key_pair, contract=2, purpose=Purpose.RESIDENCY, bytes_max=REPORT_BYTES_MAX)
    return sealed.decode()


def open_report(sealed: str, keys: frozenset[str]) -> tuple[Residency, Checkpoint]:
    """Return the report, and the checkpoint in it, if one of `keys` signed both and they are of one tenant.

    Raises:
        EnvelopeError: as it says.
    """
    signed = envelope.open_signed(sealed, bytes_max=REPORT_BYTES_MAX)
    raw = envelope.verify(signed, keys=keys, purpose=Purpose.RESIDENCY)
    try:
        report = msgspec.json.decode(raw, type=Residency)
    except msgspec.DecodeError as error:
        raise EnvelopeError("not a report of residency") from error
    checkpoint = open_checkpoint(report.checkpoint, keys)
    if checkpoint.tenant != report.tenant:
        raise EnvelopeError("the checkpoint in the report is another tenant's")
    return report, checkpoint
