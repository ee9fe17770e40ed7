"""Delivery into Kafka: `KafkaSink`, under the law of `dataplane.sinks.port`."""

from dataplane.sinks.kafka.sink import KafkaSink

__all__ = ["KafkaSink"]
