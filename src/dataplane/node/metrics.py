"""The node's metrics for Prometheus, made at each scrape of what the agent knows at that moment.

Names start with `pointsman_`, units come last, counters end in `_total`. Labels are names that the customer chose and
closed lists, nothing else. Counters of a pipeline count since its worker's start, as Prometheus expects of a process.

The scrape runs in a thread of the HTTP server; it asks the agent's event loop for one consistent `Readings`.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from wsgiref.simple_server import WSGIServer

from msgspec import Struct
from prometheus_client import CollectorRegistry, Metric, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, InfoMetricFamily
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from contracts.codes import Code
from contracts.slots import Slot
from contracts.v2 import Phase, PipelineStatus
from dataplane.node import statuses
from dataplane.node.slot_metrics import PREFIX, metrics_of_slots
from dataplane.worker.protocol import WorkerStatus

SCRAPE_SECONDS_MAX = 5.0
LISTEN_RETRY_SECONDS = 10.0

_log = logging.getLogger(__name__)


class PipelineReading(Struct, frozen=True, kw_only=True):
    """One pipeline's numbers of this moment."""

    status: PipelineStatus | None
    slot: Slot | None = None
    workers: Sequence[WorkerStatus]
    desired_generation: int
    buffer_capacity_bytes: int
    worker_restarts_total: int


class Readings(Struct, frozen=True, kw_only=True):
    """Everything that a scrape shows."""

    node: str
    data_plane: str
    version: str
    pipelines: Mapping[str, PipelineReading]
    errors_total: Mapping[tuple[str, str], int]
    control_plane_connected: bool
    leaf_connected: bool
    documents_held: int
    documents_refused_total: Mapping[str, int]
    facts_waiting: int
    nodes_seen: int
    names_withheld_total: int


class NodeCollector(Collector):
    """Turns readings into metric families. `read` may be called from any thread."""

    def __init__(self, read: Callable[[], Readings]) -> None:
        self._read = read

    def describe(self) -> list[Metric]:
        """Nothing is read when the collector is registered."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Give every family."""
        readings = self._read()
        yield from _of_node(readings)
        yield from _of_pipelines(readings.pipelines)
        yield from _of_deliveries(readings.pipelines)
        yield from metrics_of_slots({name: each.slot for name, each in readings.pipelines.items() if each.slot})


def _of_node(readings: Readings) -> Iterator[Metric]:
    build = {"version": readings.version, "node": readings.node, "data_plane": readings.data_plane}
    yield InfoMetricFamily(f"{PREFIX}build", "The agent's version and where it runs.", value=build)
    for name, text, value in (
        ("control_plane_connected", "1 if the control plane answered lately.", readings.control_plane_connected),
        ("leaf_connected", "1 if the leaf answers.", readings.leaf_connected),
        ("documents_held", "Documents that the node acts on.", readings.documents_held),
        ("reports_waiting", "Reports that the control plane has not confirmed.", readings.facts_waiting),
        ("nodes_seen", "Living nodes of the data plane, this one included.", readings.nodes_seen),
    ):
        yield GaugeMetricFamily(f"{PREFIX}{name}", text, value=float(value))
    yield CounterMetricFamily(
        f"{PREFIX}names_withheld", "Names not reported for their alphabet.", value=readings.names_withheld_total
    )
    refused = CounterMetricFamily(f"{PREFIX}documents_refused", "Documents that the node refused.", labels=["reason"])
    for reason, count in readings.documents_refused_total.items():
        refused.add_metric([reason], count)
    yield refused
    errors = CounterMetricFamily(f"{PREFIX}errors", "Failures, by code.", labels=["pipeline", "code"])
    for (pipeline, code), count in readings.errors_total.items():
        errors.add_metric([pipeline, code], count)
    yield errors


def _of_pipelines(pipelines: Mapping[str, PipelineReading]) -> Iterator[Metric]:
    phase = GaugeMetricFamily(f"{PREFIX}pipeline_phase", "1 for the phase it is in.", labels=["pipeline", "phase"])
    gap = GaugeMetricFamily(f"{PREFIX}gap_open", "1 while rows may be missing.", labels=["pipeline"])
    generation = GaugeMetricFamily(
        f"{PREFIX}config_generation", "Newest generation held, and acted on.", labels=["pipeline", "state"]
    )
    restarts = CounterMetricFamily(f"{PREFIX}worker_restarts", "Worker processes replaced.", labels=["pipeline"])
    tables = GaugeMetricFamily(f"{PREFIX}snapshot_tables", "Tables in all, and copied.", labels=["pipeline", "state"])
    stalled = GaugeMetricFamily(
        f"{PREFIX}pipeline_stalled", "1 while it is connected, has a backlog and does not move.", labels=["pipeline"]
    )
    position = GaugeMetricFamily(f"{PREFIX}source_position_bytes", "LSN at the destination.", labels=["pipeline"])
    for name, reading in pipelines.items():
        generation.add_metric([name, "desired"], reading.desired_generation)
        restarts.add_metric([name], reading.worker_restarts_total)
        status = reading.status
        if status is None:
            continue
        generation.add_metric([name, "applied"], status.observed_generation)
        for each in Phase:
            phase.add_metric([name, each.value], float(each is status.phase))
        gap.add_metric([name], float(status.phase is Phase.GAP))
        stalled.add_metric([name], float(status.code is Code.NO_PROGRESS))
        tables.add_metric([name, "total"], status.tables_total)
        tables.add_metric([name, "copied"], status.tables_copied)
        if status.position is not None:
            position.add_metric([name], status.position.lsn)
    yield from (phase, gap, stalled, generation, restarts, tables, position)


def _of_deliveries(pipelines: Mapping[str, PipelineReading]) -> Iterator[Metric]:
    labels = ["pipeline"]
    counters = {
        "rows_total": CounterMetricFamily(f"{PREFIX}rows", "Rows delivered.", labels=labels),
        "bytes_total": CounterMetricFamily(f"{PREFIX}bytes", "Bytes delivered.", labels=labels),
        "transactions_total": CounterMetricFamily(f"{PREFIX}transactions", "Transactions delivered.", labels=labels),
        "undecodable_values_total": CounterMetricFamily(
            f"{PREFIX}undecodable_values", "Values that were no valid text, sent with escapes.", labels=labels
        ),
        "dead_letters_total": CounterMetricFamily(
            f"{PREFIX}dlq", "Changes that became dead letters at the destination.", labels=labels
        ),
    }
    gauges = {
        "dead_letters": GaugeMetricFamily(
            f"{PREFIX}dead_letters", "Dead letters that lie at the destination.", labels=labels
        ),
        "columns_ignored": GaugeMetricFamily(
            f"{PREFIX}columns_ignored", "Columns of the source that are not carried.", labels=labels
        ),
        "lag_bytes": GaugeMetricFamily(f"{PREFIX}source_lag_bytes", "Behind the source's log.", labels=labels),
        "lag_seconds": GaugeMetricFamily(f"{PREFIX}source_lag_seconds", "Behind the source.", labels=labels),
        "buffer_bytes": GaugeMetricFamily(f"{PREFIX}buffer_bytes", "In the buffer.", labels=labels),
        "snapshot_rows": GaugeMetricFamily(
            f"{PREFIX}snapshot_rows", "Rows read of the tables that are being copied.", labels=labels
        ),
        "snapshot_rows_estimated": GaugeMetricFamily(
            f"{PREFIX}snapshot_rows_estimated", "Rows of the tables that are being copied, about.", labels=labels
        ),
        "snapshot_bytes": GaugeMetricFamily(
            f"{PREFIX}snapshot_bytes", "Bytes read of the tables that are being copied.", labels=labels
        ),
        "snapshot_seconds_left": GaugeMetricFamily(
            f"{PREFIX}snapshot_seconds_left", "Until the copies end, at the rate so far.", labels=labels
        ),
    }
    queue = GaugeMetricFamily(f"{PREFIX}queue_bytes", "In the workers' memory.", labels=labels)
    capacity = GaugeMetricFamily(f"{PREFIX}buffer_capacity_bytes", "The buffer's bound.", labels=labels)
    latency = HistogramMetricFamily(
        f"{PREFIX}end_to_end_latency_seconds", "From the source's commit to the destination's.", labels=labels
    )
    for name, reading in pipelines.items():
        capacity.add_metric([name], reading.buffer_capacity_bytes)
        if not reading.workers:
            continue
        numbers = statuses.measure(name, reading.workers)
        for field, counter in counters.items():
            counter.add_metric([name], getattr(numbers, field))
        for field, gauge in gauges.items():
            value = getattr(numbers, field)
            if value is not None:
                gauge.add_metric([name], value)
        queue.add_metric([name], statuses.queue_bytes(reading.workers))
        delivered = statuses.delivery(reading.workers)
        if delivered.latency_buckets:
            buckets = sorted(delivered.latency_buckets.items(), key=lambda each: float(each[0]))
            latency.add_metric([name], [(le, float(count)) for le, count in buckets], delivered.latency_seconds_sum)
    yield from (*counters.values(), *gauges.values(), queue, capacity, latency)


class MetricsServer:
    """Serves the metrics of one agent on an address of the customer's choice, from within its event loop."""

    def __init__(self, host: str, port: int, read: Callable[[], Readings]) -> None:
        self._host = host
        self._port = port
        self._read = read
        self._server: WSGIServer | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin, in the background. A port that is taken is tried again: it is no reason for a node not to run."""
        self._task = asyncio.create_task(self._listen(asyncio.get_running_loop()), name="metrics")

    @property
    def port(self) -> int | None:
        """The port that is listened on; None while there is none."""
        return self._server.server_port if self._server is not None else None

    async def stop(self) -> None:
        """Stop listening."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        if self._server is not None:
            await asyncio.to_thread(self._server.shutdown)
            self._server.server_close()
            self._server = None

    async def _listen(self, loop: asyncio.AbstractEventLoop) -> None:
        async def read() -> Readings:
            return self._read()

        def read_in_loop() -> Readings:
            return asyncio.run_coroutine_threadsafe(read(), loop).result(SCRAPE_SECONDS_MAX)

        registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        registry.register(NodeCollector(read_in_loop))
        while self._server is None:
            try:
                # In a thread: the library looks up the host's name.
                self._server, _ = await asyncio.to_thread(start_http_server, self._port, self._host, registry)
            except OSError as error:
                _log.error("metrics_not_served", extra={"port": self._port, "reason": str(error)})
                await asyncio.sleep(LISTEN_RETRY_SECONDS)
