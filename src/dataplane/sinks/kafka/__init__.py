"""Delivery into Kafka: `KafkaSink`, under the law of `dataplane.sinks.port`, and `reach`, which only knocks."""

from dataplane.sinks.kafka.sink import KafkaSink
from dataplane.sinks.kafka.topics import reach

__all__ = ["KafkaSink", "reach"]
