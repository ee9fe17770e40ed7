"""Contract version 2: every message that may cross between the planes.

Down (control plane → node): whole, level-triggered documents. They tolerate unknown fields, so that a newer control
plane can add some. Up (node → control plane): reports. They forbid unknown fields, and no field of theirs can hold a
record: only identifiers of `names`, numbers, times and enums (a test walks the types).

Version 2 has an ordered list of transforms and settings for the buffer, where version 1 has one transform at most.
"""

from enum import Enum
from typing import Annotated

from msgspec import UNSET, Meta, Struct, UnsetType

from contracts.backfilling import COPIES_TOLD_MAX, Backfill, CopyProgress
from contracts.checks import Check, Outcome, State
from contracts.codes import Code
from contracts.delivery import (
    DEAD_LETTERS_DEFAULT,
    Consistency,
    DeadLettersMax,
    OnRefused,
    OnSchemaChange,
    Parallelism,
)
from contracts.kafka import KafkaConfig, TopicSettings
from contracts.names import (
    AgentVersion,
    CorrelationId,
    Count,
    Digest,
    Generation,
    HostName,
    Instant,
    Lsn,
    Port,
    PublicKey,
    ResourceName,
    Seconds,
    SecretReference,
    Signature,
    SqlName,
    SqlState,
    TableName,
    TenantId,
    TlsKey,
)
from contracts.reconciling import Reconcile, ReconcileState
from contracts.slots import Slot, SourceLog

CONTRACT = 2

TABLES_MAX = 500
TRANSFORMS_MAX = 16
INDEX_ENTRIES_MAX = 300
WANTED_MAX = 32
PIPELINES_PER_NODE_MAX = 100
FINDINGS_MAX = 128
"""As many of the longest fit into one message of the channel."""


class Kind(Enum):
    """What a document describes."""

    PIPELINE = "pipeline"
    CONNECTION = "connection"
    TRUST = "trust"
    INDEX = "index"


class RunState(Enum):
    """What the customer wants of a pipeline."""

    RUNNING = "running"
    PAUSED = "paused"
    """Stopped at a transaction's end; the slot stays and the source keeps its log."""
    REMOVED = "removed"
    """Drained, stopped, and slot, publication and checkpoint dropped. Asked for explicitly, never implied."""


class BufferType(Enum):
    """Where changes wait between source and sink."""

    DIRECT = "direct"
    JETSTREAM = "jetstream"


class Confirm(Enum):
    """What must be durable before the source may forget."""

    SINK = "sink"
    """The buffer is a cache: losing it means that the source is read again, so the source keeps what is in it."""
    BUFFER = "buffer"
    """The source's log is freed once the buffer has written a change to disk. The buffer is data: losing it is a gap."""


class MaskMethod(Enum):
    """What a mask leaves of a value. NULL stays NULL."""

    REDACT = "redact"
    """Every value becomes `***`."""
    HASH = "hash"
    """HMAC-SHA-256 in hex, keyed by a secret on the node: equal values stay equal."""


class Document(Struct, frozen=True, kw_only=True):
    """What every document carries. `epoch` grows when a control plane is restored, `generation` with each change."""

    tenant: TenantId
    data_plane: ResourceName
    name: ResourceName
    epoch: Generation
    generation: Generation


class CustomerSignature(Struct, frozen=True, kw_only=True):
    """The customer's own signature under what was written of a resource; `countersigning` says what exactly it covers."""

    key: PublicKey
    number: Generation
    """Higher with each signature under the same resource: milliseconds since 1970."""
    signature: Signature


class PostgresConfig(Struct, frozen=True, tag="postgres", tag_field="type", kw_only=True):
    """How to reach a PostgreSQL database."""

    host: HostName
    database: SqlName
    user: SqlName
    port: Port = 5432
    ssl_mode: Annotated[str, Meta(pattern="^(disable|require|verify-ca|verify-full)$(?!\n)")] = "disable"


SystemConfig = PostgresConfig | KafkaConfig
"""How to reach a system that a connection can be to."""


class ConnectionDocument(Document, frozen=True, tag="connection", tag_field="kind", kw_only=True):
    """A system that pipelines read or write. Secrets are references; the node resolves them."""

    config: SystemConfig
    secrets: dict[SqlName, SecretReference] = {}
    signature: CustomerSignature | UnsetType = UNSET
    """The customer's, if there is one."""


class MaskTransform(Struct, frozen=True, tag="mask", tag_field="type", kw_only=True):
    """Replace the values of columns. A key column cannot be masked."""

    table: TableName
    columns: Annotated[list[SqlName], Meta(min_length=1, max_length=200)]
    method: MaskMethod = MaskMethod.REDACT
    secret: SecretReference | None = None
    """The key of `hash`; needed for it."""


class DropTransform(Struct, frozen=True, tag="drop", tag_field="type", kw_only=True):
    """Leave columns out of a table. A key column cannot be left out."""

    table: TableName
    columns: Annotated[list[SqlName], Meta(min_length=1, max_length=200)]


Transform = MaskTransform | DropTransform


class SnapshotSettings(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """How tables are copied: `parallelism` chunks are read at once, each of about `chunk_rows` rows or 16 MiB."""

    parallelism: Annotated[int, Meta(ge=1, le=8)] = 2
    chunk_rows: Annotated[int, Meta(ge=1000, le=1_000_000)] = 50_000


class PipelineSource(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """Which tables of which connection are captured, and how."""

    connection: ResourceName
    tables: Annotated[list[TableName], Meta(min_length=1, max_length=TABLES_MAX)]
    snapshot: SnapshotSettings = SnapshotSettings()
    log: SourceLog = SourceLog()
    failover: bool = False
    """Standbys of the source keep a copy of the slot, so that the pipeline goes on after one was promoted."""


class PipelineSink(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """Where changes are delivered, and how. Tables keep their schema and name, and are created when missing."""

    connection: ResourceName
    on_refused: OnRefused = OnRefused.STOP
    dead_letters_max: DeadLettersMax = DEAD_LETTERS_DEFAULT
    on_schema_change: OnSchemaChange = OnSchemaChange.PROPAGATE
    consistency: Consistency = Consistency.TRANSACTION
    parallelism: Parallelism = 1
    resumes: Count = 0
    """With `on_schema_change: pause`, how often a person let the pipeline go on; nobody writes it in a manifest. A shape
    that stopped the pipeline is taken once this has grown."""
    topics: TopicSettings | UnsetType = UNSET
    """Of a destination that is Kafka, which needs them."""


class BufferSettings(Struct, frozen=True, kw_only=True):
    """What lies between source and sink. `size_bytes_max` bounds it; when it is full, reading waits."""

    type: BufferType = BufferType.DIRECT
    confirm: Confirm = Confirm.SINK
    size_bytes_max: Annotated[int, Meta(ge=1 << 20, le=1 << 40)] = 1 << 30


class PipelineDocument(Document, frozen=True, tag="pipeline", tag_field="kind", kw_only=True):
    """Everything that a node needs to run one pipeline, but for the connections, which have documents of their own."""

    run: RunState
    source: PipelineSource
    sink: PipelineSink
    buffer: BufferSettings = BufferSettings()
    transforms: Annotated[list[Transform], Meta(max_length=TRANSFORMS_MAX)] = []
    restarts: Count = 0
    """A counter: a node restarts the pipeline's workers while its own durable counter is behind."""
    resyncs: Annotated[dict[TableName, Count], Meta(max_length=TABLES_MAX)] = {}
    """Counters: a table is copied again while the counter that the destination's checkpoint reached is behind."""
    reconciles: Annotated[dict[TableName, Reconcile], Meta(max_length=TABLES_MAX)] | UnsetType = UNSET
    """Counters: a table's two ends are compared while the number that the destination's record reached is behind."""
    backfills: Annotated[dict[TableName, Backfill], Meta(max_length=TABLES_MAX)] | UnsetType = UNSET
    """Counters: rows of a table are copied again while the counter that the destination's checkpoint reached is behind."""
    snapshots_paused: Annotated[list[TableName], Meta(max_length=TABLES_MAX)] | UnsetType = UNSET
    """Tables of which no chunk is copied for the time being; what the stream brings for them goes on."""

    signature: CustomerSignature | UnsetType = UNSET
    """The customer's, if there is one."""

    @property
    def comparisons(self) -> dict[TableName, Reconcile]:
        """The comparisons that were asked for; a document without any does not have the field at all."""
        return {} if isinstance(self.reconciles, UnsetType) else self.reconciles

    @property
    def partial_copies(self) -> dict[TableName, Backfill]:
        """The copies of parts of tables that were asked for; a document without any does not have the field at all."""
        return {} if isinstance(self.backfills, UnsetType) else self.backfills

    @property
    def paused_copies(self) -> frozenset[TableName]:
        """The tables whose copying is paused."""
        return frozenset() if isinstance(self.snapshots_paused, UnsetType) else frozenset(self.snapshots_paused)


CertificateText = Annotated[
    str,
    Meta(
        pattern=r"^-----BEGIN CERTIFICATE-----\n[A-Za-z0-9+/=\n]+-----END CERTIFICATE-----\n$(?!\n)",
        max_length=8_100,
    ),
]
"""One certificate in PEM. It only ever comes down."""
LeafToken = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.-]+$(?!\n)", max_length=20_000)]
"""A leaf's token at the hub. It only ever comes down."""


class TrustDocument(Document, frozen=True, tag="trust", tag_field="kind", kw_only=True):
    """The online keys whose signatures nodes accept. Signed by the root key that was pinned at enrolment.

    `generation` is the list's number: a node never goes back to a lower one.
    """

    keys: Annotated[list[PublicKey], Meta(min_length=1, max_length=8)]
    authorities: Annotated[list[CertificateText], Meta(max_length=4)] | UnsetType = UNSET
    """The certificates of the authorities by which a leaf knows the hub, the newest first. Without any the link is plain.

    A leaf whose own certificate is not by the newest asks for its next one.
    """
    issuer: PublicKey | UnsetType = UNSET
    """Who signs leaves' tokens now, if it was ever another. A leaf whose token is by another asks for its next one."""


class RequiresDocument(Document, frozen=True, tag="requires", tag_field="kind", kw_only=True):
    """Stands in for a document that this contract version cannot express: the node keeps what it runs."""

    of: Kind
    contract: Annotated[int, Meta(ge=2, le=99)]


class IndexEntry(Struct, frozen=True, kw_only=True):
    """One resource that the data plane must hold."""

    kind: Kind
    name: ResourceName
    generation: Generation
    digest: Digest


class IndexDocument(Document, frozen=True, tag="index", tag_field="kind", kw_only=True):
    """All that a data plane must hold. What a node runs and the index does not name is drained and stopped.

    `revision` is the id of the newest event that the index reflects; with `epoch` it only grows.
    """

    revision: Count
    entries: Annotated[list[IndexEntry], Meta(max_length=INDEX_ENTRIES_MAX)]


AnyDocument = ConnectionDocument | PipelineDocument | TrustDocument | RequiresDocument | IndexDocument


class QuestionTopic(Enum):
    """What a person wants to know from a node, now."""

    CONNECTION_TEST = "connection-test"
    DOCTOR = "doctor"
    """Everything that can be wrong with a connection. Version 1 has no answer to it: its nodes are asked for a test."""


class Question(Struct, frozen=True, tag="question", tag_field="kind", kw_only=True):
    """An interactive question. It is not stored: after `deadline` nobody waits for the answer."""

    id: CorrelationId
    topic: QuestionTopic
    name: ResourceName
    deadline: Instant


# ---- Up -------------------------------------------------------------------------------------------------------------


class UpValue(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What every part of an upward message is built on: a closed set of fields."""


class UpMessage(UpValue, frozen=True, tag_field="type", kw_only=True):
    """What every message that goes up is built on."""


class Phase(Enum):
    """Where a pipeline stands on its node, in the words that users see."""

    PENDING = "pending"
    SNAPSHOTTING = "snapshotting"
    STREAMING = "streaming"
    PAUSED = "paused"
    RETRYING = "retrying"
    """Stopped by something that may pass by itself; `code` says what."""
    DEGRADED = "degraded"
    """Stopped by something that needs a person; `code` says what."""
    GAP = "gap"
    """Rows between two positions may be missing; nothing is read until a person decides."""
    REMOVED = "removed"


class Position(UpValue, frozen=True, kw_only=True):
    """The last row that the destination holds: its commit's LSN and its number within the transaction."""

    lsn: Lsn
    ordinal: Count


class PipelineStatus(UpMessage, frozen=True, tag="pipeline-status", kw_only=True):
    """What a node observes of a pipeline. `observed_generation` is the newest one that it acts on."""

    pipeline: ResourceName
    epoch: Generation
    observed_generation: Generation
    phase: Phase
    since: Instant
    restarts: Count = 0
    code: Code | None = None
    sql_state: SqlState | None = None
    table: TableName | None = None
    column: SqlName | None = None
    position: Position | None = None
    tables_total: Count = 0
    tables_copied: Count = 0
    policy: Digest | UnsetType = UNSET
    """SHA-256 of the customer's policy file that this holds under."""


class PipelineTelemetry(UpMessage, frozen=True, omit_defaults=True, tag="pipeline-telemetry", kw_only=True):
    """Numbers of a pipeline, last value only. Totals count since the worker's start."""

    pipeline: ResourceName
    rows_total: Count = 0
    bytes_total: Count = 0
    transactions_total: Count = 0
    errors_total: Count = 0
    lag_bytes: Count = 0
    lag_seconds: Seconds = 0.0
    latency_seconds: Seconds = 0.0
    """From the source's commit to the destination's, of the newest transaction."""
    buffer_bytes: Count = 0
    slot_retained_bytes: Count = 0
    dead_letters: Count = 0
    """Changes that lie beside the destination's tables, refused or waiting behind one that is."""
    dead_letters_total: Count = 0
    """How many such changes there were since the worker's start."""
    columns_ignored: Count = 0
    """Columns of the source that are not carried, because of `on_schema_change: ignore`."""
    undecodable_values_total: Count = 0
    """Values that were no valid text and travelled with their odd bytes written as escapes, since the worker's start."""
    snapshot_rows: Count = 0
    """Rows that were read of the tables that are being copied, and below about how many they have."""
    snapshot_rows_estimated: Count = 0
    snapshot_bytes: Count = 0
    snapshot_seconds_left: Seconds | None = None
    """How long the copies will take still, by their rate so far; absent when nothing can be said of it."""
    slot: Slot | None = None
    copies: Annotated[list[CopyProgress], Meta(max_length=COPIES_TOLD_MAX)] = []
    """Of the tables that are being copied, those that come first."""


class Wanted(UpValue, frozen=True, kw_only=True):
    """A document that a node lacks, as its index names it. What an index entry may gain later does not cross upward."""

    kind: Kind
    name: ResourceName
    generation: Generation
    digest: Digest


class SyncRequest(UpMessage, frozen=True, tag="sync", kw_only=True):
    """Ask what differs. `index_digest` is that of the index the node holds; `wanted` are the documents it lacks.

    `index_epoch` and `index_revision` are that index's: a control plane restored from an old backup sees by them that
    nodes are ahead of it. They are 0 without an index.
    """

    index_digest: Digest | None = None
    index_epoch: Count = 0
    index_revision: Count = 0
    wanted: Annotated[list[Wanted], Meta(max_length=WANTED_MAX)] = []


class Heartbeat(UpMessage, frozen=True, tag="heartbeat", kw_only=True):
    """The node lives, this is what it holds and how its pipelines stand. Never queued: a late one is worth nothing."""

    at: Instant
    started_at: Instant
    agent_version: AgentVersion
    contract: Annotated[int, Meta(ge=1, le=99)]
    """The highest contract version that the node speaks."""
    index_digest: Digest | None = None
    pipelines: Annotated[list[PipelineStatus], Meta(max_length=PIPELINES_PER_NODE_MAX)] = []
    telemetry: Annotated[list[PipelineTelemetry], Meta(max_length=PIPELINES_PER_NODE_MAX)] = []


class ErrorReport(UpMessage, frozen=True, tag="error", kw_only=True):
    """Something failed. `count` is how often since the last report of the same code."""

    code: Code
    at: Instant
    count: Count = 1
    pipeline: ResourceName | None = None
    table: TableName | None = None
    column: SqlName | None = None
    sql_state: SqlState | None = None


class ColumnSeen(UpValue, frozen=True, kw_only=True):
    """A column as the source describes it."""

    name: SqlName
    type: SqlName
    key: bool
    nullable: bool


class SchemaSeen(UpMessage, frozen=True, tag="schema-seen", kw_only=True):
    """A table's columns, sent when the node first reads the table and whenever they change."""

    pipeline: ResourceName
    table: TableName
    columns: Annotated[list[ColumnSeen], Meta(max_length=1600)]


class Answer(UpMessage, frozen=True, tag="answer", kw_only=True):
    """What a node found when it was asked."""

    id: CorrelationId
    ok: bool
    code: Code | None = None
    sql_state: SqlState | None = None
    elapsed_seconds: Seconds = 0.0
    server_version: Count = 0


class Finding(UpValue, frozen=True, omit_defaults=True, kw_only=True):
    """What came of one check. Which of the names and numbers are there depends on the check."""

    check: Check
    outcome: Outcome
    code: Code | None = None
    state: State | None = None
    pipeline: ResourceName | None = None
    table: TableName | None = None
    count: Count | None = None
    count_max: Count | None = None
    size_bytes: Count | None = None
    seconds: Seconds | None = None
    version: Count | None = None


class Diagnosis(UpMessage, frozen=True, tag="diagnosis", kw_only=True):
    """What a node found when the doctor was asked for. `findings` come worst first; `left_off` did not fit."""

    id: CorrelationId
    ok: bool
    code: Code | None = None
    sql_state: SqlState | None = None
    elapsed_seconds: Seconds = 0.0
    server_version: Count = 0
    findings: Annotated[list[Finding], Meta(max_length=FINDINGS_MAX)] = []
    left_off: Count = 0


class ReconcileStatus(UpMessage, frozen=True, tag="reconcile-status", kw_only=True):
    """How the comparison of one table stands, sent when it begins and when it ends. Counts only: keys never cross."""

    pipeline: ResourceName
    table: TableName
    number: Count
    repair: bool
    state: ReconcileState
    code: Code | None = None
    sql_state: SqlState | None = None
    rows_compared: Count = 0
    """Rows of the source that were looked at."""
    rows_missing: Count = 0
    """The destination lacked them."""
    rows_extra: Count = 0
    """Only the destination had them."""
    rows_different: Count = 0
    rows_unsettled: Count = 0
    """They kept changing, so that nothing can be said of them."""
    rows_repaired: Count = 0
    seconds: Seconds = 0.0


Fact = PipelineStatus | ErrorReport | SchemaSeen | ReconcileStatus
"""What must arrive: kept on the customer's side until the control plane has committed it."""


class CertificateRequest(UpMessage, frozen=True, tag="certificate-request", kw_only=True):
    """A node asks for its leaf's next certificate. `leaf_proof` is the leaf's signature that the TLS key is its own."""

    leaf_key: PublicKey
    leaf_tls_key: TlsKey
    leaf_proof: Signature


AnyUp = (
    SyncRequest
    | Heartbeat
    | PipelineStatus
    | ErrorReport
    | SchemaSeen
    | ReconcileStatus
    | Answer
    | Diagnosis
    | CertificateRequest
)


class Report(UpMessage, frozen=True, tag="report", kw_only=True):
    """The body that a node signs. (node, sequence) identifies it: sequences of one node only grow."""

    contract: Annotated[int, Meta(ge=2, le=2)] = 2
    node: ResourceName
    key: PublicKey
    sequence: Count
    message: AnyUp


class SyncReply(Struct, frozen=True, tag="sync-reply", tag_field="type", kw_only=True):
    """What the control plane answers to a sync: signed documents as they were published, each verified by the node.

    With an unchanged `index_digest` and nothing wanted, both are empty. `more` says that not all that was wanted fitted.
    `checkpoint` is the signed head of the tenant's audit log, which every node keeps for the customer.
    """

    index: Annotated[str, Meta(max_length=60_000)] | None = None
    documents: Annotated[list[Annotated[str, Meta(max_length=60_000)]], Meta(max_length=WANTED_MAX)] = []
    more: bool = False
    checkpoint: Annotated[str, Meta(max_length=4_096)] | UnsetType = UNSET


class CertificateReply(Struct, frozen=True, tag="certificate-reply", tag_field="type", kw_only=True):
    """What the control plane answers to a request for a certificate. The node checks all of it before it is used."""

    certificate: CertificateText
    token: LeafToken | None = None
    """The leaf's token at the hub, by the issuer of now."""


class Receipt(Struct, frozen=True, tag="receipt", tag_field="type", kw_only=True):
    """What the control plane answers to a report, after its commit. `accepted` is false for one it will never take."""

    sequence: Count
    accepted: bool
    code: Annotated[str, Meta(max_length=64)] | None = None
