"""Commands on API keys."""

from datetime import timedelta
from typing import Annotated, Any

from msgspec import Meta

from controlplane.access.roles import Role, may_issue, read_role
from controlplane.access.secrets import KEY_ID_PATTERN, SecretMaker, hash_of
from controlplane.commands.members import check_member
from controlplane.commands.write_path import Attempt, Decide, Decision, Step, check_exists
from controlplane.domain import ApiKey
from controlplane.manifests import Strict, check_name, convert
from controlplane.refusals import Refused


class OperatorRequest(Strict, frozen=True, kw_only=True):
    """What is asked of a key for one of the vendor's operators."""

    name: Annotated[str, Meta(min_length=1, max_length=63)]
    expires_in_days: Annotated[int, Meta(ge=1, le=365)] = 90


class ApiKeyRequest(Strict, frozen=True, kw_only=True):
    """What is asked of a new key. Without `expires_in_days` it does not expire.

    With `member`, the id of one, it is that person's: it opens nothing that the person may not do, and ends with the membership.
    """

    name: Annotated[str, Meta(min_length=1, max_length=63)]
    role: str
    expires_in_days: Annotated[int, Meta(ge=1, le=3650)] | None = None
    member: Annotated[str, Meta(pattern=KEY_ID_PATTERN)] | None = None
    read_only: bool = False


def parse(fields: dict[str, Any]) -> tuple[ApiKeyRequest, Role]:
    """Return what is asked of a new key.

    Raises:
        Refused: invalid_document, unknown_field or invalid_name.
    """
    request = convert(fields, ApiKeyRequest)
    check_name(request.name)
    return request, read_role(request.role)


def parse_operator(fields: dict[str, Any]) -> OperatorRequest:
    """Return what is asked of an operator's key.

    Raises:
        Refused: invalid_document, unknown_field or invalid_name.
    """
    request = convert(fields, OperatorRequest)
    check_name(request.name)
    return request


def issue_operator(request: OperatorRequest, maker: SecretMaker) -> Decide:
    """Make a key for one of the vendor's operators, who is then told apart in what tenants see of their reads."""

    def decide(attempt: Attempt) -> Decision:
        made = maker.api_key(attempt.tenant, attempt.nonce)
        before = attempt.load(ApiKey.new(attempt.tenant, made.key_id))
        issued = before.issue(
            attempt.context,
            label=request.name,
            hash_=hash_of(made.secret),
            role=Role.VENDOR.value,
            expires_at=attempt.at + timedelta(days=request.expires_in_days),
        )
        step = Step(before, issued)
        return Decision.showing(step.after, [step], status=201)

    return decide


def revoke_operator(key_id: str) -> Decide:
    """Revoke the key of one of the vendor's operators."""

    def decide(attempt: Attempt) -> Decision:
        before = attempt.load(ApiKey.new(attempt.tenant, key_id))
        check_exists(before)
        return Decision.showing(before, [Step(before, before.revoke(attempt.context))])

    return decide


def issue(request: ApiKeyRequest, role: Role, maker: SecretMaker) -> Decide:
    """Make a key. The key itself follows from the outcome's nonce."""

    def decide(attempt: Attempt) -> Decision:
        if not may_issue(attempt.principal.role, role):
            raise Refused("forbidden", "Only an owner makes keys for owners.")
        if request.member is not None:
            check_member(attempt, request.member, role)
        made = maker.api_key(attempt.tenant, attempt.nonce)
        before = attempt.load(ApiKey.new(attempt.tenant, made.key_id))
        days = request.expires_in_days
        step = Step(
            before,
            before.issue(
                attempt.context,
                label=request.name,
                hash_=hash_of(made.secret),
                role=role.value,
                expires_at=attempt.at + timedelta(days=days) if days is not None else None,
                member=request.member or "",
                read_only=request.read_only,
            ),
        )
        return Decision.showing(step.after, [step], status=201)

    return decide


def revoke(key_id: str) -> Decide:
    """Revoke a key. A key may revoke itself."""

    def decide(attempt: Attempt) -> Decision:
        before = attempt.load(ApiKey.new(attempt.tenant, key_id))
        check_exists(before)
        if not may_issue(attempt.principal.role, Role(before.role)):
            raise Refused("forbidden", "Only an owner revokes the keys of owners.")
        step = Step(before, before.revoke(attempt.context))
        return Decision.showing(before, [step])

    return decide
