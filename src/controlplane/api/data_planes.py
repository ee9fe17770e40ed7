"""/v1/data-planes: the nodes and the leaf that run pipelines, and the tokens by which nodes join."""

from litestar import Controller, delete, get, post, put
from litestar.params import FromPath

from controlplane import manifests
from controlplane.access.roles import Permission
from controlplane.access.secrets import write_join_token
from controlplane.api import operations as op
from controlplane.api.answers import Answer, answer, carry_out, events_of, one, options_of, page, replayed, written
from controlplane.api.authentication import authorise
from controlplane.api.operations import Operation, declared
from controlplane.api.requests import Ask, services_of
from controlplane.api.schemas import DataPlaneResource, DataPlanes, Events, JoinToken
from controlplane.commands import data_planes
from controlplane.domain import DataPlane
from controlplane.manifests import DataPlaneManifest


class DataPlaneController(Controller):
    """Data planes."""

    path = "/v1/data-planes"

    @get(
        "/",
        **declared(
            Operation(
                id="ListDataPlanes",
                summary="List data planes",
                permission=Permission.READ,
                answers={200: DataPlanes},
                parameters=op.PAGE,
            )
        ),
    )
    async def list_data_planes(self, request: Ask) -> Answer:
        """List data planes."""
        return await page(request, DataPlane)

    @get(
        "/{name:str}",
        **declared(
            Operation(
                id="GetDataPlane",
                summary="Read a data plane",
                permission=Permission.READ,
                answers={200: DataPlaneResource},
                parameters=(op.AT_LEAST,),
                refusals=("not_found",),
            )
        ),
    )
    async def get_data_plane(self, request: Ask, name: FromPath[str]) -> Answer:
        """Read a data plane."""
        return await one(request, DataPlane, name)

    @put(
        "/{name:str}",
        **declared(
            Operation(
                id="ApplyDataPlane",
                summary="Create or change a data plane",
                permission=Permission.WRITE,
                body=DataPlaneManifest,
                answers={200: DataPlaneResource, 201: DataPlaneResource},
                parameters=op.PUT,
                refusals=(*op.DOCUMENT_REFUSALS, "too_many_resources"),
            )
        ),
    )
    async def apply_data_plane(self, request: Ask, name: FromPath[str]) -> Answer:
        """Create or change a data plane."""
        principal = await authorise(request)
        options, _, body = await options_of(request)
        asked = manifests.parse_data_plane(name, body)
        command = data_planes.create(name, asked.model, options, region=asked.region)
        return await written(request, principal, command, options)

    @delete(
        "/{name:str}",
        status_code=200,
        **declared(
            Operation(
                id="DeleteDataPlane",
                summary="Delete a data plane",
                description="Refused while a pipeline runs on it. Its nodes are revoked and its leaf may not link any more.",
                permission=Permission.WRITE,
                answers={200: DataPlaneResource},
                parameters=op.CONDITIONAL_WRITE,
                refusals=("not_found", "in_use", "stale_generation"),
            )
        ),
    )
    async def delete_data_plane(self, request: Ask, name: FromPath[str]) -> Answer:
        """Delete a data plane."""
        principal = await authorise(request)
        options, _, _ = await options_of(request)
        manifests.check_name(name)
        return await written(request, principal, data_planes.delete(name, options), options)

    @post(
        "/{name:str}/join-tokens",
        status_code=201,
        **declared(
            Operation(
                id="IssueJoinToken",
                summary="Let one node join",
                description="The token is shown once, works once, and expires within the hour. With an Idempotency-Key the"
                " same request gives the same token.",
                permission=Permission.WRITE,
                answers={201: JoinToken},
                parameters=op.CONDITIONAL_WRITE,
                refusals=("not_found", "too_many_resources"),
            )
        ),
    )
    async def issue_join_token(self, request: Ask, name: FromPath[str]) -> Answer:
        """Issue a join token."""
        principal = await authorise(request)
        services = services_of(request)
        options, _, body = await options_of(request)
        manifests.check_name(name)
        manifests.check_empty(manifests.parse_object(body))
        outcome = await carry_out(
            request, principal, data_planes.issue_join_token(name, services.secrets, options), options
        )
        made = services.secrets.join_token(principal.tenant, name, outcome.nonce)
        token = write_join_token(made, services.accounts.root_key)
        shown = {**outcome.body, "token": None if options.dry_run else token}
        return answer(shown, status=outcome.status, headers=replayed(outcome))

    @get(
        "/{name:str}/events",
        **declared(
            Operation(
                id="ListDataPlaneEvents",
                summary="What happened to a data plane",
                permission=Permission.READ,
                answers={200: Events},
                parameters=op.EVENTS,
            )
        ),
    )
    async def list_data_plane_events(self, request: Ask, name: FromPath[str]) -> Answer:
        """List a data plane's events."""
        return await events_of(request, ["DataPlane"], [name])
