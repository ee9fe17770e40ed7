"""Records on their way into a Kafka transaction: built into batches, a partition each, and sent.

In flow the items of a set, from `sink`; out go record batches. Whole batches are built here and handed to the producer,
as sending records one by one costs ten times as much. What is under way is bounded by bytes.
"""

import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from aiokafka import AIOKafkaProducer, errors

from contracts.codes import Code
from contracts.kafka import Format
from dataplane.batch import ChangeBatch, Truncate
from dataplane.failures import Permanent
from dataplane.sinks.kafka import envelope
from dataplane.sinks.kafka.envelope import Origin, Records
from dataplane.sinks.kafka.partitions import partitions
from dataplane.sinks.kafka.topics import Topics

BATCH_BYTES_MAX = 768 << 10
"""Of one record batch. Brokers take 1 MiB unless told otherwise, and compress nothing by themselves."""
REQUEST_BYTES_MAX = 1 << 20
UNDER_WAY_BYTES_MAX = 16 << 20


class Delivery:
    """Sends into the open transaction of one producer. `now` gives milliseconds since 1970, for the records' timestamps."""

    def __init__(
        self, producer: AIOKafkaProducer, topics: Topics, format_: Format, name: str, now: Callable[[], int]
    ) -> None:
        self._producer = producer
        self._topics = topics
        self._format = format_
        self._name = name
        self._now = now
        self._under_way: list[asyncio.Future[Any]] = []
        self._bytes = 0

    async def write(self, batch: ChangeBatch, *, database: str, copied: bool) -> None:
        """Send a batch's records.

        Raises:
            Permanent: a name that Kafka has no topic for, or a topic that the cluster refuses to make.
            KafkaError: the cluster does not answer, or refuses.
        """
        count = await self._topics.partitions(batch.table)
        made = envelope.records(batch, self._format, Origin(self._name, database), copied=copied)
        topic = self._topics.name(batch.table)
        if made.keys is None:
            # Without a key there is no order but the table's: one partition keeps it.
            await self._send(made, topic, 0)
            return
        places = partitions(made.keys, count)
        for place in np.unique(places) if count > 1 else (0,):
            await self._send(made if count == 1 else _taken(made, places == place), topic, int(place))

    async def empty(self, item: Truncate, *, database: str, commit_time: int) -> None:
        """Say in every partition that the table was emptied.

        Raises:
            Permanent: the format has no word for what the source did (Code.SINK_TRUNCATE_UNSUPPORTED).
            KafkaError: the cluster does not answer, or refuses.
        """
        value = envelope.emptied(item.table, self._format, Origin(self._name, database), item.position, commit_time)
        if value is None and item.for_snapshot:
            return
        if value is None:
            raise Permanent(
                Code.SINK_TRUNCATE_UNSUPPORTED, "the table was emptied at the source", table=item.table.table
            )
        topic = self._topics.name(item.table)
        for place in range(await self._topics.partitions(item.table)):
            await self.put(topic, place, None, value)

    async def put(self, topic: str, place: int, key: bytes | None, value: bytes | None) -> None:
        """Send one record."""
        batch = self._producer.create_batch()
        batch.append(key=key, value=value, timestamp=self._now())
        await self._hand_over(batch, topic, place)

    async def settle(self) -> None:
        """Wait until the brokers have everything that was sent.

        Raises:
            KafkaError: they do not answer, or refuse.
        """
        waiting, self._under_way, self._bytes = self._under_way, [], 0
        # All of them are waited for: an error that nobody fetches would be told of as a programmer's.
        for each in await asyncio.gather(*waiting, return_exceptions=True):
            if isinstance(each, BaseException):
                raise each

    async def _send(self, made: Records, topic: str, place: int) -> None:
        keys = made.keys.to_pylist() if made.keys is not None else [None] * len(made)
        values = made.values.to_pylist()
        now = self._now()
        batch = self._producer.create_batch()
        append = batch.append
        for key, value in zip(keys, values, strict=True):
            if append(key=key, value=value, timestamp=now) is None:
                await self._hand_over(batch, topic, place)
                batch = self._producer.create_batch()
                append = batch.append
                if append(key=key, value=value, timestamp=now) is None:
                    raise errors.RecordTooLargeError(f"a record of {len(value or b'')} bytes")
        await self._hand_over(batch, topic, place)

    async def _hand_over(self, batch: Any, topic: str, place: int) -> None:
        batch.close()
        self._bytes += batch.size()
        self._under_way.append(await self._producer.send_batch(batch, topic, partition=place))
        if self._bytes >= UNDER_WAY_BYTES_MAX:
            await self.settle()


def _taken(made: Records, rows: npt.NDArray[np.bool_]) -> Records:
    assert made.keys is not None
    return Records(made.keys.filter(rows), made.values.filter(rows))
