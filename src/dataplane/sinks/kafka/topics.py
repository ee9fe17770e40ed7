"""The topics of a pipeline: one for each table, made when missing.

In flow tables as batches bring them; out flows how many partitions their topics have. Called by `sink` before it writes.
"""

import asyncio
from collections.abc import Sequence
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition, errors
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from contracts.codes import Code
from contracts.kafka import TopicSettings
from contracts.v2 import ConnectionDocument
from dataplane.batch import TableSchema
from dataplane.failures import Permanent, RetryLater
from dataplane.postgres import Revealable
from dataplane.sinks.kafka import client

NAME_CHARACTERS_MAX = 249
REPLICAS_WANTED = 3
MAKE_ATTEMPTS_MAX = 60
REACH_SECONDS_MAX = 10
MAKE_PAUSE_SECONDS = 0.1
READ_MILLISECONDS = 200
_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")


async def reach(connection: ConnectionDocument, password: Revealable | None) -> None:
    """Connect to a cluster as a pipeline would, and leave it.

    Raises:
        RetryLater: the cluster does not answer, or refuses user or password.
        Permanent: the connection is none to Kafka, or lists not all brokers.
    """
    topics = Topics(client.options(connection, password), TopicSettings(prefix=connection.name))
    try:
        async with asyncio.timeout(REACH_SECONDS_MAX):
            await topics.open(client.kafka_config(connection).brokers)
    except (errors.KafkaError, OSError, TimeoutError) as error:
        raise client.failure(error) from error
    finally:
        await topics.close()


class Topics:
    """The topics as this session has found or made them."""

    def __init__(self, options: dict[str, Any], settings: TopicSettings) -> None:
        self._options = options
        self._settings = settings
        self._known: dict[str, int] = {}
        self._replicas = 1
        self._admin: AIOKafkaAdminClient | None = None

    async def open(self, listed: Sequence[str]) -> None:
        """Connect, and see that the cluster's brokers are those that are `listed`: the node's policy has judged no others.

        Raises:
            Permanent: the cluster names another one (Code.SINK_BROKER_UNLISTED).
            KafkaError: the cluster does not answer, or refuses.
        """
        self._admin = admin = AIOKafkaAdminClient(**self._options)
        await admin.start()
        cluster = await admin.describe_cluster()
        named = {f"{each['host']}:{each['port']}".lower() for each in cluster["brokers"]}
        if unlisted := named - {each.lower() for each in listed}:
            raise Permanent(Code.SINK_BROKER_UNLISTED, f"not listed: {', '.join(sorted(unlisted))}")
        self._replicas = min(REPLICAS_WANTED, len(cluster["brokers"]))

    async def close(self) -> None:
        """Let go of the connection."""
        admin, self._admin = self._admin, None
        if admin is not None:
            await admin.close()

    def name(self, table: TableSchema) -> str:
        """Return a table's topic.

        Raises:
            Permanent: the table's name has a character that a topic's may not have, or is too long.
        """
        name = f"{self._settings.prefix}.{table.schema}.{table.name}"
        if len(name) > NAME_CHARACTERS_MAX or not _PLAIN.issuperset(name):
            raise Permanent(Code.SINK_TABLE_MISMATCH, "no topic can be called like this table", table=table.table)
        return name

    async def partitions(self, table: TableSchema) -> int:
        """Return how many partitions a table's topic has; it is made when missing.

        Raises:
            Permanent: the cluster refuses to make it.
            RetryLater: it was made and does not appear.
            KafkaError: the cluster does not answer, or refuses.
        """
        name = self.name(table)
        if name not in self._known:
            self._known[name] = await self.make(name, self._settings.partitions, {})
        return self._known[name]

    async def make(self, name: str, partitions: int, settings: dict[str, str]) -> int:
        """Make a topic unless it is there, and return how many partitions it has.

        Raises:
            KafkaError: the cluster does not answer, or refuses.
            RetryLater: it was made and does not appear.
        """
        assert self._admin is not None
        replicas = self._settings.replication_factor or self._replicas
        wanted = NewTopic(name, partitions, replicas, topic_configs=settings)
        for _ in range(MAKE_ATTEMPTS_MAX):
            (found,) = await self._admin.describe_topics([name])
            code = found["error_code"]
            if code == 0 and all(each["leader"] >= 0 for each in found["partitions"]):
                return len(found["partitions"])
            if code == errors.UnknownTopicOrPartitionError.errno:
                answer = await self._admin.create_topics([wanted])
                refused = answer.topic_errors[0][1]
                if refused not in (0, errors.TopicAlreadyExistsError.errno):
                    raise errors.for_code(refused)(name)
            elif code != 0 and not errors.for_code(code).retriable:
                raise errors.for_code(code)(name)
            await asyncio.sleep(MAKE_PAUSE_SECONDS)
        raise RetryLater(Code.SINK_UNREACHABLE, f"the topic {name} does not appear")

    async def drop(self, name: str) -> None:
        """Delete a topic, if it is there.

        Raises:
            KafkaError: the cluster does not answer, or refuses.
        """
        assert self._admin is not None
        answer = await self._admin.delete_topics([name])
        refused = answer.topic_error_codes[0][1]
        if refused not in (0, errors.UnknownTopicOrPartitionError.errno):
            raise errors.for_code(refused)(name)

    async def has_records(self, table: TableSchema) -> bool:
        """Say whether a table's topic holds a record that is committed: those of a copy that never ended count not.

        Raises:
            KafkaError: the cluster does not answer, or refuses.
        """
        places = [TopicPartition(self.name(table), each) for each in range(await self.partitions(table))]
        consumer = AIOKafkaConsumer(**self._options, enable_auto_commit=False, isolation_level="read_committed")
        await consumer.start()
        try:
            begins, ends = await consumer.beginning_offsets(places), await consumer.end_offsets(places)
            places = [place for place in places if begins[place] < ends[place]]
            consumer.assign(places)
            for place in places:
                consumer.seek(place, begins[place])
            while any([await consumer.position(place) < ends[place] for place in places]):
                if await consumer.getmany(timeout_ms=READ_MILLISECONDS):
                    return True
            return False
        finally:
            await consumer.stop()
