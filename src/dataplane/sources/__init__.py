"""Where changes come from: one file or folder for each system, all under the law of `port`.

`SOURCES` maps a connection's configuration to the source that captures there: workers make sources from it, and the
law's suite finds its members in it. Imports are late, so that the half of a pipeline that has no source does not load one.
"""

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Protocol

from msgspec import Struct

from contracts.backfilling import Backfill
from contracts.v2 import ConnectionDocument, PipelineSource, PostgresConfig
from dataplane.secrets import Secret
from dataplane.sources.port import Source

if TYPE_CHECKING:
    from dataplane.sources.postgres.spill import Spill


class Asked(Struct, frozen=True, kw_only=True):
    """What a pipeline's document asks of the copies of its tables, beside that there are some."""

    resyncs: Mapping[str, int] = {}
    """A table is copied again while the checkpoint is behind its number."""
    backfills: Mapping[str, Backfill] = {}
    """The same for rows of a table."""
    paused: frozenset[str] = frozenset()
    """Tables of which no chunk is copied."""


class MakeSource(Protocol):
    """Makes a source; nothing is opened."""

    def __call__(
        self,
        connection: ConnectionDocument,
        password: Secret | None,
        *,
        pipeline_id: str,
        settings: PipelineSource,
        asked: Asked,
        spill: "Spill | None" = None,
        parsed: Collection[str] | None = None,
    ) -> Source:
        """The tables of `settings` are captured, and copied as is `asked`.

        `spill` is the worker's room on disk for what the source sends ahead of time. `parsed` are the tables whose copied
        rows somebody looks at before the sink has them; those of others may come as the source wrote them. None: all.
        """
        ...


def _postgres(
    connection: ConnectionDocument,
    password: Secret | None,
    *,
    pipeline_id: str,
    settings: PipelineSource,
    asked: Asked,
    spill: "Spill | None" = None,
    parsed: Collection[str] | None = None,
) -> Source:
    from dataplane.sources.postgres import PostgresSource

    return PostgresSource(
        connection,
        password,
        pipeline_id=pipeline_id,
        tables=settings.tables,
        resyncs=asked.resyncs,
        backfills=asked.backfills,
        paused=asked.paused,
        log=settings.log,
        snapshot=settings.snapshot,
        failover=settings.failover,
        spill=spill,
        parsed=parsed,
    )


SOURCES: Mapping[type, MakeSource] = {PostgresConfig: _postgres}
