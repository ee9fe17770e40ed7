"""/livez, /readyz, /metrics and the OpenAPI document: for machines that look after this process. No key is asked for."""

from datetime import timedelta

from litestar import Controller, Response, get
from prometheus_client import CONTENT_TYPE_LATEST

from controlplane.api.answers import Answer, answer
from controlplane.api.openapi import document
from controlplane.api.operations import Operation, declared
from controlplane.api.requests import Ask, services_of
from controlplane.api.schemas import Health
from controlplane.api.services import Services
from controlplane.readmodels import queries
from controlplane.readmodels.status import NODE_SILENT_SECONDS
from controlplane.refusals import Refused
from controlplane.row_security import Scope, scoped

LAG_EVENTS_MAX = 10_000
"""A projection that is further behind makes the process not ready."""


class HealthController(Controller):
    """Health, metrics and documentation."""

    path = "/"

    @get(
        "/livez",
        **declared(Operation(id="Live", summary="Whether the process answers", answers={200: Health})),
    )
    async def live(self) -> Answer:
        """Say that the process answers."""
        return answer(Health(ready=True, checks={}))

    @get(
        "/readyz",
        **declared(
            Operation(
                id="Ready",
                summary="Whether the process can do its work",
                description="503 without the database or with projections far behind. The hub is reported and does not"
                " count: configuration is taken while it is away, and nodes go on without it.",
                answers={200: Health, 503: Health},
            )
        ),
    )
    async def ready(self, request: Ask) -> Answer:
        """Say what works."""
        services = services_of(request)
        checks = {"database": "ok", "projections": "ok", "hub": "ok" if services.channel_ready() else "unreachable"}
        notes: list[str] = []
        try:
            latest = await services.run(services.latest)
            notes.extend(await services.run(services.channel_notes))
            behind = [each.projection.name for each in services.runners() if latest - each.position > LAG_EVENTS_MAX]
            if behind:
                checks["projections"] = f"behind: {', '.join(behind)}"
        except Refused:
            checks["database"] = "unreachable"
        ready = checks["database"] == checks["projections"] == "ok"
        return answer(Health(ready=ready, checks=checks, notes=notes), status=200 if ready else 503)

    @get(
        "/metrics",
        **declared(Operation(id="Metrics", summary="Metrics in Prometheus' text form", answers={200: None})),
    )
    async def metrics(self, request: Ask) -> Response[bytes]:
        """Return the metrics. What the database would have to say is left as it was if it does not answer."""
        services = services_of(request)
        metrics = services.metrics
        metrics.channel_ready.set(services.channel_ready())
        try:
            connected, latest = await services.run(_measure, services)
            metrics.connected_nodes.set(connected)
            metrics.observe_projections(services.runners(), latest)
        except Refused:
            metrics.database_up.set(0)
        else:
            metrics.database_up.set(1)
        return Response(metrics.render(), media_type=CONTENT_TYPE_LATEST)

    @get(
        "/schema/openapi.json",
        **declared(Operation(id="OpenApi", summary="This document", answers={200: None})),
    )
    async def openapi(self, request: Ask) -> Response[bytes]:
        """Return the OpenAPI document."""
        return Response(document(request.app), media_type="application/json")


def _measure(services: Services) -> tuple[int, int]:
    since = services.clock() - timedelta(seconds=NODE_SILENT_SECONDS)
    with services.pool.connection() as connection, scoped(connection, Scope(operator=True), read_only=True):
        return queries.count_connected_nodes(connection, since), services.latest()
