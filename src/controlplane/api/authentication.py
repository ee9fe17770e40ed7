"""Who asks, and whether that may be: from the Authorization header to a principal, for every route that declares a permission.

Two realms. A tenant's key acts within its tenant, by its own role and, if it is a person's, by the person's. The vendor's
operator acts outside of tenants; with the header `Pointsman-Grant: TENANT/NAME` it reads what a tenant opened under a grant,
and each read is an event of that tenant before anything is shown. All refusals of a key read alike and take as long.
"""

import hmac

from contracts.names import RESOURCE_NAME_PATTERN, matches
from controlplane.access.roles import FIRST_OPERATOR, OPERATOR_REALM, UNDER_A_GRANT, Permission, Principal, Role
from controlplane.access.secrets import hash_of, is_secret_of, read_api_key
from controlplane.api.operations import operation_of
from controlplane.api.requests import Ask, services_of
from controlplane.commands import access_grants
from controlplane.domain import ApiKey, Member
from controlplane.readmodels import queries
from controlplane.refusals import Refused
from controlplane.row_security import Scope

GRANT_HEADER = "Pointsman-Grant"
_AUTHORIZATION_MAX = 512
_TENANT_PATTERN = r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$(?!\n)"


async def authorise(request: Ask) -> Principal:
    """Return who asks, if the key is valid and its role grants the permission that the route is declared with.

    Raises:
        Refused: unauthenticated, forbidden, too_many_requests or, under a grant, whatever keeps its use from being recorded.
    """
    text, failures = _presented(request), services_of(request).failures
    hashed, address = hash_of(text), address_of(request)
    failures.check(address, hashed)
    try:
        principal = await _authenticate(request, text, hashed)
    except Refused as refusal:
        if refusal.code == "unauthenticated":
            failures.failed(address)
        raise
    failures.succeeded(hashed)
    services_of(request).requests.take(principal.tenant)
    permission = operation_of(request.route_handler).permission
    if principal.role is Role.VENDOR and GRANT_HEADER.lower() in request.headers:
        return await _under_grant(request, principal, permission)
    if permission is None or not principal.may(permission):
        raise Refused("forbidden", f"The role {principal.role.value} does not grant this.")
    return principal


def address_of(request: Ask) -> str:
    """Return the address that the request came from, as far as the server knows it."""
    return request.client.host if request.client is not None else ""


def _presented(request: Ask) -> str:
    scheme, _, text = request.headers.get("authorization", "").partition(" ")
    text = text.strip()
    if scheme.lower() != "bearer" or not text or len(text) > _AUTHORIZATION_MAX:
        raise Refused("unauthenticated", "There is no API key in the Authorization header.")
    return text


async def _authenticate(request: Ask, text: str, hashed: str) -> Principal:
    services = services_of(request)
    if hmac.compare_digest(hashed, services.operator_key_sha256):
        return Principal(OPERATOR_REALM, Role.VENDOR, FIRST_OPERATOR)
    key = read_api_key(text)
    known = (
        await services.query(Scope(key_id=key.key_id), queries.find_api_key, key.key_id) if key is not None else None
    )
    if known is not None and known.tenant in services.resources.quarantined:
        # The row may be from before a revocation.
        current = await services.run(services.load, ApiKey.new(known.tenant, known.name))
        known = current if isinstance(current, ApiKey) and current.exists else None
    # A hash is compared even if no key is known, so that the answer takes as long.
    valid = is_secret_of(key.secret if key is not None else "", known.hash if known is not None else "0" * 64)
    if known is None or not valid or (known.expires_at is not None and known.expires_at <= services.clock()):
        raise _no_key()
    member_role = await _role_of(request, known) if known.member else None
    await services.key_uses.record(known.tenant, known.name)
    realm = "operator" if known.tenant == OPERATOR_REALM else "key"
    return Principal(known.tenant, Role(known.role), f"{realm}:{known.name}", known.read_only, member_role)


async def _role_of(request: Ask, key: ApiKey) -> Role:
    """Return the role of the person whose key it is; without membership the key opens nothing."""
    # From the member's own events: a role that was lowered a moment ago is lowered.
    services = services_of(request)
    member = await services.run(services.load, Member.new(key.tenant, key.member))
    if not isinstance(member, Member) or not member.exists:
        raise _no_key()
    return Role(member.role)


async def _under_grant(request: Ask, operator: Principal, permission: Permission | None) -> Principal:
    """Return a principal that may read what a tenant opened, once the read is recorded."""
    services = services_of(request)
    tenant, _, name = request.headers[GRANT_HEADER].partition("/")
    if not matches(_TENANT_PATTERN, tenant) or not matches(RESOURCE_NAME_PATTERN, name):
        raise Refused("invalid_header", f"{GRANT_HEADER} is a tenant's id, a slash and the name of a grant.")
    if permission not in UNDER_A_GRANT or request.method != "GET":
        raise Refused(
            "forbidden", "A grant lets the operator read the tenant's resources and their events, nothing else."
        )
    subject = str(request.path_params.get("name", ""))
    if subject and not matches(RESOURCE_NAME_PATTERN, subject):
        raise Refused("not_found", "Nothing has this name.")
    acting = Principal(tenant, Role.VIEWER, operator.actor)
    decide = access_grants.use(name, operation_of(request.route_handler).id, subject)
    await services.run(services.write_path.run, acting, decide)
    return acting


def _no_key() -> Refused:
    return Refused("unauthenticated", "The API key is unknown, revoked or expired.")
