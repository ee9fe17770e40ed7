"""/v1/nodes: the agents of data planes. They come into being by joining, never by a PUT."""

from litestar import Controller, delete, get
from litestar.params import FromPath

from controlplane import manifests
from controlplane.access.roles import Permission
from controlplane.api import operations as op
from controlplane.api.answers import Answer, events_of, one, options_of, page, written
from controlplane.api.authentication import authorise
from controlplane.api.operations import Operation, declared
from controlplane.api.requests import Ask
from controlplane.api.schemas import Events, NodeResource, Nodes
from controlplane.commands import nodes
from controlplane.domain import Node


class NodeController(Controller):
    """Nodes."""

    path = "/v1/nodes"

    @get(
        "/",
        **declared(
            Operation(
                id="ListNodes",
                summary="List nodes",
                permission=Permission.READ,
                answers={200: Nodes},
                parameters=op.PAGE,
            )
        ),
    )
    async def list_nodes(self, request: Ask) -> Answer:
        """List nodes."""
        return await page(request, Node)

    @get(
        "/{name:str}",
        **declared(
            Operation(
                id="GetNode",
                summary="Read a node and when it was last heard of",
                permission=Permission.READ,
                answers={200: NodeResource},
                parameters=(op.AT_LEAST,),
                refusals=("not_found",),
            )
        ),
    )
    async def get_node(self, request: Ask, name: FromPath[str]) -> Answer:
        """Read a node."""
        return await one(request, Node, name)

    @delete(
        "/{name:str}",
        status_code=200,
        **declared(
            Operation(
                id="RevokeNode",
                summary="Revoke a node",
                description="Nothing that it signs is believed any more. Its name may join again with a new token.",
                permission=Permission.WRITE,
                answers={200: NodeResource},
                parameters=op.WRITE,
                refusals=("not_found",),
            )
        ),
    )
    async def revoke_node(self, request: Ask, name: FromPath[str]) -> Answer:
        """Revoke a node."""
        principal = await authorise(request)
        options, _, _ = await options_of(request)
        manifests.check_name(name)
        return await written(request, principal, nodes.revoke(name), options)

    @get(
        "/{name:str}/events",
        **declared(
            Operation(
                id="ListNodeEvents",
                summary="What happened to a node",
                permission=Permission.READ,
                answers={200: Events},
                parameters=op.EVENTS,
            )
        ),
    )
    async def list_node_events(self, request: Ask, name: FromPath[str]) -> Answer:
        """List a node's events."""
        return await events_of(request, ["Node"], [name])
