"""/v1/operators: the keys of the vendor's operators, one for each person, so that a tenant sees who read what it opened."""

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
from controlplane.commands.api_keys import OperatorRequest
from controlplane.domain import ApiKey
from controlplane.refusals import Refused


class OperatorController(Controller):
    """The vendor's operators."""

    path = "/v1/operators"

    @get(
        "/",
        **declared(
            Operation(
                id="ListOperators",
                summary="List the keys of the vendor's operators",
                permission=Permission.OPERATORS,
                answers={200: ApiKeys},
                parameters=op.PAGE,
            )
        ),
    )
    async def list_operators(self, request: Ask) -> Answer:
        """List operators' keys."""
        return await page(request, ApiKey)

    @post(
        "/",
        status_code=201,
        **declared(
            Operation(
                id="IssueOperatorKey",
                summary="Make a key for one of the vendor's operators",
                description="The key is shown once and expires, after 90 days if nothing else is asked for. With it the"
                " operator does what the key in the settings does, but for handling operators. Events name its id.",
                permission=Permission.OPERATORS,
                body=OperatorRequest,
                answers={201: ApiKeyResource},
                parameters=op.WRITE,
                refusals=("invalid_document", "unknown_field", "invalid_name"),
            )
        ),
    )
    async def issue_operator_key(self, request: Ask) -> Answer:
        """Make an operator's key."""
        principal = await authorise(request)
        services = services_of(request)
        options, _, body = await options_of(request)
        asked = api_keys.parse_operator(manifests.parse_object(body))
        outcome = await carry_out(request, principal, api_keys.issue_operator(asked, services.secrets), options)
        key = write_api_key(services.secrets.api_key(principal.tenant, outcome.nonce))
        shown = {**outcome.body, "revision": outcome.revision, "api_key": None if options.dry_run else key}
        return answer(shown, status=outcome.status, headers=replayed(outcome))

    @delete(
        "/{key_id:str}",
        status_code=200,
        **declared(
            Operation(
                id="RevokeOperatorKey",
                summary="Revoke an operator's key",
                permission=Permission.OPERATORS,
                answers={200: ApiKeyResource},
                parameters=op.WRITE,
                refusals=("not_found",),
            )
        ),
    )
    async def revoke_operator_key(self, request: Ask, key_id: FromPath[str]) -> Answer:
        """Revoke an operator's key."""
        principal = await authorise(request)
        options, _, _ = await options_of(request)
        if not matches(KEY_ID_PATTERN, key_id):
            raise Refused("not_found", "There is no key of this id.")
        return await written(request, principal, api_keys.revoke_operator(key_id), options)
