"""/v1/tenants: for the vendor's operator only, who sees that tenants exist and nothing inside them."""

from typing import Any

from litestar import Controller, get, post

from controlplane import manifests
from controlplane.access.roles import Permission
from controlplane.access.secrets import write_api_key
from controlplane.api import operations as op
from controlplane.api.answers import Answer, answer, carry_out, options_of, replayed
from controlplane.api.authentication import authorise
from controlplane.api.operations import Operation, declared
from controlplane.api.requests import Ask, Parameters, read_cursor, services_of, write_cursor
from controlplane.api.schemas import TenantRequest, TenantResource, Tenants
from controlplane.commands import tenants
from controlplane.readmodels import queries
from controlplane.row_security import Scope


class TenantController(Controller):
    """Tenants."""

    path = "/v1/tenants"

    @get(
        "/",
        **declared(
            Operation(
                id="ListTenants",
                summary="List tenants",
                permission=Permission.TENANTS,
                answers={200: Tenants},
                parameters=op.PAGE,
            )
        ),
    )
    async def list_tenants(self, request: Ask) -> Answer:
        """List tenants."""
        await authorise(request)
        services = services_of(request)
        parameters = Parameters(request, "limit", "cursor", "at_least")
        limit, after = parameters.limit, read_cursor(services, "tenants", parameters.text("cursor"))
        await services.wait_for(services.resources, parameters.at_least)

        def read(connection: queries.Connection) -> list[dict[str, Any]]:
            found = queries.page_of_tenants(connection, after=after, limit=limit)
            return [manifests.resource(each.aggregate, each.revision) for each in found]

        items = await services.query(Scope(operator=True), read)
        cursor = write_cursor(services, "tenants", items[-1]["name"]) if len(items) == limit else None
        return answer({"items": items, "next_cursor": cursor})

    @post(
        "/",
        status_code=201,
        **declared(
            Operation(
                id="CreateTenant",
                summary="Make a tenant with an owner's key",
                description="The key is shown once. With an Idempotency-Key the same request gives the same key.",
                permission=Permission.TENANTS,
                body=TenantRequest,
                answers={201: TenantResource},
                parameters=op.WRITE,
                refusals=("invalid_document", "unknown_field", "invalid_name", "name_taken"),
            )
        ),
    )
    async def create_tenant(self, request: Ask) -> Answer:
        """Make a tenant."""
        principal = await authorise(request)
        services = services_of(request)
        options, _, body = await options_of(request)
        fields = manifests.parse_object(body)
        if isinstance(fields.get("name"), str):
            manifests.check_name(fields["name"])
        asked = manifests.convert(fields, TenantRequest)
        outcome = await carry_out(request, principal, tenants.create(asked.name, services.secrets), options)
        key = write_api_key(services.secrets.api_key(outcome.body["tenant"], outcome.nonce))
        shown = {**outcome.body, "revision": outcome.revision, "api_key": None if options.dry_run else key}
        return answer(shown, status=outcome.status, headers=replayed(outcome))
