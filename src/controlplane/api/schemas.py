"""The form of every answer, for the OpenAPI document and for clients. A test holds real answers against it."""

from datetime import datetime
from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from contracts import v2
from contracts.audit import AuditEntry
from contracts.backfilling import Backfill
from contracts.names import Region, ResourceName, SecretReference, SqlName
from contracts.reconciling import Reconcile
from controlplane.domain import DataPlaneModel
from controlplane.manifests import PipelineManifest, StrictKafkaConfig, StrictPostgresConfig

Generation = Annotated[int, Meta(description="Grows with every change of the resource; it is the ETag.")]
Revision = Annotated[
    int, Meta(description="The id of the resource's newest event. Pass it as `at_least` to read what was written.")
]


class Resource(Struct, kw_only=True):
    """What every resource has beside what people write. These fields are read-only and passed over in a PUT."""

    name: str
    generation: Generation
    revision: Revision
    created_at: datetime
    updated_at: datetime


class ConnectionStatus(Struct, kw_only=True):
    """Which pipelines name the connection. Whether it can be reached, only a pipeline's node knows."""

    phase: str
    ready: bool
    used_by: list[str]


class _AnyConnection(Resource, kw_only=True):
    """A system that pipelines read or write."""

    kind: Literal["Connection"]
    secrets: dict[SqlName, SecretReference]
    status: ConnectionStatus
    signature: v2.CustomerSignature | UnsetType = UNSET
    warnings: list[str] = []


class PostgresConnectionResource(_AnyConnection, tag="postgres", tag_field="type", kw_only=True):
    """A PostgreSQL database that pipelines read or write."""

    config: StrictPostgresConfig


class KafkaConnectionResource(_AnyConnection, tag="kafka", tag_field="type", kw_only=True):
    """A Kafka cluster that pipelines write."""

    config: StrictKafkaConfig


ConnectionResource = PostgresConnectionResource | KafkaConnectionResource
"""A system that pipelines read or write."""


class ConnectionCheck(Struct, kw_only=True):
    """What a node found when it connected. `server_version` is as PostgreSQL counts it: 180003 for 18.3."""

    connection: str
    data_plane: str
    node: str
    ok: bool
    code: str | None
    message: str | None
    hint: str | None
    sql_state: str | None
    elapsed_seconds: float
    server_version: int | None


class ConnectionFinding(Struct, kw_only=True):
    """What came of one of the doctor's checks. Names and numbers are there where the check has them."""

    check: str
    outcome: Literal["ok", "unknown", "warning", "problem"]
    title: str
    """What is looked at."""
    message: str
    hint: str | None
    sql: list[str]
    """Statements that mend it, for an administrator of the server to read, adapt and run."""
    code: str | None
    state: str | None
    pipeline: str | None
    table: str | None
    count: int | None
    count_max: int | None
    size_bytes: int | None
    seconds: float | None


class ConnectionDiagnosis(Struct, kw_only=True):
    """What a node found wrong with a connection, worst first. `server_version` is 180003 for 18.3."""

    connection: str
    data_plane: str
    node: str
    ok: bool
    """Whether no finding is a problem."""
    complete: bool
    """False from a node of contract 1, which only says whether the connection works."""
    sql_state: str | None
    elapsed_seconds: float
    server_version: int | None
    findings: list[ConnectionFinding]
    left_off: int
    """How many findings, the mildest, did not fit into the answer."""


class Condition(Struct, kw_only=True):
    """One aspect of a state, as Kubernetes words it."""

    type: Literal["Ready", "Progressing", "Degraded"]
    status: Literal["True", "False"]
    reason: str
    message: str
    observed_generation: int
    last_transition: datetime | None


class ReconcileShown(Struct, kw_only=True):
    """What came of the newest comparison of a table's two ends. Which rows they were, only the customer's side knows."""

    table: str
    number: int
    repair: bool
    state: Annotated[
        Literal["waiting", "running", "done", "failed"],
        Meta(description="`waiting`: asked for, and not begun by a node."),
    ]
    at: datetime | None
    code: str | None
    hint: str | None
    sql_state: str | None
    rows_compared: int
    rows_missing: int
    rows_extra: int
    rows_different: int
    rows_unsettled: int
    rows_repaired: int
    seconds: float


class PipelineStatus(Struct, kw_only=True):
    """How a pipeline stands. `ready` is true only if a node that was heard of recently streams the newest generation."""

    phase: Annotated[str, Meta(description="A node's phase, or `unscheduled` before any node has reported.")]
    ready: bool
    run: v2.RunState
    node: str | None
    observed_generation: int
    restarts: int
    since: datetime | None
    code: str | None
    hint: str | None
    sql_state: str | None
    table: str | None
    column: str | None
    tables_total: int
    tables_copied: int
    position: dict[str, int] | None
    conditions: list[Condition]
    telemetry: Annotated[dict[str, Any] | None, Meta(description="Numbers of the last heartbeat, and when it was.")]
    reconciles: list[ReconcileShown]


class PipelineResource(PipelineManifest, frozen=True, forbid_unknown_fields=False, kw_only=True):
    """Which tables flow from which connection to which, and how that stands."""

    kind: Literal["Pipeline"]
    name: str
    run: v2.RunState
    restarts: int
    resyncs: dict[str, int]
    reconciles: dict[str, Reconcile]
    backfills: dict[str, Backfill]
    snapshots_paused: list[str]
    generation: Generation
    revision: Revision
    created_at: datetime
    updated_at: datetime
    status: PipelineStatus
    warnings: list[str] = []
    effects: list[str] = []
    """Of an answer to PUT: what the change does to data, or would do with `dry_run`."""


class DataPlaneStatus(Struct, kw_only=True):
    """How many of its nodes are heard of."""

    phase: Literal["waiting_for_nodes", "connected", "silent"]
    ready: bool
    nodes_total: int
    nodes_connected: int
    leaves: int


class DataPlaneResource(Resource, kw_only=True):
    """The nodes and the leaf that run pipelines."""

    kind: Literal["DataPlane"]
    model: DataPlaneModel
    status: DataPlaneStatus
    region: Region | UnsetType = UNSET
    warnings: list[str] = []


class NodeStatus(Struct, kw_only=True, omit_defaults=True):
    """What the node's last heartbeat said."""

    phase: Literal["never_seen", "connected", "silent"]
    ready: bool
    at: datetime | None = None
    started_at: datetime | None = None
    agent_version: str | None = None
    contract: int | None = None
    index_digest: str | None = None


class NodeResource(Resource, kw_only=True):
    """One agent of a data plane."""

    kind: Literal["Node"]
    data_plane: str
    key: str
    contract: int
    status: NodeStatus
    warnings: list[str] = []


class ApiKeyStatus(Struct, kw_only=True):
    """Whether the key opens anything."""

    phase: Literal["active", "expired"]
    ready: bool
    last_used_at: Annotated[datetime | None, Meta(description="To the minute; null if it has not been used.")]


class ApiKeyResource(Resource, kw_only=True):
    """A key of the API. `api_key` is there only in the answer to its creation."""

    kind: Literal["ApiKey"]
    id: str
    role: str
    expires_at: datetime | None
    member: str | None
    read_only: bool
    status: ApiKeyStatus | None = None
    api_key: str | None = None
    warnings: list[str] = []


class TenantResource(Struct, kw_only=True):
    """A tenant. `api_key` is there only in the answer to its creation."""

    kind: Literal["Tenant"]
    name: str
    tenant: str
    created_at: datetime
    revision: int
    api_key: str | None = None
    generation: int = 1
    updated_at: datetime | None = None


class TenantRequest(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is asked of a new tenant."""

    name: ResourceName


class JoinToken(Struct, kw_only=True):
    """A token by which one node may join, once. `token` is not there in the answer to a dry run."""

    expires_at: datetime
    token: str | None = None


class Enrolment(Struct, kw_only=True):
    """What a node needs to run and to trust: written into its folder by `pointsman node join`."""

    tenant: str
    account: str
    data_plane: str
    node: str
    root_key: str
    trust: str
    hub_leaf_url: str
    leaf_jwt: str | None
    leaf_certificate: str | None
    """For the TLS key that was sent, in PEM. The authorities by which the leaf knows the hub are in the trust list."""
    leaf_certificates: bool
    """Whether the hub demands such a certificate, and shows one of the same authorities itself."""


class LeafCertificate(Struct, kw_only=True):
    """A leaf's next certificate, in PEM, and the list that names the authorities, signed by the root key."""

    certificate: str
    trust: str


class Event(Struct, kw_only=True):
    """Something that happened. `data` are the event's own fields."""

    id: int
    at: str
    kind: str
    name: str
    type: str
    actor: str
    data: dict[str, Any]


class Connections(Struct, kw_only=True):
    """A page of connections."""

    items: list[ConnectionResource]
    next_cursor: str | None


class Pipelines(Struct, kw_only=True):
    """A page of pipelines."""

    items: list[PipelineResource]
    next_cursor: str | None


class DataPlanes(Struct, kw_only=True):
    """A page of data planes."""

    items: list[DataPlaneResource]
    next_cursor: str | None


class Nodes(Struct, kw_only=True):
    """A page of nodes."""

    items: list[NodeResource]
    next_cursor: str | None


class ApiKeys(Struct, kw_only=True):
    """A page of API keys."""

    items: list[ApiKeyResource]
    next_cursor: str | None


class Tenants(Struct, kw_only=True):
    """A page of tenants."""

    items: list[TenantResource]
    next_cursor: str | None


class Events(Struct, kw_only=True):
    """A page of events, oldest first. Ask again with `after` = the last id."""

    items: list[Event]


class AuditEntries(Struct, kw_only=True):
    """A page of audit entries, oldest first. Ask again with `after` = the last sequence."""

    items: list[AuditEntry]


class AuditCheckpoint(Struct, kw_only=True):
    """The signed head of the tenant's audit chain, as an envelope's text."""

    checkpoint: str


class AuditKey(Struct, kw_only=True):
    """The public half of the key that signs checkpoints."""

    key: str


class AuditResidency(Struct, kw_only=True):
    """A signed report as an envelope's text; `pointsman audit verify-residency` opens it."""

    report: str


class ReplayedEntry(Struct, kw_only=True):
    """The audit log's newest entry of that moment: `hash` is what a checkpoint vouches for."""

    sequence: int
    event_id: int
    at: str
    hash: str


class AuditReplay(Struct, kw_only=True):
    """Everything that was configured at a moment. Each pipeline's `acknowledged` says what each data plane acted on."""

    at: datetime
    entry: ReplayedEntry
    connections: list[dict[str, Any]]
    pipelines: list[dict[str, Any]]
    data_planes: list[dict[str, Any]]
    nodes: list[dict[str, Any]]
    api_keys: list[dict[str, Any]]


class Health(Struct, kw_only=True):
    """Whether the process can do its work, and each thing that it needs."""

    ready: bool
    checks: dict[str, str]
    notes: list[str] = []
    """What whoever runs the process should do something about."""
