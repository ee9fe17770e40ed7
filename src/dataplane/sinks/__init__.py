"""Where changes are delivered: one file or folder for each system, all under the law of `port`.

`SINKS` maps a connection's configuration to the sink that delivers there: workers make sinks from it, and the law's
suite finds its members in it. Imports are late, so that the half of a pipeline that has no sink does not load one.
`memory` and `discard` obey the same law, but no document can name them.
"""

from collections.abc import Mapping
from typing import Protocol

from contracts.kafka import KafkaConfig
from contracts.v2 import ConnectionDocument, PipelineSink, PostgresConfig
from dataplane.secrets import Secret
from dataplane.sinks.ownership import Ownership
from dataplane.sinks.port import Sink


class MakeSink(Protocol):
    """Makes a sink; nothing is opened."""

    def __call__(
        self,
        connection: ConnectionDocument,
        password: Secret | None,
        *,
        pipeline_id: str,
        ownership: Ownership,
        settings: PipelineSink,
    ) -> Sink:
        """`pipeline_id` names the checkpoint, `ownership` says who claims it; `settings` are the pipeline's own."""
        ...


def _postgres(
    connection: ConnectionDocument,
    password: Secret | None,
    *,
    pipeline_id: str,
    ownership: Ownership,
    settings: PipelineSink,
) -> Sink:
    from dataplane.sinks.postgres import PostgresSink

    return PostgresSink(connection, password, pipeline_id=pipeline_id, ownership=ownership, settings=settings)


def _kafka(
    connection: ConnectionDocument,
    password: Secret | None,
    *,
    pipeline_id: str,
    ownership: Ownership,
    settings: PipelineSink,
) -> Sink:
    from dataplane.sinks.kafka import KafkaSink

    return KafkaSink(connection, password, pipeline_id=pipeline_id, ownership=ownership, settings=settings)


SINKS: Mapping[type, MakeSink] = {PostgresConfig: _postgres, KafkaConfig: _kafka}
