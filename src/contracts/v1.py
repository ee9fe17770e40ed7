"""Contract version 1: what the oldest supported nodes speak.

It has one transform at most, no settings for the buffer beyond its type and none for source and sink, no snapshot
progress and no column in an error. Types that did not change in version 2 are the same objects there and here; golden files
pin the form of both. `convert` moves documents down to this version and reports up from it.
"""

from typing import Annotated

from msgspec import Meta, Struct

from contracts import v2
from contracts.codes import Code
from contracts.names import (
    AgentVersion,
    Count,
    Digest,
    Generation,
    Instant,
    PublicKey,
    ResourceName,
    Seconds,
    SqlState,
    TableName,
)
from contracts.v2 import (
    PIPELINES_PER_NODE_MAX,
    Answer,
    BufferType,
    ConnectionDocument,
    Document,
    IndexDocument,
    Position,
    RequiresDocument,
    RunState,
    SchemaSeen,
    SyncRequest,
    Transform,
    TrustDocument,
    UpMessage,
)

CONTRACT = 1


class PipelineSource(Struct, frozen=True, kw_only=True):
    """Which tables of which connection are captured."""

    connection: ResourceName
    tables: Annotated[list[TableName], Meta(min_length=1, max_length=v2.TABLES_MAX)]


class PipelineSink(Struct, frozen=True, kw_only=True):
    """Where changes are delivered."""

    connection: ResourceName


class PipelineDocument(Document, frozen=True, tag="pipeline", tag_field="kind", kw_only=True):
    """Everything that a node needs to run one pipeline, but for the connections."""

    run: RunState
    source: PipelineSource
    sink: PipelineSink
    buffer: BufferType = BufferType.DIRECT
    transform: Transform | None = None
    restarts: Count = 0


AnyDocument = ConnectionDocument | PipelineDocument | TrustDocument | RequiresDocument | IndexDocument


class PipelineStatus(UpMessage, frozen=True, tag="pipeline-status", kw_only=True):
    """What a node observes of a pipeline. `observed_generation` is the newest one that it acts on."""

    pipeline: ResourceName
    epoch: Generation
    observed_generation: Generation
    phase: v2.Phase
    since: Instant
    restarts: Count = 0
    code: Code | None = None
    sql_state: SqlState | None = None
    table: TableName | None = None
    position: Position | None = None


class PipelineTelemetry(UpMessage, frozen=True, tag="pipeline-telemetry", kw_only=True):
    """Numbers of a pipeline, last value only. Totals count since the worker's start."""

    pipeline: ResourceName
    rows_total: Count = 0
    bytes_total: Count = 0
    transactions_total: Count = 0
    errors_total: Count = 0
    lag_bytes: Count = 0
    lag_seconds: Seconds = 0.0
    latency_seconds: Seconds = 0.0
    buffer_bytes: Count = 0
    slot_retained_bytes: Count = 0


class Heartbeat(UpMessage, frozen=True, tag="heartbeat", kw_only=True):
    """The node lives, this is what it holds and how its pipelines stand."""

    at: Instant
    started_at: Instant
    agent_version: AgentVersion
    contract: Annotated[int, Meta(ge=1, le=99)]
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
    sql_state: SqlState | None = None


Fact = PipelineStatus | ErrorReport | SchemaSeen

AnyUp = SyncRequest | Heartbeat | PipelineStatus | ErrorReport | SchemaSeen | Answer


class Report(UpMessage, frozen=True, tag="report", kw_only=True):
    """The body that a node signs. (node, sequence) identifies it: sequences of one node only grow."""

    contract: Annotated[int, Meta(ge=1, le=1)] = 1
    node: ResourceName
    key: PublicKey
    sequence: Count
    message: AnyUp
