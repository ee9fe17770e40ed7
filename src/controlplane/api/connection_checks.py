"""/v1/connections/{name}/test: does a connection work, as a node sees it that would use it?

The question goes down to one node and its answer comes up, both within seconds; nothing of it is stored. Only a node can
answer: the control plane has neither the secret nor a way to the system.
"""

from datetime import timedelta

from litestar import Controller, post
from litestar.params import FromPath

from contracts.codes import explain
from contracts.names import ResourceName
from contracts.v2 import QuestionTopic
from controlplane import manifests
from controlplane.access.roles import Permission
from controlplane.api.answers import Answer, answer
from controlplane.api.operations import Operation, declared
from controlplane.api.requests import Ask, Parameters, authorise, services_of
from controlplane.api.schemas import ConnectionCheck
from controlplane.channel.service import NodeSilent
from controlplane.domain import Connection, Pipeline
from controlplane.manifests import Strict
from controlplane.readmodels import queries
from controlplane.readmodels.status import NODE_SILENT_SECONDS
from controlplane.refusals import Refused


class ConnectionCheckRequest(Strict, frozen=True, kw_only=True):
    """Which node is to look. Without one, any that is connected and whose data plane uses the connection."""

    node: ResourceName | None = None


class ConnectionCheckController(Controller):
    """Connection checks."""

    path = "/v1/connections/{name:str}/test"

    @post(
        "/",
        status_code=200,
        **declared(
            Operation(
                id="TestConnection",
                summary="Let a node test a connection",
                description="The node connects with the secret that it has and says what came of it, within seconds. Nodes"
                " know the connections that pipelines of their data plane name, and no others.",
                permission=Permission.OPERATE,
                body=ConnectionCheckRequest,
                answers={200: ConnectionCheck},
                refusals=("malformed_json", "invalid_document", "unknown_field", "not_found", "no_node", "node_silent"),
            )
        ),
    )
    async def check(self, request: Ask, name: FromPath[str]) -> Answer:
        """Test a connection."""
        principal = await authorise(request)
        services = services_of(request)
        Parameters(request)
        asked = manifests.convert(manifests.parse_object(await request.body()), ConnectionCheckRequest)
        manifests.check_name(name)
        fresh = services.clock() - timedelta(seconds=NODE_SILENT_SECONDS)

        def choose(connection: queries.Connection) -> tuple[str, str]:
            if queries.get(connection, Connection, principal.tenant, name) is None:
                raise Refused("not_found", "There is no Connection of this name.")
            users = queries.users_of(connection, principal.tenant, [name])[name]
            found = (queries.get(connection, Pipeline, principal.tenant, user) for user in users)
            planes = sorted({each.aggregate.spec.data_plane for each in found if each and each.aggregate.spec})
            nodes = [
                node for names in queries.nodes_of(connection, principal.tenant, planes).values() for node in names
            ]
            heard = queries.node_telemetry(connection, principal.tenant, nodes)
            for node in nodes:
                if asked.node in (None, node) and node in heard and heard[node].at > fresh:
                    return heard[node].data_plane, node
            raise Refused("no_node", "No node is connected that knows this connection.")

        data_plane, node = await services.query(choose)
        try:
            seen = await services.ask(principal.tenant, data_plane, node, QuestionTopic.CONNECTION_TEST, name)
        except NodeSilent as error:
            raise Refused("node_silent", f"Node {node} did not answer.") from error
        explained = explain(seen.code) if seen.code is not None else None
        return answer(
            ConnectionCheck(
                connection=name,
                data_plane=data_plane,
                node=node,
                ok=seen.ok,
                code=seen.code.value if seen.code is not None else None,
                message=explained.summary if explained else None,
                hint=explained.hint if explained else None,
                sql_state=seen.sql_state,
                elapsed_seconds=seen.elapsed_seconds,
                server_version=seen.server_version or None,
            )
        )
