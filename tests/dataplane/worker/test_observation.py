"""What a worker counts of its sources goes on over its sessions, and reaches the node's numbers."""

from tests.dataplane.node.documents import pipeline

from dataplane.node import statuses
from dataplane.sources.port import SourceGauges
from dataplane.worker.observation import Observation
from dataplane.worker.protocol import Half


def test_values_with_odd_bytes_are_counted_over_sessions() -> None:
    """A session's source counts from 0; the worker's total never goes back, and nothing is counted twice."""
    observation = Observation(lambda: 0.0, lambda: None)
    observation.acts_on(pipeline(), Half.WHOLE)
    totals = []
    for counts in ([0, 2, 3], [0, 0], [1, 5]):
        gauges = SourceGauges()
        observation.gauges_of = lambda gauges=gauges: gauges  # type: ignore[misc]
        for count in counts:
            gauges.undecodable_values = count
            totals.append(observation.status().telemetry.undecodable_values_total)
        observation.session_ended()
        totals.append(observation.status().telemetry.undecodable_values_total)
    assert totals == [0, 2, 3, 3, 3, 3, 3, 4, 8, 8]
    assert statuses.measure("p", [observation.status()]).undecodable_values_total == 8
