"""Kafka in the documents that go down: how to reach a cluster, and how changes become records of its topics.

A person writes these words, the control plane carries them, and the node obeys. What a client may be told is this list
and nothing else: no property of a client passes through, as some of them read files or name addresses to call. Add a
word here, never reuse or rename one: golden files hold their values.
"""

from enum import Enum
from typing import Annotated

from msgspec import Meta, Struct

BROKERS_MAX = 16
BROKER_PATTERN = r"^[A-Za-z0-9_.-]{1,253}:[0-9]{1,5}$(?!\n)"
TOPIC_PREFIX_PATTERN = r"^[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}$(?!\n)"
USER_PATTERN = r"^[A-Za-z0-9_.@+-]{1,128}$(?!\n)"

Broker = Annotated[str, Meta(pattern=BROKER_PATTERN, max_length=259, description="HOST:PORT of a broker.")]
TopicPrefix = Annotated[
    str, Meta(pattern=TOPIC_PREFIX_PATTERN, max_length=100, description="What stands before a topic's table name.")
]


class Sasl(Enum):
    """How a client says who it is. The password is a secret of the connection."""

    NONE = "none"
    PLAIN = "plain"
    SCRAM_SHA_256 = "scram-sha-256"
    SCRAM_SHA_512 = "scram-sha-512"


class Format(Enum):
    """What a record's value is."""

    DEBEZIUM_JSON = "debezium_json"
    """Debezium's envelope without schemas: before, after, source, op, ts_ms; a delete is followed by a tombstone."""
    JSON = "json"
    """The row alone; a delete is a tombstone."""


class KafkaConfig(Struct, frozen=True, tag="kafka", tag_field="type", kw_only=True):
    """How to reach a Kafka cluster. `brokers` are asked for the others, which the node must be allowed to reach too."""

    brokers: Annotated[list[Broker], Meta(min_length=1, max_length=BROKERS_MAX)]
    ssl_mode: Annotated[str, Meta(pattern="^(disable|verify-full)$(?!\n)")] = "disable"
    sasl: Sasl = Sasl.NONE
    user: Annotated[str, Meta(pattern=USER_PATTERN)] | None = None
    """Needed for `sasl`."""


class TopicSettings(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """The topics of a pipeline whose destination is Kafka: one for each table, `PREFIX.SCHEMA.TABLE`.

    Those that are missing are made with `partitions` and `replication_factor` (0: three, or as many as there are brokers).
    No other
    destination has them.
    """

    prefix: TopicPrefix
    format: Format = Format.DEBEZIUM_JSON
    partitions: Annotated[int, Meta(ge=1, le=1000)] = 6
    replication_factor: Annotated[int, Meta(ge=0, le=9)] = 0
