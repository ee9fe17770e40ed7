"""Commands on nodes: joining with a token, and being revoked."""

import hmac

from controlplane.access.secrets import JoinTokenText, hash_of
from controlplane.commands.write_path import Attempt, Decide, Decision, Step, check_exists
from controlplane.domain import DataPlane, Node
from controlplane.domain.data_plane import JoinToken
from controlplane.refusals import Refused


def enrol(token: JoinTokenText, *, node: str, key: str, leaf_key: str | None, contract: int) -> Decide:
    """Redeem a token for one node, and enrol the data plane's leaf if a key for it is given.

    The same node with the same keys may repeat it: it gets the same answer and nothing happens. Two nodes that race for
    one token both decide on the same version of the data plane, so one of them is refused.
    """

    def decide(attempt: Attempt) -> Decision:
        plane = attempt.load(DataPlane.new(token.tenant, token.data_plane))
        hashed = hash_of(token.secret)
        known = _find(plane, hashed)
        if not plane.exists or known is None:
            raise Refused("invalid_token", "No data plane has issued this token.")
        before = attempt.load(Node.new(token.tenant, node))
        body = {"data_plane": plane.name, "node": node}
        if known.node is not None:
            same = (known.node, before.enrolled, before.key, before.data_plane) == (node, True, key, plane.name)
            if not same or (leaf_key is not None and leaf_key not in plane.leaf_keys):
                raise Refused("token_used", f"Node {known.node} has joined with this token.")
            return Decision(steps=[Step(before, [])], body=body)
        if known.expires_at <= attempt.at:
            raise Refused("invalid_token", "The token has expired.")
        if before.enrolled and (before.key, before.data_plane) != (key, plane.name):
            raise Refused("name_taken", f"A node {node} has joined before, with another key or elsewhere.")
        return Decision(
            steps=[
                Step(plane, plane.redeem(attempt.context, hashed, node, leaf_key)),
                Step(before, before.enrol(attempt.context, data_plane=plane.name, key=key, contract=contract)),
            ],
            body=body,
        )

    return decide


def revoke(name: str) -> Decide:
    """Stop believing a node. Its pipelines run on until another node of the data plane takes them over."""

    def decide(attempt: Attempt) -> Decision:
        before = attempt.load(Node.new(attempt.tenant, name))
        check_exists(before)
        step = Step(before, before.revoke(attempt.context))
        return Decision.showing(before, [step])

    return decide


def _find(plane: DataPlane, hashed: str) -> JoinToken | None:
    """Look a token up by its hash, in constant time for each that the data plane remembers."""
    found = None
    for known, token in plane.tokens.items():
        if hmac.compare_digest(known, hashed):
            found = token
    return found
