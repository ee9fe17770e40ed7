"""What a scrape shows: valid text of Prometheus, the numbers of the moment, and nothing else."""

import asyncio
import socket
import urllib.request

from msgspec import structs
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from tests.dataplane.node.documents import until, worker_status

from contracts.slots import Slot, SlotStatus
from contracts.v2 import Phase
from dataplane.node import metrics
from dataplane.node.metrics import MetricsServer, NodeCollector, PipelineReading, Readings
from dataplane.node.statuses import combine
from dataplane.worker.protocol import WorkerTelemetry
from pointsman.local.processes import free_port


def readings(**fields: object) -> Readings:
    worker = worker_status(
        phase=Phase.GAP,
        generation=2,
        position_lsn=77,
        telemetry=WorkerTelemetry(
            rows_total=10,
            lag_bytes=5,
            queue_bytes=6,
            dead_letters=2,
            dead_letters_total=9,
            latency_buckets={"0.01": 3, "10.0": 4, "+Inf": 5},
            latency_seconds_sum=1.25,
        ),
    )
    values: dict[str, object] = {
        "node": "node-1",
        "data_plane": "local",
        "version": "1.2.3",
        "pipelines": {
            "orders": PipelineReading(
                status=combine([worker]),
                workers=[worker],
                desired_generation=3,
                buffer_capacity_bytes=0,
                worker_restarts_total=4,
            ),
            "silent": PipelineReading(
                status=None, workers=[], desired_generation=1, buffer_capacity_bytes=9, worker_restarts_total=0
            ),
        },
        "errors_total": {("orders", "sink_constraint"): 2},
        "control_plane_connected": False,
        "leaf_connected": True,
        "documents_held": 3,
        "documents_refused_total": {"malformed": 1},
        "facts_waiting": 7,
        "nodes_seen": 1,
        "names_withheld_total": 0,
        **fields,
    }
    return Readings(**values)  # type: ignore[arg-type]


def samples(**fields: object) -> dict[str, float]:
    registry = CollectorRegistry()
    registry.register(NodeCollector(lambda: readings(**fields)))
    families = list(text_string_to_metric_families(generate_latest(registry).decode()))
    assert all(family.name.startswith("pointsman_") for family in families)
    assert all(family.documentation for family in families)
    return {
        f"{sample.name}{{{','.join(f'{name}={value}' for name, value in sorted(sample.labels.items()))}}}": sample.value
        for family in families
        for sample in family.samples
    }


def test_a_scrape_shows_the_numbers_of_a_pipeline() -> None:
    """Counters, gauges and both generations carry the pipeline's name."""
    shown = samples()
    assert shown["pointsman_rows_total{pipeline=orders}"] == 10
    assert shown["pointsman_source_lag_bytes{pipeline=orders}"] == 5
    assert shown["pointsman_queue_bytes{pipeline=orders}"] == 6
    assert shown["pointsman_dead_letters{pipeline=orders}"] == 2
    assert shown["pointsman_dlq_total{pipeline=orders}"] == 9
    assert shown["pointsman_config_generation{pipeline=orders,state=desired}"] == 3
    assert shown["pointsman_config_generation{pipeline=orders,state=applied}"] == 2
    assert shown["pointsman_worker_restarts_total{pipeline=orders}"] == 4
    assert shown["pointsman_gap_open{pipeline=orders}"] == 1
    assert shown["pointsman_pipeline_phase{phase=gap,pipeline=orders}"] == 1
    assert shown["pointsman_pipeline_phase{phase=streaming,pipeline=orders}"] == 0
    assert shown["pointsman_errors_total{code=sink_constraint,pipeline=orders}"] == 2
    assert shown["pointsman_buffer_capacity_bytes{pipeline=silent}"] == 9


def test_a_scrape_shows_how_the_slots_stand() -> None:
    """Numbers that are not known are absent: a limit of 0 would be a lie."""
    slot = Slot(status=SlotStatus.EXTENDED, retained_bytes=70, limit_bytes=100, growth_bytes_per_second=2.5)
    shown = samples(pipelines={"orders": structs.replace(readings().pipelines["silent"], slot=slot)})
    assert shown["pointsman_slot_retained_bytes{pipeline=orders}"] == 70
    assert shown["pointsman_slot_limit_bytes{pipeline=orders}"] == 100
    assert shown["pointsman_slot_growth_bytes_per_second{pipeline=orders}"] == 2.5
    assert shown["pointsman_slot_status{pipeline=orders,status=extended}"] == 1
    assert shown["pointsman_slot_status{pipeline=orders,status=lost}"] == 0
    assert "pointsman_slot_seconds_left{pipeline=orders}" not in shown
    assert "pointsman_slot_safe_bytes{pipeline=orders}" not in shown


def test_latency_is_a_histogram() -> None:
    """The worker's buckets arrive in order, with count and sum."""
    shown = samples()
    assert shown["pointsman_end_to_end_latency_seconds_bucket{le=0.01,pipeline=orders}"] == 3
    assert shown["pointsman_end_to_end_latency_seconds_bucket{le=+Inf,pipeline=orders}"] == 5
    assert shown["pointsman_end_to_end_latency_seconds_count{pipeline=orders}"] == 5
    assert shown["pointsman_end_to_end_latency_seconds_sum{pipeline=orders}"] == 1.25


def test_a_scrape_shows_the_node() -> None:
    """Whether the control plane and the leaf are there, and what is held, refused and waiting."""
    shown = samples()
    assert shown["pointsman_control_plane_connected{}"] == 0
    assert shown["pointsman_leaf_connected{}"] == 1
    assert shown["pointsman_documents_held{}"] == 3
    assert shown["pointsman_reports_waiting{}"] == 7
    assert shown["pointsman_documents_refused_total{reason=malformed}"] == 1
    assert shown["pointsman_build_info{data_plane=local,node=node-1,version=1.2.3}"] == 1


def scrape(port: int) -> str:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        text: str = answer.read().decode()
        return text


async def test_the_server_answers_and_stops() -> None:
    """It serves on the port it was given, until it is stopped."""
    port = free_port()
    server = MetricsServer("127.0.0.1", port, readings)
    server.start()
    await until(lambda: server.port == port)
    assert "pointsman_rows_total" in await asyncio.to_thread(scrape, port)
    await server.stop()
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0


async def test_a_taken_port_is_tried_again(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """A port that somebody holds is no reason for a node not to run."""
    monkeypatch.setattr(metrics, "LISTEN_RETRY_SECONDS", 0.05)
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        server = MetricsServer("127.0.0.1", port, readings)
        server.start()
        await asyncio.sleep(0.2)
        assert server.port is None
    await until(lambda: server.port == port)
    await server.stop()
