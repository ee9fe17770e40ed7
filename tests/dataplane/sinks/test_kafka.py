"""Kafka as a destination, against a real broker: the law of sinks, and what only topics have."""

import asyncio
from collections.abc import AsyncIterator
from uuid import uuid4

import pytest
from tests.dataplane.laws.sink_law import SinkLaw
from tests.dataplane.sinks.changes import Row
from tests.kafka import reading
from tests.kafka.broker import Broker

from contracts.kafka import Format, KafkaConfig, TopicSettings
from contracts.v2 import ConnectionDocument, PipelineSink
from dataplane.batch import TableSchema
from dataplane.sinks.kafka import KafkaSink
from dataplane.sinks.ownership import Ownership
from dataplane.sinks.port import Sink

pytestmark = pytest.mark.kafka


class KafkaDestination:
    """A prefix of its own on a broker, and a pipeline of its own."""

    replaces = False

    def __init__(self, broker: Broker, format_: Format = Format.DEBEZIUM_JSON) -> None:
        self.broker = broker
        self.pipeline_id = uuid4().hex
        self.prefix = f"p{self.pipeline_id[:8]}"
        self.topics = TopicSettings(prefix=self.prefix, format=format_)
        self._made: list[KafkaSink] = []

    def sink(self) -> KafkaSink:
        document = ConnectionDocument(
            tenant="00000000-0000-0000-0000-000000000000",
            data_plane="local",
            name="events",
            epoch=1,
            generation=1,
            config=KafkaConfig(brokers=[self.broker.address]),
        )
        settings = PipelineSink(connection="events", topics=self.topics)
        made = KafkaSink(
            document, None, pipeline_id=self.pipeline_id, ownership=Ownership.of("node-1"), settings=settings
        )
        self._made.append(made)
        return made

    def topic(self, of: TableSchema) -> str:
        return f"{self.prefix}.{of.schema}.{of.name}"

    def rows(self, of: TableSchema) -> list[Row]:
        rows = reading.table(reading.records(self.broker.address, self.topic(of)))
        texts = [{name: None if value is None else str(value) for name, value in row.items()} for row in rows.values()]
        return sorted(texts, key=lambda row: str(row["id"]))

    async def crash(self, sink: Sink) -> None:
        """Its producer says nothing more: neither commit nor abort."""
        assert isinstance(sink, KafkaSink)
        producer, sink._producer, sink._open = sink._producer, None, False
        assert producer is not None
        sender = producer._sender.sender_task
        sender.cancel()
        await asyncio.gather(sender, return_exceptions=True)
        await producer.client.close()
        producer._closed = True

    async def close(self) -> None:
        for sink in self._made:
            await sink.close()


class TestKafka(SinkLaw):
    @pytest.fixture
    async def destination(self, broker: Broker) -> AsyncIterator[KafkaDestination]:
        destination = KafkaDestination(broker)
        yield destination
        await destination.close()
