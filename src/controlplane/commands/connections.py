"""Commands on connections."""

from msgspec import UNSET, UnsetType

from contracts.countersigning import of_connection
from contracts.v2 import CustomerSignature, SystemConfig
from controlplane.commands import rules, signatures
from controlplane.commands.write_path import (
    Attempt,
    Decide,
    Decision,
    Step,
    WriteOptions,
    check_exists,
    check_preconditions,
)
from controlplane.domain import Connection
from controlplane.refusals import Refused


def configure(
    name: str,
    type_: str,
    config: SystemConfig,
    secrets: dict[str, str],
    options: WriteOptions,
    *,
    signature: CustomerSignature | UnsetType = UNSET,
) -> Decide:
    """Make a connection as asked, or change it. `signature` is the customer's own, if there is one."""

    def decide(attempt: Attempt) -> Decision:
        before = attempt.load(Connection.new(attempt.tenant, name))
        check_preconditions(options, before)
        statement = of_connection(tenant=attempt.tenant, name=name, config=config, secrets=secrets)
        warnings = signatures.check(statement, signature, before.signature)
        events = before.configure(attempt.context, type_=type_, config=config, secrets=secrets, signature=signature)
        step = Step(before, events)
        after = step.after
        if step.events and isinstance(after, Connection):
            rules.check_connection(after, attempt.catalogue)
        return Decision.showing(after, [step], status=200 if before.exists else 201, warnings=warnings)

    return decide


def delete(name: str, options: WriteOptions) -> Decide:
    """Delete a connection that no pipeline names."""

    def decide(attempt: Attempt) -> Decision:
        before = attempt.load(Connection.new(attempt.tenant, name))
        check_exists(before)
        check_preconditions(options, before)
        users = rules.users_of_connection(name, attempt.catalogue)
        if users:
            raise Refused("in_use", f"Pipelines name the connection: {', '.join(users[:10])}.")
        step = Step(before, before.delete(attempt.context))
        return Decision.showing(before, [step])

    return decide
