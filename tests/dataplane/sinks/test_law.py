"""Every sink that a worker can be given, and those that only tests and benchmarks use, obey the law of sinks."""

from collections.abc import AsyncIterator
from pathlib import Path

import psycopg
import pytest
from tests.dataplane.laws.drift_law import DriftLaw
from tests.dataplane.laws.letter_law import LetterLaw, Lies
from tests.dataplane.laws.sink_law import SinkLaw
from tests.dataplane.sinks.changes import Row
from tests.dataplane.sinks.destinations import PostgresDestination, divide_always, send_singly

from contracts.kafka import KafkaConfig
from contracts.v2 import PipelineSink, PostgresConfig
from dataplane.batch import TableSchema
from dataplane.sinks import SINKS
from dataplane.sinks.discard import DiscardSink
from dataplane.sinks.memory import Memory, MemorySink
from dataplane.sinks.ownership import Ownership
from dataplane.sinks.port import Sink


class TestPostgres(SinkLaw, LetterLaw, DriftLaw):
    """Small sets go row by row."""

    @pytest.fixture
    async def destination(self, database) -> AsyncIterator[PostgresDestination]:  # type: ignore[no-untyped-def]
        destination = PostgresDestination(database)
        yield destination
        await destination.close()


class TestPostgresInBulk(SinkLaw, LetterLaw, DriftLaw):
    """Every set goes by COPY, as large ones do."""

    @pytest.fixture
    async def destination(  # type: ignore[no-untyped-def]
        self, database, monkeypatch: pytest.MonkeyPatch
    ) -> AsyncIterator[PostgresDestination]:
        send_singly(monkeypatch, 0)
        destination = PostgresDestination(database)
        yield destination
        await destination.close()


class TestPostgresInLanes(SinkLaw, LetterLaw, DriftLaw):
    """Every set that may be divided goes over three connections."""

    whole = False

    @pytest.fixture
    async def destination(  # type: ignore[no-untyped-def]
        self, database, monkeypatch: pytest.MonkeyPatch
    ) -> AsyncIterator[PostgresDestination]:
        divide_always(monkeypatch)
        destination = PostgresDestination(database, lanes=3)
        yield destination
        await destination.close()


class MemoryDestination:
    replaces = True

    def __init__(self) -> None:
        self.memory = Memory()
        self._refused: dict[str, str | None] = {}

    def sink(self) -> Sink:
        return MemorySink(self.memory, pipeline_id="p", ownership=Ownership.of("node"))

    def with_settings(self, settings: PipelineSink) -> Sink:
        return MemorySink(self.memory, pipeline_id="p", ownership=Ownership.of("node"), settings=settings)

    def refuse(self, of: TableSchema, name: str | None) -> None:
        self._refused = {**self._refused, of.table: name}
        self.memory.refuses = lambda table, row: row["name"] is not None and self._refused.get(table) == row["name"]

    def letters(self) -> list[Lies]:
        return [
            Lies(each.op.name.lower(), each.key["id"], each.cause.code) for each in self.memory.letters.get("p", [])
        ]

    def rows(self, of: TableSchema) -> list[Row]:
        held = self.memory.rows(of.table)
        return [held[key] for key in sorted(held, key=str)]

    async def crash(self, sink: Sink) -> None:
        del sink


class TestMemory(SinkLaw, LetterLaw, DriftLaw):
    @pytest.fixture
    def destination(self) -> MemoryDestination:
        return MemoryDestination()


class DiscardDestination:
    replaces = True

    def __init__(self, path: Path) -> None:
        self._path = path

    def sink(self) -> Sink:
        return DiscardSink(self._path)

    def rows(self, of: TableSchema) -> None:
        del of

    async def crash(self, sink: Sink) -> None:
        del sink


class TestDiscard(SinkLaw):
    @pytest.fixture
    def destination(self, tmp_path: Path) -> DiscardDestination:
        return DiscardDestination(tmp_path / "checkpoint.json")


def test_every_sink_that_a_document_can_name_is_held_to_the_law() -> None:
    """A sink that is added to the registry needs a class above, or in `test_kafka`, which needs a broker."""
    assert set(SINKS) == {PostgresConfig, KafkaConfig}


def test_a_postgres_session_is_asked_for_in_one_way_only() -> None:
    """The driver is the one whose compiled part is installed: the fallback is far too slow."""
    assert psycopg.pq.__impl__ == "binary"
