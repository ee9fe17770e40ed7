"""/v1/members: the people who belong to the tenant. Their names can be erased; what they did stays, under an id that says nothing."""

from litestar import Controller, delete, get, post, put
from litestar.params import FromPath

from controlplane import manifests
from controlplane.access.roles import Permission
from controlplane.api import operations as op
from controlplane.api.answers import Answer, one, options_of, page, written
from controlplane.api.authentication import authorise
from controlplane.api.operations import Operation, declared
from controlplane.api.requests import Ask, services_of
from controlplane.api.schemas_of_access import MemberResource, Members
from controlplane.commands import members
from controlplane.commands.members import MemberChange, MemberRequest
from controlplane.domain import Member

_DOCUMENT_REFUSALS = ("malformed_json", "invalid_document", "unknown_field", "idempotency_key_reused")


class MemberController(Controller):
    """Members."""

    path = "/v1/members"

    @get(
        "/",
        **declared(
            Operation(
                id="ListMembers",
                summary="List members",
                permission=Permission.READ_MEMBERS,
                answers={200: Members},
                parameters=op.PAGE,
            )
        ),
    )
    async def list_members(self, request: Ask) -> Answer:
        """List members."""
        return await page(request, Member)

    @get(
        "/{name:str}",
        **declared(
            Operation(
                id="GetMember",
                summary="Read a member",
                permission=Permission.READ_MEMBERS,
                answers={200: MemberResource},
                parameters=(op.AT_LEAST,),
                refusals=("not_found",),
            )
        ),
    )
    async def get_member(self, request: Ask, name: FromPath[str]) -> Answer:
        """Read a member."""
        return await one(request, Member, name)

    @post(
        "/",
        status_code=201,
        **declared(
            Operation(
                id="AddMember",
                summary="Add a member",
                description="Roles: owner, admin, operator, viewer, auditor. Only an owner adds owners. The answer's `name` is"
                " an id that says nothing of the person: events carry only that. `display_name` and `email` can be erased.",
                permission=Permission.WRITE_MEMBERS,
                body=MemberRequest,
                answers={201: MemberResource},
                parameters=op.WRITE,
                refusals=_DOCUMENT_REFUSALS,
            )
        ),
    )
    async def add_member(self, request: Ask) -> Answer:
        """Add a member."""
        principal = await authorise(request)
        options, _, body = await options_of(request)
        asked, role = members.parse(manifests.parse_object(body))
        return await written(request, principal, members.add(asked, role, services_of(request).secrets), options)

    @put(
        "/{name:str}",
        **declared(
            Operation(
                id="ChangeMember",
                summary="Give a member another role",
                description="Only an owner makes an owner, or takes the role from one.",
                permission=Permission.WRITE_MEMBERS,
                body=MemberChange,
                answers={200: MemberResource},
                parameters=op.WRITE,
                refusals=(*_DOCUMENT_REFUSALS, "invalid_name", "not_found"),
            )
        ),
    )
    async def change_member(self, request: Ask, name: FromPath[str]) -> Answer:
        """Change a member's role."""
        principal = await authorise(request)
        options, _, body = await options_of(request)
        manifests.check_name(name)
        role = members.parse_change(manifests.parse_object(body))
        return await written(request, principal, members.change_role(name, role), options)

    @delete(
        "/{name:str}",
        status_code=200,
        **declared(
            Operation(
                id="RemoveMember",
                summary="End a membership",
                description="The person's API keys open nothing from then on. What the person is called stays known until it is"
                " erased.",
                permission=Permission.WRITE_MEMBERS,
                answers={200: MemberResource},
                parameters=op.WRITE,
                refusals=("not_found", "invalid_name"),
            )
        ),
    )
    async def remove_member(self, request: Ask, name: FromPath[str]) -> Answer:
        """End a membership."""
        principal = await authorise(request)
        options, _, _ = await options_of(request)
        manifests.check_name(name)
        return await written(request, principal, members.remove(name), options)

    @post(
        "/{name:str}/erase",
        status_code=200,
        **declared(
            Operation(
                id="EraseMember",
                summary="Forget who a member is or was",
                description="Deletes name and address and ends the membership. The audit log stays as it is and goes on to"
                " verify: it never held either. Backups that were made before hold them until they are gone.",
                permission=Permission.WRITE_MEMBERS,
                answers={200: MemberResource},
                parameters=op.WRITE,
                refusals=("not_found", "invalid_name", "unknown_field"),
            )
        ),
    )
    async def erase_member(self, request: Ask, name: FromPath[str]) -> Answer:
        """Forget a person."""
        principal = await authorise(request)
        options, _, body = await options_of(request)
        manifests.check_name(name)
        manifests.check_empty(manifests.parse_object(body))
        return await written(request, principal, members.erase(name), options)
