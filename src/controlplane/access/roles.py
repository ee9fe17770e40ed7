"""Roles and what each may do. The API names a permission for every route; a test walks roles and routes."""

from enum import Enum

from msgspec import Struct

from controlplane.refusals import refused_at


class Role(Enum):
    """What an API key is for."""

    OWNER = "owner"
    """Everything in the tenant, and other owners' keys."""
    ADMIN = "admin"
    """Everything in the tenant but owners' keys."""
    OPERATOR = "operator"
    """Read, and pause, resume and restart pipelines."""
    VIEWER = "viewer"
    """Read resources and events."""
    AUDITOR = "auditor"
    """Read resources, events, members, keys and the audit log."""
    VENDOR = "vendor"
    """The vendor's operator: makes tenants, and sees which there are and whether their nodes live. Reads a tenant's
    configuration only under a grant that the tenant gave. No key of a tenant has this role."""

    def covers(self, other: "Role") -> bool:
        """Say whether this role grants all that `other` grants."""
        return GRANTED[other] <= GRANTED[self] and may_issue(self, other)


class Permission(Enum):
    """What a route asks for."""

    READ = "read"
    WRITE = "write"
    """Change connections, pipelines, data planes and nodes; let nodes join."""
    OPERATE = "operate"
    """Pause, resume and restart."""
    READ_KEYS = "read_keys"
    WRITE_KEYS = "write_keys"
    READ_MEMBERS = "read_members"
    """See who belongs to the tenant, and to whom it opened its configuration."""
    WRITE_MEMBERS = "write_members"
    """Add and remove members, forget them, and let the vendor's operators read."""
    AUDIT = "audit"
    TENANTS = "tenants"
    FLEET = "fleet"
    """Of all tenants: which nodes live and how many pipelines stand how."""
    OPERATORS = "operators"
    """Make and revoke the keys of the vendor's own operators. Only the first of them may, whose key is in the settings."""


_OF_OPERATOR = frozenset({Permission.TENANTS, Permission.FLEET, Permission.OPERATORS})
_ALL_IN_TENANT = frozenset(Permission) - _OF_OPERATOR
_READING = frozenset({Permission.READ, Permission.READ_KEYS, Permission.READ_MEMBERS, Permission.AUDIT})
"""All that a read-only key is good for."""
UNDER_A_GRANT = frozenset({Permission.READ})
"""What the vendor's operator may do where a tenant opened its configuration: neither its people, nor its keys, nor its log."""

GRANTED: dict[Role, frozenset[Permission]] = {
    Role.OWNER: _ALL_IN_TENANT,
    Role.ADMIN: _ALL_IN_TENANT,
    Role.OPERATOR: frozenset({Permission.READ, Permission.OPERATE}),
    Role.VIEWER: frozenset({Permission.READ}),
    Role.AUDITOR: _READING,
    Role.VENDOR: _OF_OPERATOR,
}

TENANT_ROLES = tuple(role for role in Role if role is not Role.VENDOR)
FIRST_OPERATOR = "operator"
"""The actor whose key is in the settings."""
OPERATOR_REALM = "operator"
"""Stands where a tenant's id stands for what the vendor's operator does."""


class Principal(Struct, frozen=True):
    """Who makes a request: already authenticated."""

    tenant: str
    role: Role
    actor: str
    """The opaque id that events carry."""
    read_only: bool = False
    member_role: Role | None = None
    """The role of the member whose key it is: the key is good for nothing that the member may not do."""

    def may(self, permission: Permission) -> bool:
        """Say whether the role grants `permission`."""
        if permission is Permission.OPERATORS and self.actor != FIRST_OPERATOR:
            return False
        if self.read_only and permission not in _READING:
            return False
        return permission in GRANTED[self.role] and (
            self.member_role is None or permission in GRANTED[self.member_role]
        )


def read_role(text: str) -> Role:
    """Return the role of a tenant that `text` names.

    Raises:
        Refused: invalid_document.
    """
    roles = {role.value: role for role in TENANT_ROLES}
    if text not in roles:
        raise refused_at("invalid_document", "/role", f"not a role; there are {', '.join(roles)}")
    return roles[text]


def may_issue(issuer: Role, issued: Role) -> bool:
    """Say whether a key of one role may make or revoke a key of another: only owners handle owners' keys."""
    return issued is not Role.VENDOR and (issuer is Role.OWNER or issued is not Role.OWNER)
