"""/v1/access-grants: a tenant lets the vendor's operators read its configuration, for hours, and sees what they read."""

from litestar import Controller, delete, get, put
from litestar.params import FromPath

from controlplane import manifests
from controlplane.access.roles import Permission
from controlplane.api import operations as op
from controlplane.api.answers import Answer, events_of, one, options_of, page, written
from controlplane.api.authentication import authorise
from controlplane.api.operations import Operation, declared
from controlplane.api.requests import Ask
from controlplane.api.schemas import Events
from controlplane.api.schemas_of_access import AccessGrantResource, AccessGrants
from controlplane.commands import access_grants
from controlplane.commands.access_grants import AccessGrantRequest
from controlplane.domain import AccessGrant


class AccessGrantController(Controller):
    """Access grants."""

    path = "/v1/access-grants"

    @get(
        "/",
        **declared(
            Operation(
                id="ListAccessGrants",
                summary="List access grants",
                permission=Permission.READ_MEMBERS,
                answers={200: AccessGrants},
                parameters=op.PAGE,
            )
        ),
    )
    async def list_access_grants(self, request: Ask) -> Answer:
        """List access grants."""
        return await page(request, AccessGrant)

    @get(
        "/{name:str}",
        **declared(
            Operation(
                id="GetAccessGrant",
                summary="Read an access grant",
                permission=Permission.READ_MEMBERS,
                answers={200: AccessGrantResource},
                parameters=(op.AT_LEAST,),
                refusals=("not_found",),
            )
        ),
    )
    async def get_access_grant(self, request: Ask, name: FromPath[str]) -> Answer:
        """Read an access grant."""
        return await one(request, AccessGrant, name)

    @put(
        "/{name:str}",
        **declared(
            Operation(
                id="GrantAccess",
                summary="Let the vendor's operators read",
                description="They see resources and their events as a viewer does, until the grant expires or is deleted: no"
                " members, no keys, no audit log, and they change nothing. Each read is an event of the grant. Put again,"
                " it runs from now.",
                permission=Permission.WRITE_MEMBERS,
                body=AccessGrantRequest,
                body_required=False,
                answers={200: AccessGrantResource, 201: AccessGrantResource},
                parameters=op.WRITE,
                refusals=(
                    "malformed_json",
                    "invalid_name",
                    "invalid_document",
                    "unknown_field",
                    "idempotency_key_reused",
                ),
            )
        ),
    )
    async def grant_access(self, request: Ask, name: FromPath[str]) -> Answer:
        """Give a grant."""
        principal = await authorise(request)
        options, _, body = await options_of(request)
        manifests.check_name(name)
        asked = access_grants.parse(manifests.parse_object(body))
        return await written(request, principal, access_grants.give(name, asked), options)

    @delete(
        "/{name:str}",
        status_code=200,
        **declared(
            Operation(
                id="RevokeAccess",
                summary="End an access grant",
                description="The next read under it is refused.",
                permission=Permission.WRITE_MEMBERS,
                answers={200: AccessGrantResource},
                parameters=op.WRITE,
                refusals=("not_found", "invalid_name"),
            )
        ),
    )
    async def revoke_access(self, request: Ask, name: FromPath[str]) -> Answer:
        """End a grant."""
        principal = await authorise(request)
        options, _, _ = await options_of(request)
        manifests.check_name(name)
        return await written(request, principal, access_grants.revoke(name), options)

    @get(
        "/{name:str}/events",
        **declared(
            Operation(
                id="ListAccessGrantEvents",
                summary="What was read under a grant",
                permission=Permission.READ_MEMBERS,
                answers={200: Events},
                parameters=op.EVENTS,
            )
        ),
    )
    async def list_access_grant_events(self, request: Ask, name: FromPath[str]) -> Answer:
        """List what was read under a grant."""
        return await events_of(request, ["AccessGrant"], [name])
