"""Commands on members. What a person is called goes beside the events, into what can be erased; never into them."""

from typing import Annotated, Any

from msgspec import Meta

from controlplane.access.roles import Role, may_issue, read_role
from controlplane.access.secrets import SecretMaker
from controlplane.commands.write_path import Attempt, Decide, Decision, Step, check_exists
from controlplane.commit_rows import PersonalData
from controlplane.domain import Member
from controlplane.manifests import Strict, convert
from controlplane.refusals import Refused, refused_at

EMAIL_PATTERN = r"^[^\s@\x00-\x1f\x7f]{1,64}@[^\s@\x00-\x1f\x7f]{1,189}$(?!\n)"
_PRINTABLE = r"^[^\x00-\x1f\x7f]*$(?!\n)"


class MemberRequest(Strict, frozen=True, kw_only=True):
    """Who is to become a member."""

    display_name: Annotated[str, Meta(min_length=1, max_length=200, pattern=_PRINTABLE)]
    email: Annotated[str, Meta(max_length=254, pattern=EMAIL_PATTERN)]
    role: str


class MemberChange(Strict, frozen=True, kw_only=True):
    """What is to become of a member."""

    role: str


def parse(fields: dict[str, Any]) -> tuple[MemberRequest, Role]:
    """Return who is to become a member, and the role.

    Raises:
        Refused: invalid_document or unknown_field.
    """
    request = convert(fields, MemberRequest)
    return request, read_role(request.role)


def parse_change(fields: dict[str, Any]) -> Role:
    """Return the role that a member is to have.

    Raises:
        Refused: invalid_document or unknown_field.
    """
    return read_role(convert(fields, MemberChange).role)


def add(request: MemberRequest, role: Role, maker: SecretMaker) -> Decide:
    """Add a member. Its id follows from the outcome's nonce and says nothing of the person."""

    def decide(attempt: Attempt) -> Decision:
        _check_may(attempt, role)
        before = attempt.load(Member.new(attempt.tenant, maker.member_id(attempt.tenant, attempt.nonce)))
        step = Step(before, before.add(attempt.context, role.value))
        person = PersonalData(attempt.tenant, before.name, request.display_name, request.email)
        return Decision.showing(step.after, [step], status=201, person=person)

    return decide


def change_role(name: str, role: Role) -> Decide:
    """Give a member another role. Only an owner makes owners, or takes it from one."""

    def decide(attempt: Attempt) -> Decision:
        before = attempt.load(Member.new(attempt.tenant, name))
        check_exists(before)
        _check_may(attempt, role)
        _check_may(attempt, Role(before.role))
        step = Step(before, before.change_role(attempt.context, role.value))
        return Decision.showing(step.after, [step])

    return decide


def remove(name: str) -> Decide:
    """End a membership. The person's keys open nothing from then on."""

    def decide(attempt: Attempt) -> Decision:
        before = attempt.load(Member.new(attempt.tenant, name))
        check_exists(before)
        _check_may(attempt, Role(before.role))
        step = Step(before, before.remove(attempt.context))
        return Decision.showing(before, [step])

    return decide


def erase(name: str) -> Decide:
    """Forget who a member is, or was. The events stay; none of them says it."""

    def decide(attempt: Attempt) -> Decision:
        before = attempt.load(Member.new(attempt.tenant, name))
        if before.version == 0:
            raise Refused("not_found", f"There never was a member {name}.")
        _check_may(attempt, Role(before.role))
        step = Step(before, before.erase(attempt.context))
        return Decision.showing(step.after, [step], person=PersonalData(attempt.tenant, name, None, None))

    return decide


def _check_may(attempt: Attempt, role: Role) -> None:
    if not may_issue(attempt.principal.role, role):
        raise Refused("forbidden", "Only an owner handles owners.")


def check_member(attempt: Attempt, name: str, role: Role) -> None:
    """Refuse a key for somebody who is no member, or with a role that the member has not.

    Raises:
        Refused: invalid_document.
    """
    member = attempt.load(Member.new(attempt.tenant, name))
    if not member.exists:
        raise refused_at("invalid_document", "/member", "there is no such member")
    if not Role(member.role).covers(role):
        raise refused_at("invalid_document", "/role", "grants more than the member's own role")
