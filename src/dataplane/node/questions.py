"""Answers to interactive questions: does this connection work, seen from here, and what could be wrong with it?

The link hands a question in and sends the answer; nobody waits longer than the question's deadline. Each check runs in
a short process of its own (`connection_check`).
"""

import asyncio
import logging
import sys
import time
from collections.abc import Callable, Collection, Mapping
from datetime import UTC, datetime
from enum import Enum

import msgspec
from msgspec import Struct

from contracts.checks import Check as DoctorCheck
from contracts.checks import Outcome
from contracts.codes import Code
from contracts.names import resource_id
from contracts.v2 import Answer, ConnectionDocument, Diagnosis, Finding, PipelineDocument, Question, QuestionTopic
from dataplane.node.reconciler import PIPELINE_KIND
from dataplane.node.signatures import Signatures
from dataplane.policy import Policy, PolicyInvalid, judge_connection

CHECK_COMMAND = (sys.executable, "-m", "dataplane.node.connection_check")
CHECK_SECONDS_MAX = 15.0
DOCTOR_SECONDS_MAX = 60.0
COUNTERPARTS_MAX = 4
"""Of how many other sources the doctor asks who they are."""
MARGIN_SECONDS = 0.3
"""Before the deadline, so that the answer is there in time."""

_log = logging.getLogger(__name__)


class Side(Enum):
    """On which end of a pipeline a connection is used, in the words of `dataplane.postgres` (too heavy to import)."""

    SOURCE = "source"
    SINK = "sink"


class Use(Struct, frozen=True, kw_only=True):
    """A pipeline that uses the connection, on one side."""

    pipeline: str
    pipeline_id: str
    tables: list[str]
    failover: bool = False


class Examination(Struct, frozen=True, kw_only=True):
    """What the doctor has to know beside the connection. All is of the node's own documents."""

    as_source: list[Use]
    as_destination: list[Use]
    counterparts: dict[str, ConnectionDocument]
    """For pipelines that deliver here: where they read, unless it is this connection too."""
    seconds_max: float


class Check(Struct, frozen=True, kw_only=True):
    """What `connection_check` is asked."""

    connection: ConnectionDocument
    secrets_folder: str
    side: Side
    """A source must also be set up for logical decoding."""
    examination: Examination | None = None
    """With it the doctor looks at everything; without it, whether the connection works."""


class Found(Struct, frozen=True, kw_only=True):
    """What `connection_check` answers. `server_version` is as PostgreSQL counts it: 180003 for 18.3."""

    ok: bool
    code: Code | None = None
    sql_state: str | None = None
    elapsed_seconds: float = 0.0
    server_version: int = 0
    findings: list[Finding] = []
    left_off: int = 0


class Questions:
    """Answers for one node. `connections`, `pipelines` and `policy` give what holds at the moment.

    With `signatures` a connection is only reached if it has the customer's signature, where the policy asks for one.
    """

    def __init__(
        self,
        secrets_folder: str,
        connections: Callable[[], Mapping[str, ConnectionDocument]],
        pipelines: Callable[[], Collection[PipelineDocument]],
        policy: Callable[[], Policy | PolicyInvalid],
        signatures: Signatures | None = None,
    ) -> None:
        self._secrets_folder = secrets_folder
        self._connections = connections
        self._pipelines = pipelines
        self._policy = policy
        self._signatures = signatures

    async def answer(self, question: Question) -> Answer | Diagnosis:
        """Return the answer, before the question's deadline."""
        doctor = question.topic is QuestionTopic.DOCTOR
        connection = self._connections().get(question.name)
        if connection is None:
            found = Found(ok=False, code=Code.CONNECTION_MISSING)
            return _diagnosis(question, found) if doctor else _answer(question, found)
        refused = self._refusal(connection)
        if refused is not None:
            # Whoever asks learns that the customer does not want it, and not whether the server is there.
            found = Found(ok=False, code=refused)
            return _diagnosis(question, found) if doctor else _answer(question, found)
        pipelines = self._pipelines()
        side = side_of(question.name, pipelines)
        left = (question.deadline - datetime.now(UTC)).total_seconds() - MARGIN_SECONDS
        seconds_max = min(left, DOCTOR_SECONDS_MAX if doctor else CHECK_SECONDS_MAX)
        began = time.monotonic()
        check = Check(
            connection=connection,
            secrets_folder=self._secrets_folder,
            side=side,
            examination=examination(question.name, pipelines, self._allowed(), seconds_max) if doctor else None,
        )
        try:
            found = await _run(check, seconds_max)
        except TimeoutError:
            unreachable = Code.SINK_UNREACHABLE if side is Side.SINK else Code.SOURCE_UNREACHABLE
            found = Found(ok=False, code=unreachable, elapsed_seconds=time.monotonic() - began)
        return _diagnosis(question, found) if doctor else _answer(question, found)

    def _refusal(self, connection: ConnectionDocument) -> Code | None:
        policy = self._policy()
        if isinstance(policy, PolicyInvalid):
            return Code.POLICY_UNREADABLE
        violations = judge_connection(policy, connection)
        if self._signatures is not None:
            violations += self._signatures.judge(policy.documents, [connection])
        return violations[0].code if violations else None

    def _allowed(self) -> dict[str, ConnectionDocument]:
        return {name: each for name, each in self._connections().items() if self._refusal(each) is None}


def _answer(question: Question, found: Found) -> Answer:
    return Answer(
        id=question.id,
        ok=found.ok,
        code=found.code,
        sql_state=found.sql_state,
        elapsed_seconds=found.elapsed_seconds,
        server_version=found.server_version,
    )


def _diagnosis(question: Question, found: Found) -> Diagnosis:
    connects = Finding(check=DoctorCheck.CONNECTS, outcome=Outcome.PROBLEM, code=found.code)
    return Diagnosis(
        id=question.id,
        ok=found.ok,
        code=found.code,
        sql_state=found.sql_state,
        elapsed_seconds=found.elapsed_seconds,
        server_version=found.server_version,
        findings=found.findings or [connects],
        left_off=found.left_off,
    )


def examination(
    name: str,
    pipelines: Collection[PipelineDocument],
    connections: Mapping[str, ConnectionDocument],
    seconds_max: float,
) -> Examination:
    """Return what the pipelines of this node say of how a connection is used."""

    def use(each: PipelineDocument) -> Use:
        identifier = str(resource_id(each.tenant, PIPELINE_KIND, each.name))
        return Use(
            pipeline=each.name,
            pipeline_id=identifier,
            tables=list(each.source.tables),
            failover=each.source.failover,
        )

    in_order = sorted(pipelines, key=lambda each: each.name)
    delivering = [each for each in in_order if each.sink.connection == name]
    others = {
        each.name: connections[each.source.connection]
        for each in delivering
        if each.source.connection != name and each.source.connection in connections
    }
    return Examination(
        as_source=[use(each) for each in in_order if each.source.connection == name],
        as_destination=[use(each) for each in delivering],
        counterparts=others,
        seconds_max=seconds_max,
    )


def side_of(connection: str, pipelines: Collection[PipelineDocument]) -> Side:
    """Return as what the connection is used: as a destination only, or (also) as a source."""
    is_source = any(each.source.connection == connection for each in pipelines)
    is_sink = any(each.sink.connection == connection for each in pipelines)
    return Side.SINK if is_sink and not is_source else Side.SOURCE


async def _run(check: Check, seconds_max: float) -> Found:
    """Run one check in its process.

    Raises:
        TimeoutError: it took longer; the process was ended.
    """
    if seconds_max <= 0:
        raise TimeoutError
    process = await asyncio.create_subprocess_exec(
        *CHECK_COMMAND,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(seconds_max):
            output, _ = await process.communicate(msgspec.json.encode(check))
        return msgspec.json.decode(output, type=Found)
    except msgspec.DecodeError:
        _log.error("connection_check_failed", extra={"exit_code": process.returncode})
        return Found(ok=False, code=Code.INTERNAL)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
