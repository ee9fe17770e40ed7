"""Commands on access grants: a tenant gives and ends them, and what is read under one is recorded before it is shown."""

from datetime import timedelta
from typing import Annotated, Any

from msgspec import Meta

from controlplane.commands.write_path import Attempt, Decide, Decision, Step, check_exists
from controlplane.domain import AccessGrant
from controlplane.manifests import Strict, convert
from controlplane.refusals import Refused

HOURS_MAX = 24 * 7


class AccessGrantRequest(Strict, frozen=True, kw_only=True):
    """For how long the vendor's operators may read."""

    hours: Annotated[int, Meta(ge=1, le=HOURS_MAX)] = 4


def parse(fields: dict[str, Any]) -> AccessGrantRequest:
    """Return what is asked of a grant.

    Raises:
        Refused: invalid_document or unknown_field.
    """
    return convert(fields, AccessGrantRequest)


def give(name: str, request: AccessGrantRequest) -> Decide:
    """Give a grant. Given again it runs from now."""

    def decide(attempt: Attempt) -> Decision:
        before = attempt.load(AccessGrant.new(attempt.tenant, name))
        step = Step(before, before.give(attempt.context, attempt.at + timedelta(hours=request.hours)))
        return Decision.showing(step.after, [step], status=200 if before.exists else 201)

    return decide


def revoke(name: str) -> Decide:
    """End a grant. The very next read under it is refused."""

    def decide(attempt: Attempt) -> Decision:
        before = attempt.load(AccessGrant.new(attempt.tenant, name))
        check_exists(before)
        step = Step(before, before.revoke(attempt.context))
        return Decision.showing(before, [step])

    return decide


def use(name: str, operation: str, subject: str) -> Decide:
    """Record a read under a grant; refused if it is not open. A grant of another tenant cannot be told from none.

    Decided from the grant's own events, so a grant that was ended a moment ago is ended.
    """

    def decide(attempt: Attempt) -> Decision:
        before = attempt.load(AccessGrant.new(attempt.tenant, name))
        if not before.opens(attempt.at):
            raise Refused("forbidden", "No grant of this tenant is open under this name.")
        return Decision(steps=[Step(before, before.use(attempt.context, operation, subject))], body={})

    return decide
