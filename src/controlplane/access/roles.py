"""Roles and what each may do. The API names a permission for every route; a test walks roles and routes."""

from enum import Enum

from msgspec import Struct


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
    """Read resources, events, keys and the audit log."""
    VENDOR = "vendor"
    """The vendor's operator: makes tenants and lists them. Sees nothing inside one. No API key has this role."""


class Permission(Enum):
    """What a route asks for."""

    READ = "read"
    WRITE = "write"
    """Change connections, pipelines, data planes and nodes; let nodes join."""
    OPERATE = "operate"
    """Pause, resume and restart."""
    READ_KEYS = "read_keys"
    WRITE_KEYS = "write_keys"
    AUDIT = "audit"
    TENANTS = "tenants"


_ALL_IN_TENANT = frozenset(Permission) - {Permission.TENANTS}

GRANTED: dict[Role, frozenset[Permission]] = {
    Role.OWNER: _ALL_IN_TENANT,
    Role.ADMIN: _ALL_IN_TENANT,
    Role.OPERATOR: frozenset({Permission.READ, Permission.OPERATE}),
    Role.VIEWER: frozenset({Permission.READ}),
    Role.AUDITOR: frozenset({Permission.READ, Permission.READ_KEYS, Permission.AUDIT}),
    Role.VENDOR: frozenset({Permission.TENANTS}),
}

TENANT_ROLES = tuple(role for role in Role if role is not Role.VENDOR)
OPERATOR_REALM = "operator"
"""Stands where a tenant's id stands for what the vendor's operator does."""


class Principal(Struct, frozen=True):
    """Who makes a request: already authenticated."""

    tenant: str
    role: Role
    actor: str
    """The opaque id that events carry."""

    def may(self, permission: Permission) -> bool:
        """Say whether the role grants `permission`."""
        return permission in GRANTED[self.role]


def may_issue(issuer: Role, issued: Role) -> bool:
    """Say whether a key of one role may make or revoke a key of another: only owners handle owners' keys."""
    return issued is not Role.VENDOR and (issuer is Role.OWNER or issued is not Role.OWNER)
