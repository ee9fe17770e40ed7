"""/v1/events: everything that happened in the tenant, oldest first."""

from litestar import Controller, get

from controlplane.access.roles import Permission
from controlplane.api import operations as op
from controlplane.api.answers import Answer, events_of
from controlplane.api.operations import Operation, declared
from controlplane.api.requests import Ask
from controlplane.api.schemas import Events


class EventController(Controller):
    """Events."""

    path = "/v1/events"

    @get(
        "/",
        **declared(
            Operation(
                id="ListEvents",
                summary="What happened in the tenant",
                permission=Permission.READ,
                answers={200: Events},
                parameters=(op.KIND, op.NAME, *op.EVENTS),
            )
        ),
    )
    async def list_events(self, request: Ask) -> Answer:
        """List events."""
        return await events_of(request)
