"""What a consumer that reads only what is committed finds in topics, and the tables that it would make of them."""

import asyncio
import json
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient

from dataplane.sinks.kafka.envelope import UNAVAILABLE

SECONDS_MAX = 30.0
Found = TypeVar("Found")


class Record(NamedTuple):
    partition: int
    key: bytes | None
    value: bytes | None


def apart(work: Coroutine[Any, Any, Found]) -> Found:
    """Run to the end in a loop of a thread's own: a test's loop is in the way of nothing."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, work).result()


def records(broker: str, topic: str) -> list[Record]:
    """Return all committed records of a topic, partition by partition; none if there is no topic."""
    return apart(_records(broker, topic))


async def _records(broker: str, topic: str) -> list[Record]:
    if not (places := await _places(broker, topic)):
        return []
    consumer = AIOKafkaConsumer(
        bootstrap_servers=broker, isolation_level="read_committed", enable_auto_commit=False, fetch_max_wait_ms=50
    )
    await consumer.start()
    try:
        consumer.assign(places)
        await consumer.seek_to_beginning(*places)
        ends = await consumer.end_offsets(places)
        found: dict[TopicPartition, list[Record]] = {place: [] for place in places}
        async with asyncio.timeout(SECONDS_MAX):
            while any([await consumer.position(place) < ends[place] for place in places]):
                for place, each in (await consumer.getmany(timeout_ms=50)).items():
                    found[place] += [Record(place.partition, record.key, record.value) for record in each]
        return [record for place in places for record in found[place]]
    finally:
        await consumer.stop()


async def _places(broker: str, topic: str) -> list[TopicPartition]:
    admin = AIOKafkaAdminClient(bootstrap_servers=broker)
    await admin.start()
    try:
        (found,) = await admin.describe_topics([topic])
        return [TopicPartition(topic, each["partition"]) for each in found["partitions"]]
    finally:
        await admin.close()


def table(found: list[Record]) -> dict[str, dict[str, Any]]:
    """Apply Debezium's envelopes: what is left, by the key's JSON. A value that did not travel leaves what was there."""
    rows: dict[str, dict[str, Any]] = {}
    by_partition: dict[str, int] = {}
    for record in found:
        if record.value is None:
            continue
        change = json.loads(record.value)
        if change["op"] == "t":
            rows = {key: row for key, row in rows.items() if by_partition[key] != record.partition}
            continue
        assert record.key is not None
        key = record.key.decode()
        by_partition[key] = record.partition
        if change["op"] == "d":
            rows.pop(key, None)
            continue
        row = change["after"]
        absent = [name for name, value in row.items() if value == UNAVAILABLE]
        if absent and key not in rows:
            continue
        rows[key] = row | {name: rows[key][name] for name in absent}
    return rows
