"""/v1/connections/{name}/test and /doctor: does a connection work, and what could be wrong with it, as a node sees it?

The question goes down to one node and its answer comes up, both within seconds; nothing of it is stored. Only a node can
answer: the control plane has neither the secret nor a way to the system.
"""

from datetime import timedelta
from typing import Annotated

from litestar import Controller, post
from litestar.params import FromPath
from msgspec import Meta

from contracts.checks import Check, Outcome
from contracts.codes import Code, explain
from contracts.diagnosis import advise
from contracts.meanings import MEANINGS
from contracts.names import ResourceName
from contracts.v2 import Answer as NodeAnswer
from contracts.v2 import Diagnosis, Finding, PostgresConfig, QuestionTopic, SystemConfig
from controlplane import manifests
from controlplane.access.roles import Permission
from controlplane.api.answers import Answer, answer
from controlplane.api.authentication import authorise
from controlplane.api.operations import Operation, declared
from controlplane.api.requests import Ask, Parameters, services_of
from controlplane.api.schemas import ConnectionCheck, ConnectionDiagnosis, ConnectionFinding
from controlplane.api.services import Services
from controlplane.channel.service import NodeSilent
from controlplane.domain import Connection, Pipeline
from controlplane.manifests import Strict
from controlplane.readmodels import queries
from controlplane.readmodels.status import NODE_SILENT_SECONDS
from controlplane.refusals import Refused
from controlplane.row_security import Scope

REFUSALS = ("malformed_json", "invalid_document", "unknown_field", "not_found", "no_node", "node_silent")
DOCTOR_SECONDS_DEFAULT = 15
DOCTOR_SECONDS_MAX = 60


class ConnectionCheckRequest(Strict, frozen=True, kw_only=True):
    """Which node is to look. Without one, any that is connected and whose data plane uses the connection."""

    node: ResourceName | None = None


class ConnectionDoctorRequest(Strict, frozen=True, kw_only=True):
    """Which node is to look, as for a test, and how long it may take."""

    node: ResourceName | None = None
    timeout_seconds: Annotated[int, Meta(ge=2, le=DOCTOR_SECONDS_MAX)] = DOCTOR_SECONDS_DEFAULT


class ConnectionCheckController(Controller):
    """Questions about connections."""

    path = "/v1/connections/{name:str}"

    @post(
        "/test",
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
                refusals=REFUSALS,
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
        _, data_plane, node = await _choose(services, principal.tenant, name, asked.node)
        seen = await _ask(services, principal.tenant, data_plane, node, QuestionTopic.CONNECTION_TEST, name)
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

    @post(
        "/doctor",
        status_code=200,
        **declared(
            Operation(
                id="ExamineConnection",
                summary="Let a node look for everything that could be wrong with a connection",
                description="The node looks at the server's settings, rights, tables and replication slots, for the"
                " pipelines of its data plane that use the connection, on each side on which they use it. It"
                " changes nothing, and its statements are bounded. Each finding comes with what it means and, where"
                " there is any, the SQL that mends it. A node of contract 1 answers with a test only.",
                permission=Permission.OPERATE,
                body=ConnectionDoctorRequest,
                answers={200: ConnectionDiagnosis},
                refusals=REFUSALS,
            )
        ),
    )
    async def examine(self, request: Ask, name: FromPath[str]) -> Answer:
        """Examine a connection."""
        principal = await authorise(request)
        services = services_of(request)
        Parameters(request)
        asked = manifests.convert(manifests.parse_object(await request.body()), ConnectionDoctorRequest)
        manifests.check_name(name)
        config, data_plane, node = await _choose(services, principal.tenant, name, asked.node)
        seen = await _ask(
            services, principal.tenant, data_plane, node, QuestionTopic.DOCTOR, name, float(asked.timeout_seconds)
        )
        diagnosed = isinstance(seen, Diagnosis)
        findings = seen.findings if isinstance(seen, Diagnosis) else [_connects(seen.code)]
        return answer(
            ConnectionDiagnosis(
                connection=name,
                data_plane=data_plane,
                node=node,
                ok=seen.ok,
                complete=diagnosed,
                sql_state=seen.sql_state,
                elapsed_seconds=seen.elapsed_seconds,
                server_version=seen.server_version or None,
                findings=[_in_words(each, config) for each in findings],
                left_off=seen.left_off if isinstance(seen, Diagnosis) else 0,
            )
        )


async def _choose(services: Services, tenant: str, name: str, wanted: str | None) -> tuple[SystemConfig, str, str]:
    """Return the connection's configuration, and data plane and name of a node that can look.

    Raises:
        Refused: not_found, no_node.
    """
    fresh = services.clock() - timedelta(seconds=NODE_SILENT_SECONDS)

    def choose(connection: queries.Connection) -> tuple[SystemConfig, str, str]:
        found = queries.get(connection, Connection, tenant, name)
        if found is None or found.aggregate.config is None:
            raise Refused("not_found", "There is no Connection of this name.")
        users = queries.users_of(connection, tenant, [name])[name]
        pipelines = (queries.get(connection, Pipeline, tenant, user) for user in users)
        planes = sorted({each.aggregate.spec.data_plane for each in pipelines if each and each.aggregate.spec})
        nodes = [node for names in queries.nodes_of(connection, tenant, planes).values() for node in names]
        heard = queries.node_telemetry(connection, tenant, nodes)
        for node in nodes:
            if wanted in (None, node) and node in heard and heard[node].at > fresh:
                return found.aggregate.config, heard[node].data_plane, node
        raise Refused("no_node", "No node is connected that knows this connection.")

    return await services.query(Scope(tenant=tenant), choose)


async def _ask(
    services: Services,
    tenant: str,
    data_plane: str,
    node: str,
    topic: QuestionTopic,
    name: str,
    seconds_max: float | None = None,
) -> NodeAnswer | Diagnosis:
    try:
        return await services.ask(tenant, data_plane, node, topic, name, seconds_max)
    except NodeSilent as error:
        raise Refused("node_silent", f"Node {node} did not answer.") from error


def _connects(code: Code | None) -> Finding:
    return Finding(check=Check.CONNECTS, outcome=Outcome.OK if code is None else Outcome.PROBLEM, code=code)


def _in_words(finding: Finding, config: SystemConfig) -> ConnectionFinding:
    database = config.database if isinstance(config, PostgresConfig) else ""
    advice = advise(finding, user=config.user or "", database=database)
    return ConnectionFinding(
        check=finding.check.value,
        outcome=finding.outcome.value,
        title=MEANINGS[finding.check].title,
        message=advice.summary,
        hint=advice.hint or None,
        sql=list(advice.sql),
        code=finding.code.value if finding.code is not None else None,
        state=finding.state.value if finding.state is not None else None,
        pipeline=finding.pipeline,
        table=finding.table,
        count=finding.count,
        count_max=finding.count_max,
        size_bytes=finding.size_bytes,
        seconds=finding.seconds,
    )
