"""/v1/connections: systems that pipelines read or write."""

from litestar import Controller, delete, get, put
from litestar.params import FromPath

from controlplane import manifests
from controlplane.access.roles import Permission
from controlplane.api import operations as op
from controlplane.api.answers import Answer, events_of, one, options_of, page, written
from controlplane.api.authentication import authorise
from controlplane.api.operations import Operation, declared
from controlplane.api.requests import Ask
from controlplane.api.schemas import ConnectionResource, Connections, Events
from controlplane.commands import connections
from controlplane.domain import Connection
from controlplane.manifests import ConnectionManifest


class ConnectionController(Controller):
    """Connections."""

    path = "/v1/connections"

    @get(
        "/",
        **declared(
            Operation(
                id="ListConnections",
                summary="List connections",
                permission=Permission.READ,
                answers={200: Connections},
                parameters=op.PAGE,
            )
        ),
    )
    async def list_connections(self, request: Ask) -> Answer:
        """List connections."""
        return await page(request, Connection)

    @get(
        "/{name:str}",
        **declared(
            Operation(
                id="GetConnection",
                summary="Read a connection",
                permission=Permission.READ,
                answers={200: ConnectionResource},
                parameters=(op.AT_LEAST,),
                refusals=("not_found",),
            )
        ),
    )
    async def get_connection(self, request: Ask, name: FromPath[str]) -> Answer:
        """Read a connection."""
        return await one(request, Connection, name)

    @put(
        "/{name:str}",
        **declared(
            Operation(
                id="ApplyConnection",
                summary="Create or change a connection",
                description="Secrets are references that only a node resolves: `file:PATH` below the node's secrets folder,"
                " or `env:NAME`. A value in plain text is refused. An unchanged document keeps its generation.",
                permission=Permission.WRITE,
                body=ConnectionManifest,
                answers={200: ConnectionResource, 201: ConnectionResource},
                parameters=op.PUT,
                refusals=(
                    *op.DOCUMENT_REFUSALS,
                    "secret_in_plain_text",
                    "unknown_type",
                    "signature_invalid",
                    "unfit_connection",
                    "same_table_cycle",
                    "table_taken",
                    "too_many_resources",
                ),
            )
        ),
    )
    async def apply_connection(self, request: Ask, name: FromPath[str]) -> Answer:
        """Create or change a connection."""
        principal = await authorise(request)
        options, _, body = await options_of(request)
        type_, config, secrets, signature = manifests.parse_connection(name, body)
        decide = connections.configure(name, type_, config, secrets, options, signature=signature)
        return await written(request, principal, decide, options)

    @delete(
        "/{name:str}",
        status_code=200,
        **declared(
            Operation(
                id="DeleteConnection",
                summary="Delete a connection",
                description="Refused while a pipeline names it.",
                permission=Permission.WRITE,
                answers={200: ConnectionResource},
                parameters=op.CONDITIONAL_WRITE,
                refusals=("not_found", "in_use", "stale_generation"),
            )
        ),
    )
    async def delete_connection(self, request: Ask, name: FromPath[str]) -> Answer:
        """Delete a connection."""
        principal = await authorise(request)
        options, _, _ = await options_of(request)
        manifests.check_name(name)
        return await written(request, principal, connections.delete(name, options), options)

    @get(
        "/{name:str}/events",
        **declared(
            Operation(
                id="ListConnectionEvents",
                summary="What happened to a connection",
                permission=Permission.READ,
                answers={200: Events},
                parameters=op.EVENTS,
            )
        ),
    )
    async def list_connection_events(self, request: Ask, name: FromPath[str]) -> Answer:
        """List a connection's events, also those from before it was deleted."""
        return await events_of(request, ["Connection"], [name])
