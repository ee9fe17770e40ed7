"""What the channel counts, on the control plane's /metrics. No label names a tenant, a resource or a person."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_SYNC_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)


class ChannelMetrics:
    """All metrics of the channel, in the registry that the composition root hands in."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        registry = registry if registry is not None else CollectorRegistry()
        self.published = Counter(
            "pointsman_channel_documents_published_total", "Documents published to nodes.", ["kind"], registry=registry
        )
        self.not_sent = Counter(
            "pointsman_channel_messages_not_sent_total",
            "Messages dropped because the hub was away or slow; nodes find out by their next sync.",
            registry=registry,
        )
        self.syncs = Counter(
            "pointsman_channel_syncs_total", "Syncs, by what came of them.", ["result"], registry=registry
        )
        self.sync_seconds = Histogram(
            "pointsman_channel_sync_seconds",
            "From a sync's arrival to its answer.",
            buckets=_SYNC_BUCKETS,
            registry=registry,
        )
        self.reports = Counter(
            "pointsman_channel_reports_total",
            "Messages from nodes, by kind and what came of them.",
            ["kind", "result"],
            registry=registry,
        )
        self.queued = Gauge(
            "pointsman_channel_queued", "Messages from nodes that wait to be handled.", ["kind"], registry=registry
        )
        self.claims_pushed = Counter(
            "pointsman_channel_claims_pushed_total", "Account claims that the hub has taken.", registry=registry
        )
        self.leaf_admissions = Counter(
            "pointsman_channel_leaf_admissions_total",
            "Leaves that connected to the hub and showed a certificate, by what came of it.",
            ["result"],
            registry=registry,
        )
        self.hub_connects = Counter(
            "pointsman_channel_hub_connects_total", "Connections made to the hub.", registry=registry
        )
        self.nodes_ahead = Gauge(
            "pointsman_channel_nodes_ahead",
            "Nodes that hold a newer index than the log: the control plane was restored; raise the epoch.",
            registry=registry,
        )
