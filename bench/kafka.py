"""How fast the Kafka sink delivers sets that are ready in memory, against plain producers of the same bytes.

`uv run --with confluent-kafka python -m bench.kafka [--rows N] [--runs N]`: starts a broker of its own (Java and Maven are needed), writes one table
of 8 columns as Debezium's envelope and as plain JSON into topics of 3 partitions, sets of 20,000 rows, each a transaction
of its own, and prints medians with our CPU time for a row. Beside it, in the same run: aiokafka's own transactional
producer, one `send` a record, and confluent-kafka's (librdkafka, left out where it is not installed), with the same keys and
values, which they need not make.
"""

import argparse
import asyncio
import importlib.util
import shutil
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from uuid import uuid4

from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from bench.apply import SOURCE, TABLE, rows, whole
from bench.summary import tell
from tests.kafka.broker import Broker

from contracts.kafka import Format, KafkaConfig, TopicSettings
from contracts.v2 import ConnectionDocument, PipelineSink
from dataplane.batch import ChangeBatch, ChangeSet, Op
from dataplane.sinks.kafka import KafkaSink, envelope
from dataplane.sinks.ownership import Ownership

PARTITIONS = 3
SET_ROWS = 20_000
Pairs = list[tuple[bytes, bytes]]
Taken = tuple[float, float]
"""Seconds, and CPU seconds of this process."""


def sets(count: int) -> list[ChangeSet]:
    """Inserts, ready in memory."""
    batch = rows(0, count, 1)
    return [
        whole(batch.slice(start, min(SET_ROWS, count - start)), Op.INSERT, 1000 + start)
        for start in range(0, count, SET_ROWS)
    ]


def same(changes: list[ChangeSet], format_: Format) -> list[Pairs]:
    """The keys and values that the sink makes of each set."""
    made = []
    for change in changes:
        (batch,) = change.items
        assert isinstance(batch, ChangeBatch)
        records = envelope.records(batch, format_, envelope.Origin("bench", "s"), copied=False)
        assert records.keys is not None
        made.append(list(zip(records.keys.to_pylist(), records.values.to_pylist(), strict=True)))
    return made


async def make_topic(broker: Broker, name: str) -> None:
    """Make a topic that the plain producers write to."""
    admin = AIOKafkaAdminClient(bootstrap_servers=broker.address)
    await admin.start()
    await admin.create_topics([NewTopic(name, PARTITIONS, 1)])
    await admin.close()


async def by_sink(broker: Broker, changes: list[ChangeSet], format_: Format) -> Taken:
    """The sink as a worker runs it: a checkpoint in each transaction."""
    document = ConnectionDocument(
        tenant="00000000-0000-0000-0000-000000000000",
        data_plane="local",
        name="events",
        epoch=1,
        generation=1,
        config=KafkaConfig(brokers=[broker.address]),
    )
    topics = TopicSettings(prefix=f"b{uuid4().hex[:8]}", format=format_, partitions=PARTITIONS)
    settings = PipelineSink(connection="events", topics=topics)
    sink = KafkaSink(document, None, pipeline_id=uuid4().hex, ownership=Ownership.of("bench"), settings=settings)
    await sink.open()
    await sink.begin(SOURCE)
    cpu, start = time.process_time(), time.perf_counter()
    for change in changes:
        await sink.apply(change)
    taken = time.perf_counter() - start, time.process_time() - cpu
    await sink.close()
    return taken


async def by_aiokafka(broker: Broker, made: list[Pairs]) -> Taken:
    """One `send` a record, a transaction for each set."""
    name = f"a{uuid4().hex[:8]}"
    await make_topic(broker, name)
    producer = AIOKafkaProducer(bootstrap_servers=broker.address, transactional_id=name, max_batch_size=768 << 10)
    await producer.start()
    cpu, start = time.process_time(), time.perf_counter()
    for pairs in made:
        async with producer.transaction():
            for key, value in pairs:
                await producer.send(name, value, key)
    taken = time.perf_counter() - start, time.process_time() - cpu
    await producer.stop()
    return taken


async def by_confluent(broker: Broker, made: list[Pairs]) -> Taken:
    """librdkafka, a transaction for each set."""
    name = f"c{uuid4().hex[:8]}"
    await make_topic(broker, name)
    return await asyncio.to_thread(_produce, broker, name, made)


def _produce(broker: Broker, name: str, made: list[Pairs]) -> Taken:
    from confluent_kafka import Producer

    producer = Producer(
        {
            "bootstrap.servers": broker.address,
            "transactional.id": name,
            "partitioner": "murmur2_random",
            "linger.ms": 5,
            "queue.buffering.max.messages": 1_000_000,
        }
    )
    producer.init_transactions(30)
    cpu, start = time.process_time(), time.perf_counter()
    for pairs in made:
        producer.begin_transaction()
        for key, value in pairs:
            producer.produce(name, value, key)
        producer.commit_transaction(60)
    return time.perf_counter() - start, time.process_time() - cpu


async def run(broker: Broker, count: int, runs: int) -> None:
    """Measure all of them in turns."""
    changes = sets(count)
    cases: list[tuple[str, Callable[[], Awaitable[Taken]]]] = []
    for format_ in Format:
        made = same(changes, format_)
        cases += [
            (f"{format_.value}: the sink", lambda format_=format_: by_sink(broker, changes, format_)),  # type: ignore[misc]
            (f"{format_.value}: aiokafka, same bytes", lambda made=made: by_aiokafka(broker, made)),  # type: ignore[misc]
        ]
        if importlib.util.find_spec("confluent_kafka") is not None:
            cases.append(
                (f"{format_.value}: confluent-kafka, same bytes", lambda made=made: by_confluent(broker, made))
            )  # type: ignore[misc]
    samples: dict[str, list[Taken]] = {name: [] for name, _ in cases}
    for _ in range(runs):
        for name, case in cases:
            samples[name].append(await case())
    print(f"{count} rows of {len(TABLE.columns)} columns, sets of {SET_ROWS}, medians of {runs}\n")
    print("| what | rows/s | of the sink's | our CPU, µs a row |\n|---|---|---|---|")
    reference = 0.0
    for name, taken in samples.items():
        seconds, cpu = (statistics.median(each) for each in zip(*taken, strict=True))
        reference = count / seconds if name.endswith("the sink") else reference
        tell(f"kafka, {name}: rows/s", [count / each[0] for each in taken])
        print(f"| {name} | {count / seconds:,.0f} | {count / seconds / reference:.2f} | {cpu / count * 1e6:.2f} |")


def main() -> None:
    """Start a broker, measure, end it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="pm-bench-kafka-"))
    broker = Broker(folder)
    try:
        broker.create()
        broker.start()
        asyncio.run(run(broker, arguments.rows, arguments.runs))
    finally:
        broker.kill()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
