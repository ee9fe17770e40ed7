"""What the agent and its workers say to each other, on one machine, through a folder and a UNIX socket.

The agent writes an `Assignment` to a file and starts `python -m dataplane.worker`. The worker listens on a socket; the
agent connects and gets a `WorkerStatus` line (JSON) at once, at each change and once a second. Over the same socket the
agent may send a new `Assignment`: the worker ends its session at a transaction's end and begins the next one in the same
process. When the agent goes away the worker goes on; a new agent connects to the same socket. SIGTERM ends the worker
at a transaction's end.

Nothing of this crosses to the control plane: the agent copies what may cross into messages of the contracts.
"""

from enum import Enum

from msgspec import Struct

from contracts.codes import Code
from contracts.names import TenantId
from contracts.reconciling import ReconcileState
from contracts.v2 import ConnectionDocument, Phase
from dataplane.policy import MaskRule
from dataplane.slot_measure import SlotMeasure


class Half(Enum):
    """Which part of a pipeline a worker runs."""

    WHOLE = "whole"
    """Source and sink in one process (buffer `direct`)."""
    SOURCE = "source"
    SINK = "sink"
    RECONCILE = "reconcile"
    """No half: the process that compares both ends, beside those that run the pipeline."""


class BufferAccess(Struct, frozen=True, kw_only=True):
    """How a worker reaches the leaf's DATA account."""

    url: str
    seed_file: str
    """The nkey seed of DATA's local user."""


class Assignment(Struct, frozen=True, kw_only=True):
    """Everything that a worker needs. Written whole, replaced atomically, readable by its owner only."""

    pipeline_id: str
    tenant: TenantId
    half: Half
    contract: int
    document: str
    """The pipeline's document in its own contract version, as JSON."""
    source: ConnectionDocument
    sink: ConnectionDocument
    secrets_folder: str
    owner: str
    """This node; the worker names itself in the checkpoint after it."""
    buffer: BufferAccess | None = None
    restarts: int = 0
    masks: list[MaskRule] = []
    """Of the customer's policy: what no row may leave without. The worker asks for each table's real columns."""
    shared: bool = False
    """The data plane has other nodes: one of them takes the pipeline over while this node's agent is dead."""
    leased: bool = True
    """The leaf says that the pipeline's lease is this node's. Counts at the start of the process, and never afterwards."""


class CopyLine(Struct, frozen=True, kw_only=True):
    """How far the copy of one table is, as `TableProgress` of a source says it."""

    table: str
    rows: int = 0
    rows_estimated: int = 0
    bytes: int = 0
    seconds_left: float | None = None
    part: bool = False
    paused: bool = False


class WorkerTelemetry(Struct, frozen=True, kw_only=True):
    """Counted since the worker's start, and gauges of now."""

    rows_total: int = 0
    bytes_total: int = 0
    transactions_total: int = 0
    errors_total: int = 0
    lag_bytes: int = 0
    lag_seconds: float = 0.0
    latency_seconds: float = 0.0
    latency_buckets: dict[str, int] = {}
    """Cumulative counts of commit → destination latency, keyed by the upper bound in seconds (Prometheus's `le`)."""
    latency_seconds_sum: float = 0.0
    queue_bytes: int = 0
    buffer_bytes: int = 0
    slot_retained_bytes: int = 0
    undecodable_values_total: int = 0
    slot: SlotMeasure | None = None
    idle: bool = True
    """Nothing that came from the source waits for the destination, as far as this half knows."""
    tables_total: int = 0
    tables_copied: int = 0
    snapshot_rows: int = 0
    snapshot_rows_estimated: int = 0
    snapshot_bytes: int = 0
    snapshot_seconds_left: float | None = None
    copies: list[CopyLine] = []
    """Of the tables that are being copied, in their order."""
    dead_letters: int = 0
    dead_letters_total: int = 0
    columns_ignored: int = 0


class SchemaLine(Struct, frozen=True, kw_only=True):
    """A captured table: its name and, for each column, name, type text, key and nullable."""

    table: str
    columns: list[tuple[str, str, bool, bool]]


class ReconcileLine(Struct, frozen=True, kw_only=True):
    """How the comparison of one table stands."""

    table: str
    number: int
    repair: bool
    state: ReconcileState = ReconcileState.RUNNING
    code: Code | None = None
    sql_state: str | None = None
    rows_compared: int = 0
    rows_missing: int = 0
    rows_extra: int = 0
    rows_different: int = 0
    rows_unsettled: int = 0
    rows_repaired: int = 0
    seconds: float = 0.0


class WorkerStatus(Struct, frozen=True, kw_only=True):
    """What a worker observes. `generation` is that of the assignment it acts on."""

    pipeline: str
    half: Half
    pid: int
    epoch: int
    generation: int
    restarts: int
    phase: Phase
    since_seconds: float
    """Since when the phase holds, seconds since 1970."""
    code: Code | None = None
    sql_state: str | None = None
    table: str | None = None
    column: str | None = None
    position_lsn: int = 0
    position_ordinal: int = 0
    telemetry: WorkerTelemetry = WorkerTelemetry()
    schemas: list[SchemaLine] = []
    error_counts: dict[str, int] = {}
    """How often each code was met since the worker's start."""
    reconciles: list[ReconcileLine] = []
    """Of a process that compares: one line for each table that it has looked at."""


SOCKET_LINE_BYTES_MAX = 4 << 20
STATUS_INTERVAL_SECONDS = 1.0
