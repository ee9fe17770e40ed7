"""Answers to interactive questions: does this connection work, seen from here?

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

from contracts.codes import Code
from contracts.v2 import Answer, ConnectionDocument, PipelineDocument, Question

CHECK_COMMAND = (sys.executable, "-m", "dataplane.node.connection_check")
CHECK_SECONDS_MAX = 15.0
MARGIN_SECONDS = 0.3
"""Before the deadline, so that the answer is there in time."""

_log = logging.getLogger(__name__)


class Side(Enum):
    """On which end of a pipeline a connection is used, in the words of `dataplane.postgres` (too heavy to import)."""

    SOURCE = "source"
    SINK = "sink"


class Check(Struct, frozen=True, kw_only=True):
    """What `connection_check` is asked."""

    connection: ConnectionDocument
    secrets_folder: str
    side: Side
    """A source must also be set up for logical decoding."""


class Found(Struct, frozen=True, kw_only=True):
    """What `connection_check` answers. `server_version` is as PostgreSQL counts it: 180003 for 18.3."""

    ok: bool
    code: Code | None = None
    sql_state: str | None = None
    elapsed_seconds: float = 0.0
    server_version: int = 0


class Questions:
    """Answers for one node. `connections` and `pipelines` give the documents of the moment."""

    def __init__(
        self,
        secrets_folder: str,
        connections: Callable[[], Mapping[str, ConnectionDocument]],
        pipelines: Callable[[], Collection[PipelineDocument]],
    ) -> None:
        self._secrets_folder = secrets_folder
        self._connections = connections
        self._pipelines = pipelines

    async def answer(self, question: Question) -> Answer:
        """Return the answer, before the question's deadline."""
        connection = self._connections().get(question.name)
        if connection is None:
            return Answer(id=question.id, ok=False, code=Code.CONNECTION_MISSING)
        side = side_of(question.name, self._pipelines())
        left = (question.deadline - datetime.now(UTC)).total_seconds() - MARGIN_SECONDS
        began = time.monotonic()
        check = Check(connection=connection, secrets_folder=self._secrets_folder, side=side)
        try:
            found = await _run(check, min(left, CHECK_SECONDS_MAX))
        except TimeoutError:
            unreachable = Code.SINK_UNREACHABLE if side is Side.SINK else Code.SOURCE_UNREACHABLE
            found = Found(ok=False, code=unreachable, elapsed_seconds=time.monotonic() - began)
        return Answer(
            id=question.id,
            ok=found.ok,
            code=found.code,
            sql_state=found.sql_state,
            elapsed_seconds=found.elapsed_seconds,
            server_version=found.server_version,
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
