"""Commands of the vendor's operator: make a tenant with its first key."""

from controlplane.access.roles import Role
from controlplane.access.secrets import SecretMaker, hash_of
from controlplane.commands.write_path import Attempt, Decide, Decision, Step
from controlplane.domain import ApiKey, Tenant
from controlplane.manifests import check_name
from controlplane.refusals import Refused

FIRST_KEY_LABEL = "first"


def create(name: str, maker: SecretMaker) -> Decide:
    """Make a tenant and an owner's key for it. The key itself follows from the outcome's nonce."""
    check_name(name)

    def decide(attempt: Attempt) -> Decision:
        tenant = attempt.load(Tenant.named(name))
        if tenant.exists:
            raise Refused("name_taken", f"A tenant {name} exists.")
        made = maker.api_key(tenant.tenant, attempt.nonce)
        key = ApiKey.new(tenant.tenant, made.key_id)
        issued = key.issue(
            attempt.context,
            label=FIRST_KEY_LABEL,
            hash_=hash_of(made.secret),
            role=Role.OWNER.value,
            expires_at=None,
        )
        return Decision(
            steps=[Step(tenant, tenant.create(attempt.context)), Step(key, issued)],
            status=201,
            body={"kind": "Tenant", "name": name, "tenant": tenant.tenant, "created_at": attempt.at},
        )

    return decide
