"""Events and the store: deterministic bytes, old forms still read, conflicts told, long streams not folded from the start."""

from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, ClassVar
from uuid import uuid4

import pytest
from psycopg_pool import ConnectionPool

from contracts import v2
from controlplane.commit_rows import CatalogueChange, Guard, IdempotencyRecord
from controlplane.domain import Connection, Context, DomainEvent, Pipeline, Undecodable
from controlplane.domain import event as events
from controlplane.domain.aggregate import HistoryUnreadableError, fold
from controlplane.domain.event import EventUnreadableError, decode, encode, topic_of
from controlplane.domain.pipeline import PipelineSpec
from controlplane.schema import migrate
from controlplane.settings import DatabaseSettings
from controlplane.store import SNAPSHOT_EVERY_EVENTS, ConflictError, EventStore, IdempotencyConflictError

AT = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
CONTEXT = Context("key:test", AT)
TENANT = str(uuid4())


def _configured(connection: Connection, host: str) -> list[DomainEvent]:
    config = v2.PostgresConfig(host=host, database="shop", user="u")
    return connection.configure(CONTEXT, type_="postgres", config=config, secrets={"b": "file:b", "a": "file:a"})


def test_equal_events_are_equal_bytes() -> None:
    """Fields and secrets are in a fixed order, whatever order they were given in."""
    (event,) = _configured(Connection.new(TENANT, "shop"), "h")
    assert encode(event) == encode(decode(topic_of(type(event)), encode(event), event.originator_id, 1))
    assert encode(event).startswith(b'{"actor":"key:test","at":"2026-01-02T03:04:05.678901Z","config":{"type"')
    assert b'"secrets":{"a":"file:a","b":"file:b"}' in encode(event)


@pytest.fixture
def renamed() -> Iterator[type[DomainEvent]]:
    """An event type whose third form differs from the two before it."""

    def to_2(fields: dict[str, Any]) -> dict[str, Any]:
        return {**fields, "speed": fields.pop("velocity")}

    def to_3(fields: dict[str, Any]) -> dict[str, Any]:
        return {**fields, "unit": "m/s"}

    @events.registered
    class Moved(DomainEvent, frozen=True, kw_only=True):
        """A thing moved."""

        KIND: ClassVar[str] = "Thing"
        SCHEMA: ClassVar[int] = 3
        UPCASTS: ClassVar[Mapping[int, Callable[[dict[str, Any]], dict[str, Any]]]] = {1: to_2, 2: to_3}

        speed: int
        unit: str

    yield Moved
    del events._TYPES["Moved"]


@pytest.mark.parametrize(
    ("topic", "own"),
    [
        ("Moved", '"velocity":7'),
        ("Moved/2", '"speed":7'),
        ("Moved/3", '"speed":7,"unit":"m/s"'),
    ],
)
def test_an_event_of_an_older_form_is_read_in_the_newest(renamed: type[DomainEvent], topic: str, own: str) -> None:
    """Each upcast leads one version on."""
    state = f'{{"at":"2026-01-02T03:04:05Z","tenant":"t","name":"n","actor":"a",{own}}}'
    event: Any = decode(topic, state.encode(), uuid4(), 1)
    assert (type(event), event.speed, event.unit) == (renamed, 7, "m/s")
    assert topic_of(renamed) == "Moved/3"


def test_a_version_without_an_upcast_cannot_be_registered() -> None:
    """A form that could not be read again is found before it is released."""

    class Half(DomainEvent, frozen=True):
        """Incomplete."""

        SCHEMA: ClassVar[int] = 3

    with pytest.raises(ValueError, match="upcast"):
        events.registered(Half)


@pytest.mark.parametrize(
    ("topic", "own"),
    [
        ("NoSuchEvent", ""),
        ("ConnectionConfigured/2", ""),
        ("ConnectionConfigured/x", ""),
        ("ConnectionConfigured", ',"generation":"one"'),
    ],
)
def test_an_event_that_cannot_be_read_still_says_whose_it_is(topic: str, own: str) -> None:
    """It stops its own tenant, and no decision is made from what follows it."""
    state = f'{{"at":"2026-01-02T03:04:05Z","tenant":"t","name":"n","actor":"a"{own}}}'
    event = decode(topic, state.encode(), uuid4(), 1)
    assert isinstance(event, Undecodable)
    assert (event.tenant, event.name) == ("t", "n")
    with pytest.raises(HistoryUnreadableError):
        Connection.new("t", "n").after(event)


def test_an_event_without_a_head_stops_everything() -> None:
    """Nobody can say whose it is, so nothing may be projected past it."""
    with pytest.raises(EventUnreadableError):
        decode("ConnectionConfigured", b"{}", uuid4(), 1)


@pytest.fixture
def store(database: Any) -> Iterator[EventStore]:
    settings = DatabaseSettings(host="127.0.0.1", port=database.port, name=database.name, user="postgres")
    made = EventStore(settings)
    with ConnectionPool(database.conninfo, min_size=1, max_size=2, open=True) as pool:
        migrate(pool, made)  # type: ignore[arg-type]
        migrate(pool, made)  # type: ignore[arg-type]  # every start runs it again
    yield made
    made.close()


def _save(store: EventStore, connection: Connection, host: str, **more: Any) -> Connection:
    new = _configured(connection, host)
    after = fold(connection, new)
    store.save([after], new, **more)
    return after


def test_of_two_that_decided_on_the_same_state_one_saves(store: EventStore) -> None:
    """The other is told, and nothing of it is stored."""
    fresh = Connection.new(TENANT, "shop")
    _save(store, fresh, "first")
    with pytest.raises(ConflictError):
        _save(store, fresh, "second")
    loaded = store.load(fresh)
    assert (loaded.version, loaded.config and loaded.config.host) == (1, "first")


def test_a_decision_from_an_old_catalogue_does_not_commit(store: EventStore, database: Any) -> None:
    """The guard fails the whole transaction: events, catalogue and idempotency record."""
    _save(store, Connection.new(TENANT, "a"), "h", guard=Guard(TENANT, 0))
    record = IdempotencyRecord(tenant=TENANT, key="k", request_digest="d", nonce="n", status=200, body="{}", at=AT)
    with pytest.raises(ConflictError):
        _save(
            store,
            Connection.new(TENANT, "b"),
            "h",
            guard=Guard(TENANT, 0),
            catalogue=[CatalogueChange(TENANT, "Connection", "b", "{}")],
            idempotency=record,
        )
    for table, rows in (("stored_events", 1), ("catalogue", 0), ("idempotency_records", 0)):
        assert database.execute(f"SELECT count(*) FROM {table}") == [(rows,)]
    _save(store, Connection.new(TENANT, "b"), "h", guard=Guard(TENANT, 1), idempotency=record)
    with pytest.raises(IdempotencyConflictError):
        store.save([], [], idempotency=record)
    revision = store.revision_of(Connection.address(TENANT, "b"))
    assert database.execute("SELECT revision FROM idempotency_records") == [(revision,)]


def test_the_store_goes_on_after_many_conflicts(store: EventStore) -> None:
    """A refused save leaves its connection usable."""
    fresh = Connection.new(TENANT, "shop")
    current = _save(store, fresh, "h")
    for number in range(30):
        with pytest.raises(ConflictError):
            _save(store, fresh, "x")
        current = _save(store, current, f"h{number}")
    assert store.load(fresh).version == 31


def test_a_long_stream_is_loaded_from_its_snapshot(store: EventStore, database: Any) -> None:
    """The newest snapshot and the events after it give the same state as all events."""
    current = Connection.new(TENANT, "shop")
    for number in range(SNAPSHOT_EVERY_EVENTS + 3):
        current = _save(store, current, f"h{number}")
    assert database.execute("SELECT originator_version, topic FROM snapshots") == [
        (SNAPSHOT_EVERY_EVENTS, "Connection/1")
    ]
    assert store.load(Connection.new(TENANT, "shop")) == current
    database.execute("UPDATE snapshots SET topic = 'Connection/0'")
    assert store.load(Connection.new(TENANT, "shop")) == current


def test_the_librarys_own_insert_function_is_never_made(store: EventStore, database: Any) -> None:
    """It takes no lock, so ids would become visible out of order."""
    assert database.execute("SELECT count(*) FROM pg_proc WHERE proname LIKE 'es_insert%'") == [(0,)]


def test_a_pipelines_generation_grows_with_every_wish() -> None:
    """Spec, pause, resume, restart, removal and deletion each raise it by one, and nothing else does."""
    spec = PipelineSpec(
        data_plane="local",
        source=v2.PipelineSource(connection="a", tables=["s.t"]),
        sink=v2.PipelineSink(connection="b"),
        buffer=v2.BufferSettings(),
        transforms=[],
    )
    pipeline = Pipeline.new(TENANT, "p")
    generations = []
    wishes: list[Callable[[Pipeline], list[DomainEvent]]] = [
        lambda it: it.configure(CONTEXT, spec),
        lambda it: it.configure(CONTEXT, spec),
        lambda it: it.pause(CONTEXT),
        lambda it: it.pause(CONTEXT),
        lambda it: it.resume(CONTEXT),
        lambda it: it.restart(CONTEXT),
        lambda it: it.remove(CONTEXT),
        lambda it: it.remove(CONTEXT),
        lambda it: it.delete(CONTEXT),
        lambda it: it.delete(CONTEXT),
        lambda it: it.configure(CONTEXT, spec),
    ]
    for wish in wishes:
        pipeline = fold(pipeline, wish(pipeline))
        generations.append(pipeline.generation)
    assert generations == [1, 1, 2, 2, 3, 4, 5, 5, 6, 6, 7]
    assert (pipeline.run, pipeline.restarts, pipeline.created_at) == (v2.RunState.RUNNING, 1, AT)
