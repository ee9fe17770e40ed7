"""Where a pipeline's rows were, folded from a tenant's audit entries: nodes, places, routes, policies, and what was reported.

In flow entries from the first on, in order; out flow a report that is not signed yet. Called by the API, which also gives the
checkpoint. Only events of four kinds matter: connections, pipelines, data planes, nodes, and what nodes said of placements.
"""

from collections import Counter
from collections.abc import Iterable
from datetime import datetime

from msgspec import UNSET, structs

from contracts.audit import AuditEntry
from contracts.residency import PERIODS_MAX, Carrier, Residency, Route
from contracts.v2 import CustomerSignature, PostgresConfig, SystemConfig
from controlplane.domain import (
    ConnectionConfigured,
    DataPlaneCreated,
    DomainEvent,
    NodeEnrolled,
    PipelineConfigured,
    PipelineDeleted,
    PlacementReported,
    Undecodable,
)
from controlplane.domain.aggregate import HistoryUnreadableError
from controlplane.domain.event import decode_entry
from controlplane.readmodels.resources import KINDS


class _Fold:
    """What the entries up to one have said."""

    def __init__(self, pipeline: str) -> None:
        self.pipeline = pipeline
        self.connections: dict[str, SystemConfig] = {}
        self.regions: dict[str, str] = {}
        self.nodes: dict[str, NodeEnrolled] = {}
        self.configured: PipelineConfigured | None = None
        self.routes: list[Route] = []
        self.carriers: list[Carrier] = []
        self.crossed: Counter[str] = Counter()

    def apply(self, event: DomainEvent, at: datetime) -> None:
        match event:
            case ConnectionConfigured():
                self.connections[event.name] = event.config
                spec = self.configured
                if spec is not None and event.name in (spec.source.connection, spec.sink.connection):
                    self._route(spec, at)
            case DataPlaneCreated():
                self.regions[event.name] = event.region if event.region is not UNSET else ""
            case NodeEnrolled():
                self.nodes[event.name] = event
            case PipelineConfigured() if event.name == self.pipeline:
                self.configured = event
                self._route(event, at)
            case PipelineDeleted() if event.name == self.pipeline:
                self._end(at)
                self.configured = None
            case PlacementReported() if event.pipeline == self.pipeline:
                self._carry(event, at)

    def _route(self, spec: PipelineConfigured, at: datetime) -> None:
        signature = spec.signature
        route = Route(
            generation=spec.generation,
            since=at,
            source=self._place(spec.source.connection),
            destination=self._place(spec.sink.connection),
            tables=list(spec.source.tables),
            masked_or_dropped=sorted({f"{each.table}.{name}" for each in spec.transforms for name in each.columns}),
            customers_key=signature.key if isinstance(signature, CustomerSignature) else None,
        )
        last = self.routes[-1] if self.routes else None
        if last is not None and structs.replace(route, since=last.since) == last:
            return  # a connection was written again, and leads where it led
        self._end(at)
        self.routes.append(route)

    def _end(self, at: datetime) -> None:
        if self.routes and self.routes[-1].until is None:
            self.routes[-1] = structs.replace(self.routes[-1], until=at)

    def _place(self, name: str) -> str:
        config = self.connections.get(name)
        if config is None:
            return name
        if isinstance(config, PostgresConfig):
            return f"{name}: {config.host}:{config.port}/{config.database}"
        return f"{name}: {', '.join(config.brokers)}"

    def _carry(self, event: PlacementReported, at: datetime) -> None:
        node = self.nodes.get(event.node)
        carrier = Carrier(
            node=event.node,
            key=node.key if node is not None else "U" + "A" * 55,
            contract=node.contract if node is not None else 0,
            data_plane=event.data_plane,
            region=self.regions.get(event.data_plane) or None,
            policy=event.policy if event.policy is not UNSET else None,
            since=at,
            last=at,
            reports=1,
        )
        last = self.carriers[-1] if self.carriers else None
        if (
            last is not None
            and structs.replace(carrier, since=last.since, last=last.last, reports=last.reports) == last
        ):
            self.carriers[-1] = structs.replace(last, last=at, reports=last.reports + 1)
        else:
            self.carriers.append(carrier)


def fold(
    tenant: str, pipeline: str, entries: Iterable[AuditEntry], *, at: datetime, checkpoint: str
) -> Residency | None:
    """Return the report as of the last of `entries`; None if no pipeline of this name was ever configured.

    Raises:
        controlplane.domain.aggregate.HistoryUnreadableError: today's code cannot read an entry.
    """
    state = _Fold(pipeline)
    for entry in entries:
        form = KINDS[entry.kind]
        event = decode_entry(entry.type, entry.payload.encode(), form.address(tenant, entry.name), 1)
        if isinstance(event, Undecodable):
            raise HistoryUnreadableError(f"entry {entry.sequence} was written by a newer version")
        state.apply(event, event.at)
        if entry.kind == "Placement" and entry.name.partition("@")[0] == pipeline:
            state.crossed[entry.type] += 1
    if not state.routes:
        return None
    left_off = max(0, len(state.routes) - PERIODS_MAX) + max(0, len(state.carriers) - PERIODS_MAX)
    return Residency(
        tenant=tenant,
        pipeline=pipeline,
        at=at,
        routes=state.routes[-PERIODS_MAX:],
        carriers=state.carriers[-PERIODS_MAX:],
        left_off=left_off,
        crossed=dict(sorted(state.crossed.items())),
        checkpoint=checkpoint,
    )
