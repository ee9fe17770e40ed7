"""Commands on data planes and the tokens by which nodes join them."""

from datetime import timedelta

from msgspec import UNSET, UnsetType

from controlplane.access.secrets import SecretMaker, hash_of
from controlplane.commands import rules
from controlplane.commands.write_path import (
    Attempt,
    Decide,
    Decision,
    Step,
    WriteOptions,
    check_exists,
    check_preconditions,
)
from controlplane.domain import DataPlane, DataPlaneModel
from controlplane.refusals import Refused

JOIN_TOKEN_HOURS = 1
JOIN_TOKENS_OPEN_MAX = 100
"""How many unused, unexpired tokens a data plane may have."""


def create(name: str, model: DataPlaneModel, options: WriteOptions, *, region: str | UnsetType = UNSET) -> Decide:
    """Make a data plane, or change who runs it and where it is."""

    def decide(attempt: Attempt) -> Decision:
        before = attempt.load(DataPlane.new(attempt.tenant, name))
        check_preconditions(options, before)
        step = Step(before, before.create(attempt.context, model, region))
        if not before.exists and len(attempt.catalogue.data_planes) >= rules.DATA_PLANES_MAX:
            raise Refused("too_many_resources", f"A tenant has at most {rules.DATA_PLANES_MAX} data planes.")
        return Decision.showing(step.after, [step], status=200 if before.exists else 201)

    return decide


def delete(name: str, options: WriteOptions) -> Decide:
    """Delete a data plane that no pipeline runs on, and revoke its nodes. Its leaf may not link any more."""

    def decide(attempt: Attempt) -> Decision:
        before = attempt.load(DataPlane.new(attempt.tenant, name))
        check_exists(before)
        check_preconditions(options, before)
        users = rules.users_of_data_plane(name, attempt.catalogue)
        if users:
            raise Refused("in_use", f"Pipelines run on the data plane: {', '.join(users[:10])}.")
        steps = [Step(before, before.delete(attempt.context))]
        for known in attempt.catalogue.nodes.values():
            if known.data_plane == name:
                node = attempt.load(known.new(attempt.tenant, known.name))
                steps.append(Step(node, node.revoke(attempt.context)))
        return Decision.showing(before, steps)

    return decide


def issue_join_token(name: str, maker: SecretMaker, options: WriteOptions) -> Decide:
    """Let one node join within JOIN_TOKEN_HOURS. The token itself follows from the outcome's nonce."""

    def decide(attempt: Attempt) -> Decision:
        before = attempt.load(DataPlane.new(attempt.tenant, name))
        check_exists(before)
        check_preconditions(options, before)
        waiting = sum(token.node is None and token.expires_at > attempt.at for token in before.tokens.values())
        if waiting >= JOIN_TOKENS_OPEN_MAX:
            raise Refused("too_many_resources", f"A data plane has at most {JOIN_TOKENS_OPEN_MAX} unused tokens.")
        token = maker.join_token(attempt.tenant, name, attempt.nonce)
        expires_at = attempt.at + timedelta(hours=JOIN_TOKEN_HOURS)
        step = Step(before, before.issue_token(attempt.context, hash_of(token.secret), expires_at))
        return Decision(steps=[step], status=201, body={"expires_at": expires_at})

    return decide
