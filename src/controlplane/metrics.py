"""What Prometheus scrapes from the control plane. No label names a tenant, a resource or a person.

One registry per process, made by the composition root and passed to whoever measures something.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import Any

import psycopg
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from controlplane.domain import (
    PipelineBackfillRequested,
    PipelineConfigured,
    PipelineCopyingPaused,
    PipelineCopyingResumed,
    PipelinePaused,
    PipelineReconcileRequested,
    PipelineRestartRequested,
    PipelineResumed,
    PipelineResyncRequested,
    PlacementReported,
)
from controlplane.log import LoggedEvent
from controlplane.projection import Projection, ProjectionRunner

CHANGES_TRACKED_MAX = 10_000
"""How many changes may wait for a node's acknowledgement and still be timed; the oldest are given up first."""
_CHANGES = (
    PipelineConfigured,
    PipelinePaused,
    PipelineResumed,
    PipelineRestartRequested,
    PipelineResyncRequested,
    PipelineReconcileRequested,
    PipelineBackfillRequested,
    PipelineCopyingPaused,
    PipelineCopyingResumed,
)
_LATENCY_BUCKETS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
_APPLIED_BUCKETS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0)


class Metrics:
    """All metrics of the process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self.requests = Histogram(
            "pointsman_api_request_duration_seconds",
            "Time to answer a request, by route template.",
            ["method", "route", "status"],
            buckets=_LATENCY_BUCKETS,
            registry=self.registry,
        )
        self.commands = Counter(
            "pointsman_commands_total",
            "Writes by what came of them: changed, unchanged, replayed, or the code of the refusal.",
            ["outcome"],
            registry=self.registry,
        )
        self.change_to_applied = Histogram(
            "pointsman_change_to_applied_seconds",
            "From a pipeline's change to the first report of a node that acts on it.",
            buckets=_APPLIED_BUCKETS,
            registry=self.registry,
        )
        self.projection_lag = Gauge(
            "pointsman_projection_lag_events",
            "How far a projection's position is behind the newest event's id.",
            ["projection"],
            registry=self.registry,
        )
        self.projection_quarantined = Gauge(
            "pointsman_projection_quarantined_tenants",
            "Tenants that a projection has set aside because it failed on one of their events.",
            ["projection"],
            registry=self.registry,
        )
        self.connected_nodes = Gauge(
            "pointsman_connected_nodes", "Nodes whose last heartbeat is fresh.", registry=self.registry
        )
        self.database_up = Gauge(
            "pointsman_database_up", "1 if the database answered at the last scrape.", registry=self.registry
        )
        self.channel_ready = Gauge(
            "pointsman_channel_ready", "1 while the channel's connection to the hub is up.", registry=self.registry
        )

    def observe_projections(self, runners: Iterable[ProjectionRunner], latest: int) -> None:
        """Take over how far each projection is. Called at each scrape."""
        for runner in runners:
            name = runner.projection.name
            self.projection_lag.labels(name).set(max(0, latest - runner.position))
            self.projection_quarantined.labels(name).set(len(runner.quarantined))

    def render(self) -> bytes:
        """Return everything in Prometheus' text form."""
        return generate_latest(self.registry)


class ChangeTimer:
    """Times changes until a node acts on them. It watches a projection's pages once they are durable.

    What waits when the process ends is not timed; that costs a few samples and nothing else.
    """

    def __init__(self, projection: Projection, observe: Callable[[float], None]) -> None:
        self.name = projection.name
        self.tables: Sequence[str] = projection.tables
        self._projection = projection
        self._observe = observe
        self._waiting: OrderedDict[tuple[str, str, int], datetime] = OrderedDict()
        self._lock = threading.Lock()

    def apply(self, cursor: psycopg.Cursor[Any], events: Sequence[LoggedEvent]) -> None:
        """Let the watched projection do its work."""
        self._projection.apply(cursor, events)

    def after_commit(self, events: Sequence[LoggedEvent]) -> None:
        """Start a clock for each change and stop it at the first report that observes it."""
        self._projection.after_commit(events)
        with self._lock:
            for logged in events:
                event = logged.event
                if isinstance(event, _CHANGES):
                    self._waiting[logged.tenant, logged.name, event.generation] = logged.at
                    if len(self._waiting) > CHANGES_TRACKED_MAX:
                        self._waiting.popitem(last=False)
                elif isinstance(event, PlacementReported):
                    started = self._waiting.pop((logged.tenant, event.pipeline, event.observed_generation), None)
                    if started is not None:
                        self._observe((logged.at - started).total_seconds())
