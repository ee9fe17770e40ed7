"""/v1/api-keys: who may call this API, and in which role."""

from litestar import Controller, delete, get, post
from litestar.params import FromPath

from contracts.names import matches
from controlplane import manifests
from controlplane.access.roles import Permission
from controlplane.access.secrets import KEY_ID_PATTERN, write_api_key
from controlplane.api import operations as op
from controlplane.api.answers import Answer, answer, carry_out, options_of, page, replayed, written
from controlplane.api.authentication import authorise
from controlplane.api.operations import Operation, declared
from controlplane.api.requests import Ask, services_of
from controlplane.api.schemas import ApiKeyResource, ApiKeys
from controlplane.commands import api_keys
from controlplane.commands.api_keys import ApiKeyRequest
from controlplane.domain import ApiKey
from controlplane.refusals import Refused


class ApiKeyController(Controller):
    """API keys."""

    path = "/v1/api-keys"

    @get(
        "/",
        **declared(
            Operation(
                id="ListApiKeys",
                summary="List API keys",
                description="Without their secrets, which nobody has.",
                permission=Permission.READ_KEYS,
                answers={200: ApiKeys},
                parameters=op.PAGE,
            )
        ),
    )
    async def list_api_keys(self, request: Ask) -> Answer:
        """List API keys."""
        return await page(request, ApiKey)

    @post(
        "/",
        status_code=201,
        **declared(
            Operation(
                id="IssueApiKey",
                summary="Make an API key",
                description="The key is shown once. Roles: owner, admin, operator (pause, resume, restart), viewer, auditor."
                " With an Idempotency-Key the same request gives the same key.",
                permission=Permission.WRITE_KEYS,
                body=ApiKeyRequest,
                answers={201: ApiKeyResource},
                parameters=op.WRITE,
                refusals=("invalid_document", "unknown_field", "invalid_name"),
            )
        ),
    )
    async def issue_api_key(self, request: Ask) -> Answer:
        """Make an API key."""
        principal = await authorise(request)
        services = services_of(request)
        options, _, body = await options_of(request)
        asked, role = api_keys.parse(manifests.parse_object(body))
        outcome = await carry_out(request, principal, api_keys.issue(asked, role, services.secrets), options)
        key = write_api_key(services.secrets.api_key(principal.tenant, outcome.nonce))
        shown = {**outcome.body, "revision": outcome.revision, "api_key": None if options.dry_run else key}
        return answer(shown, status=outcome.status, headers=replayed(outcome))

    @delete(
        "/{key_id:str}",
        status_code=200,
        **declared(
            Operation(
                id="RevokeApiKey",
                summary="Revoke an API key",
                permission=Permission.WRITE_KEYS,
                answers={200: ApiKeyResource},
                parameters=op.WRITE,
                refusals=("not_found",),
            )
        ),
    )
    async def revoke_api_key(self, request: Ask, key_id: FromPath[str]) -> Answer:
        """Revoke an API key."""
        principal = await authorise(request)
        options, _, _ = await options_of(request)
        if not matches(KEY_ID_PATTERN, key_id):
            raise Refused("not_found", "There is no API key of this id.")
        return await written(request, principal, api_keys.revoke(key_id), options)
