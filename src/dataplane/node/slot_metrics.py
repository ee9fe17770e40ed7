"""The numbers of slots for Prometheus: one family for each, one sample for each pipeline. Called by `metrics`."""

from collections.abc import Iterator, Mapping

from prometheus_client import Metric
from prometheus_client.core import GaugeMetricFamily

from contracts.slots import Slot, SlotStatus

PREFIX = "pointsman_"

_GAUGES = (
    ("slot_retained_bytes", "retained_bytes", "Log that the source keeps for the slot."),
    ("slot_unconfirmed_bytes", "unconfirmed_bytes", "Log after the position that was confirmed."),
    ("slot_safe_bytes", "safe_bytes", "What the source may write before it gives the slot up; absent without a limit."),
    ("slot_limit_bytes", "limit_bytes", "What the slot may keep; absent without a limit."),
    ("slot_growth_bytes_per_second", "growth_bytes_per_second", "How fast the slot grows, smoothed over minutes."),
    ("slot_seconds_left", "seconds_left", "Until the limit, should the slot go on growing; absent otherwise."),
    ("slot_active", "active", "1 while somebody reads the slot."),
    ("slot_inactive_seconds", "inactive_seconds", "For how long nobody has read the slot (PostgreSQL 17)."),
    ("slot_catalog_age_transactions", "catalog_age", "Transactions that the slot holds the catalog's vacuum back."),
    ("slot_spill_bytes", "spill_bytes", "Written to the source's disk while it decoded large transactions."),
)


def metrics_of_slots(slots: Mapping[str, Slot]) -> Iterator[Metric]:
    """Give every family."""
    for name, field, text in _GAUGES:
        gauge = GaugeMetricFamily(f"{PREFIX}{name}", text, labels=["pipeline"])
        for pipeline, slot in slots.items():
            value = getattr(slot, field)
            if value is not None:
                gauge.add_metric([pipeline], float(value))
        yield gauge
    status = GaugeMetricFamily(f"{PREFIX}slot_status", "1 for how the slot stands.", labels=["pipeline", "status"])
    for pipeline, slot in slots.items():
        for each in SlotStatus:
            status.add_metric([pipeline, each.value], float(each is slot.status))
    yield status
