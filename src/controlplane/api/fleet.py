"""/v1/fleet: for the vendor's operator, who sees of every tenant whether its nodes live, and nothing of what they move."""

from typing import Any

from litestar import Controller, get

from controlplane.access.roles import Permission
from controlplane.api import operations as op
from controlplane.api.answers import Answer, answer
from controlplane.api.authentication import authorise
from controlplane.api.operations import Operation, declared
from controlplane.api.requests import Ask, Parameters, read_cursor, services_of, write_cursor
from controlplane.api.schemas_of_access import Fleet
from controlplane.readmodels import fleet, queries
from controlplane.row_security import Scope


class FleetController(Controller):
    """The fleet."""

    path = "/v1/fleet"

    @get(
        "/",
        **declared(
            Operation(
                id="GetFleet",
                summary="The health of every tenant's nodes and pipelines",
                description="Nodes with their last heartbeat, and how many pipelines are in which phase and with which code.",
                permission=Permission.FLEET,
                answers={200: Fleet},
                parameters=op.PAGE,
            )
        ),
    )
    async def get_fleet(self, request: Ask) -> Answer:
        """Show the fleet."""
        await authorise(request)
        services = services_of(request)
        parameters = Parameters(request, "limit", "cursor", "at_least")
        limit, after = parameters.limit, read_cursor(services, "fleet", parameters.text("cursor"))
        await services.wait_for(services.resources, parameters.at_least)

        def read(connection: queries.Connection) -> list[dict[str, Any]]:
            found = queries.page_of_tenants(connection, after=after, limit=limit)
            return fleet.read(connection, found, services.clock())

        items = await services.query(Scope(operator=True), read)
        cursor = write_cursor(services, "fleet", items[-1]["name"]) if len(items) == limit else None
        return answer({"items": items, "next_cursor": cursor})
