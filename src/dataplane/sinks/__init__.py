"""Where changes are delivered: one file or folder for each system, all under the law of `port`.

`SINKS` is the registry, by the `type` that people write in a connection: workers make sinks from it, and the law's
suite finds its members in it. Imports are late, so that the half of a pipeline that has no sink does not load one.
"""

from typing import Protocol

from contracts.v2 import ConnectionDocument
from dataplane.secrets import Secret
from dataplane.sinks.port import Sink


class MakeSink(Protocol):
    """Makes a sink; nothing is opened."""

    def __call__(
        self, connection: ConnectionDocument, password: Secret | None, *, pipeline_id: str, owner: str
    ) -> Sink:
        """`owner` names the node in the checkpoint, for people."""
        ...


def _postgres(connection: ConnectionDocument, password: Secret | None, *, pipeline_id: str, owner: str) -> Sink:
    from dataplane.sinks.postgres import PostgresSink

    return PostgresSink(connection, password, pipeline_id=pipeline_id, owner=owner)


SINKS: dict[str, MakeSink] = {"postgres": _postgres}
