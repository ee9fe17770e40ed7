"""A pipeline's checkpoint in Kafka: the newest record of a compacted topic of its own, `pointsman.checkpoint.PIPELINE_ID`.

In flows what `sink` wants to be durable, as a record of the same Kafka transaction as the rows; out flows the newest one
that was committed. A topic for each pipeline: in a shared one the open transaction of one pipeline would hide what
others have committed from everybody who reads only what is committed.
"""

from typing import Any

import msgspec
from aiokafka import AIOKafkaConsumer, TopicPartition
from msgspec import Struct

from dataplane.checkpoint import Checkpoint

TOPIC_PREFIX = "pointsman.checkpoint."
KEY = b"checkpoint"
SETTINGS = {"cleanup.policy": "compact", "min.cleanable.dirty.ratio": "0.1"}
FIRST_LOOK_BACK = 16
LOOK_BACK_FACTOR = 16
POLL_MILLISECONDS = 100


class Claim(Struct, frozen=True, kw_only=True):
    """The newest record: who claimed the pipeline last, and its checkpoint, None while it never wrote one."""

    epoch: int
    owner: str
    checkpoint: Checkpoint | None


def topic(pipeline_id: str) -> str:
    """Return the name of a pipeline's topic."""
    return TOPIC_PREFIX + pipeline_id


def encode(claim: Claim) -> bytes:
    """Return the record's value."""
    return msgspec.json.encode(claim)


async def newest(options: dict[str, Any], name: str) -> Claim | None:
    """Return the newest committed record of a topic that exists; None when there is none, or it was deleted.

    It is looked for from the end, further back each time: aborted transactions and compaction leave places without one.

    Raises:
        KafkaError: the cluster does not answer, or refuses.
    """
    consumer = AIOKafkaConsumer(**options, isolation_level="read_committed", enable_auto_commit=False)
    await consumer.start()
    try:
        place = TopicPartition(name, 0)
        consumer.assign([place])
        first = (await consumer.beginning_offsets([place]))[place]
        end = (await consumer.end_offsets([place]))[place]
        back = FIRST_LOOK_BACK
        while True:
            begin = max(first, end - back)
            consumer.seek(place, begin)
            found = await _last(consumer, place, end)
            if found is not None:
                return msgspec.json.decode(found, type=Claim) if found else None
            if begin <= first:
                return None
            back *= LOOK_BACK_FACTOR
    finally:
        await consumer.stop()


async def _last(consumer: AIOKafkaConsumer, place: TopicPartition, end: int) -> bytes | None:
    """Return the value of the last record before `end`, empty for one that was deleted; None when there is no record.

    The client passes over the marks of transactions and over what was aborted, which take places too.
    """
    found: bytes | None = None
    while await consumer.position(place) < end:
        records = await consumer.getmany(place, timeout_ms=POLL_MILLISECONDS)
        for record in records.get(place, ()):
            if record.offset < end:
                found = record.value or b""
    return found
