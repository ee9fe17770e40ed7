"""What a tenant's documents must satisfy together: references, one writer for each table, no table copied onto itself.

Pure: a catalogue as it would be goes in, nothing or a refusal comes out. A change of a connection can break a rule for
pipelines that were fine before, so it is checked against all of them.
"""

from collections.abc import Iterator

from msgspec import UNSET, UnsetType

from contracts import v2
from contracts.kafka import TopicSettings
from controlplane.commands.catalogue import Catalogue
from controlplane.domain import Connection, Pipeline
from controlplane.domain.pipeline import PipelineSpec
from controlplane.refusals import Refused, refused_at

CONNECTIONS_MAX = 1000
DATA_PLANES_MAX = 100
PIPELINES_MAX = 2000
"""Per tenant: what a decision has to look through is bounded."""
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1", "localhost.localdomain"})

Endpoint = tuple[str, int, str]
"""Host, port and database: two connections with the same one lead to the same tables."""
Place = tuple[Endpoint, str]
"""One table of one database."""


def endpoint(config: v2.SystemConfig, topics: TopicSettings | UnsetType) -> Endpoint:
    """Return what a connection leads to, and of a cluster the part that `topics` names. Loopback's names are one host."""
    if isinstance(config, v2.PostgresConfig):
        return (_host(config.host), config.port, config.database)
    brokers = sorted({f"{_host(host)}:{port}" for host, _, port in (each.rpartition(":") for each in config.brokers)})
    return (",".join(brokers), 0, "" if isinstance(topics, UnsetType) else topics.prefix)


def _host(written: str) -> str:
    host = written.lower().rstrip(".")
    return "localhost" if host in _LOOPBACK else host


def check_pipeline(name: str, spec: PipelineSpec, catalogue: Catalogue) -> None:
    """Check a pipeline that is about to be configured against everything else.

    Raises:
        Refused: unknown_data_plane, unknown_connection, unfit_connection, invalid_document, same_table_cycle, table_taken or
            too_many_resources.
    """
    if spec.data_plane not in catalogue.data_planes:
        raise refused_at("unknown_data_plane", "/data_plane", f"there is no data plane {spec.data_plane}")
    for pointer, connection in (
        ("/source/connection", spec.source.connection),
        ("/sink/connection", spec.sink.connection),
    ):
        if connection not in catalogue.connections:
            raise refused_at("unknown_connection", pointer, f"there is no connection {connection}")
    _check_ends(spec, catalogue.connections)
    specs = {**_specs(catalogue.pipelines), name: spec}
    check_tables(specs, catalogue.connections, [name])
    _check_limits(specs, spec.data_plane)


def check_connection(changed: Connection, catalogue: Catalogue) -> None:
    """Check every pipeline that names a connection which is about to change.

    Raises:
        Refused: unfit_connection, invalid_document, same_table_cycle, table_taken or too_many_resources.
    """
    connections = {**catalogue.connections, changed.name: changed}
    if len(connections) > CONNECTIONS_MAX:
        raise Refused("too_many_resources", f"A tenant has at most {CONNECTIONS_MAX} connections.")
    specs = _specs(catalogue.pipelines)
    users = users_of_connection(changed.name, catalogue)
    for user in users:
        _check_ends(specs[user], connections)
    check_tables(specs, connections, users)


def _check_ends(spec: PipelineSpec, connections: dict[str, Connection]) -> None:
    """Check that both connections are to systems that can stand there, and that the sink's settings are those of its own."""
    source, sink = connections[spec.source.connection], connections[spec.sink.connection]
    if not isinstance(source.config, v2.PostgresConfig):
        raise refused_at("unfit_connection", "/source/connection", f"changes cannot be captured from {source.type}")
    asked = spec.sink
    if isinstance(sink.config, v2.PostgresConfig):
        if asked.topics is not UNSET:
            raise refused_at("invalid_document", "/sink/topics", "only a destination that is Kafka has topics")
        return
    if asked.topics is UNSET:
        raise refused_at(
            "invalid_document", "/sink/topics", "is needed, with a prefix: they are called PREFIX.SCHEMA.TABLE"
        )
    plain = v2.PipelineSink(connection=asked.connection)
    for field in ("on_refused", "on_schema_change", "consistency", "parallelism"):
        if getattr(asked, field) != getattr(plain, field):
            raise refused_at("invalid_document", f"/sink/{field}", f"{sink.type} has no other than the default")


def check_comparable(spec: PipelineSpec, catalogue: Catalogue) -> None:
    """Check that the destination's rows can be read back.

    Raises:
        Refused: unfit_connection.
    """
    sink = catalogue.connections.get(spec.sink.connection)
    if sink is not None and not isinstance(sink.config, v2.PostgresConfig):
        raise Refused("unfit_connection", f"What lies in {sink.type} cannot be compared with a table.")


def users_of_connection(name: str, catalogue: Catalogue) -> list[str]:
    """Return the names of the pipelines that read or write through a connection."""
    return sorted(
        pipeline
        for pipeline, spec in _specs(catalogue.pipelines).items()
        if name in (spec.source.connection, spec.sink.connection)
    )


def users_of_data_plane(name: str, catalogue: Catalogue) -> list[str]:
    """Return the names of the pipelines that run on a data plane."""
    return sorted(pipeline for pipeline, spec in _specs(catalogue.pipelines).items() if spec.data_plane == name)


def check_tables(specs: dict[str, PipelineSpec], connections: dict[str, Connection], changed: list[str]) -> None:
    """Check that the tables of the `changed` pipelines have no other writer and never come back to themselves.

    Raises:
        Refused: table_taken or same_table_cycle, naming the other pipeline and the table.
    """
    writers: dict[Place, str] = {}
    flows: dict[Place, list[tuple[Place, str]]] = {}
    ordered = [*(name for name in sorted(specs) if name not in changed), *changed]
    for name in ordered:
        for source, sink in _flows(specs[name], connections):
            if source == sink:
                raise Refused("same_table_cycle", f"Pipeline {name} would copy {source[1]} onto itself.")
            other = writers.get(sink)
            if other is not None and name in changed:
                raise Refused("table_taken", f"Pipeline {other} writes {sink[1]} of that database already.")
            writers[sink] = name
            flows.setdefault(source, []).append((sink, name))
    for name in changed:
        for source, sink in _flows(specs[name], connections):
            if _reaches(sink, source, flows):
                raise Refused(
                    "same_table_cycle", f"Through pipeline {name} and others {source[1]} would come back to itself."
                )


def _specs(pipelines: dict[str, Pipeline]) -> dict[str, PipelineSpec]:
    return {name: pipeline.spec for name, pipeline in pipelines.items() if pipeline.spec is not None}


def _flows(spec: PipelineSpec, connections: dict[str, Connection]) -> Iterator[tuple[Place, Place]]:
    """Yield from where to where each table of a pipeline flows. Tables keep their schema and name."""
    source = connections.get(spec.source.connection)
    sink = connections.get(spec.sink.connection)
    if source is None or sink is None or source.config is None or sink.config is None:
        return
    start, end = endpoint(source.config, UNSET), endpoint(sink.config, spec.sink.topics)
    for table in spec.source.tables:
        yield (start, table), (end, table)


def _reaches(start: Place, goal: Place, flows: dict[Place, list[tuple[Place, str]]]) -> bool:
    """Say whether rows that arrive at `start` flow on, through whatever pipelines, to `goal`."""
    seen: set[Place] = set()
    ahead = [start]
    while ahead:
        place = ahead.pop()
        if place == goal:
            return True
        if place not in seen:
            seen.add(place)
            ahead.extend(sink for sink, _ in flows.get(place, ()))
    return False


def _check_limits(specs: dict[str, PipelineSpec], data_plane: str) -> None:
    if len(specs) > PIPELINES_MAX:
        raise Refused("too_many_resources", f"A tenant has at most {PIPELINES_MAX} pipelines.")
    on_plane = [spec for spec in specs.values() if spec.data_plane == data_plane]
    connections = {name for spec in on_plane for name in (spec.source.connection, spec.sink.connection)}
    # The index of a data plane names its pipelines, their connections and the list of trusted keys.
    if len(on_plane) + len(connections) + 1 > v2.INDEX_ENTRIES_MAX:
        raise Refused(
            "too_many_resources",
            f"A data plane holds at most {v2.INDEX_ENTRIES_MAX - 1} pipelines and connections together.",
        )
    if len(on_plane) > v2.PIPELINES_PER_NODE_MAX:
        raise Refused("too_many_resources", f"A data plane holds at most {v2.PIPELINES_PER_NODE_MAX} pipelines.")
