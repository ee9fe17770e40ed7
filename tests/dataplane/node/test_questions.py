"""Does this connection work, seen from the node? The answer holds a code, never a text, and comes in time."""

import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from msgspec import structs
from tests.conftest import Database
from tests.dataplane.node.documents import connection, pipeline

from contracts.codes import Code
from contracts.v2 import Answer, ConnectionDocument, PostgresConfig, Question, QuestionTopic
from dataplane import policy
from dataplane.node import questions as questions_module
from dataplane.node.questions import Questions, Side, side_of
from pointsman.local.processes import free_port

LOCAL = policy.parse(policy.LOCAL)


async def ask(document: ConnectionDocument, folder: Path, *, seconds: float = 15.0, as_sink: bool = False) -> Answer:
    pipelines = [pipeline()] if as_sink else []
    named = {document.name: document}
    questions = Questions(str(folder), connections=lambda: named, pipelines=lambda: pipelines, policy=lambda: LOCAL)
    deadline = datetime.now(UTC) + timedelta(seconds=seconds)
    question = Question(id="0" * 32, topic=QuestionTopic.CONNECTION_TEST, name=document.name, deadline=deadline)
    return await questions.answer(question)


async def test_a_good_connection_is_ok(database: Database, folder: Path) -> None:
    """The answer says how long it took and which version answered."""
    answer = await ask(connection("shop", port=database.port, database=database.name), folder)
    assert (answer.ok, answer.code) == (True, None)
    assert answer.server_version >= 180000
    assert 0 < answer.elapsed_seconds < 15


async def test_a_closed_port_is_unreachable(folder: Path) -> None:
    """The code says which side the connection is used on."""
    answer = await ask(connection("warehouse", port=free_port()), folder, as_sink=True)
    assert (answer.ok, answer.code) == (False, Code.SINK_UNREACHABLE)


async def test_a_missing_database_has_its_sql_state(database: Database, folder: Path) -> None:
    """SQLSTATE crosses, the server's words do not."""
    answer = await ask(connection("shop", port=database.port, database="nowhere"), folder)
    assert (answer.ok, answer.code, answer.sql_state) == (False, Code.SOURCE_UNREACHABLE, "3D000")


async def test_a_missing_secret_is_said(database: Database, folder: Path) -> None:
    """The secret is resolved on the node, in the checking process."""
    document = structs.replace(connection("shop", port=database.port), secrets={"password": "file:none"})
    answer = await ask(document, folder)
    assert (answer.ok, answer.code) == (False, Code.SECRET_MISSING)


async def test_an_unknown_connection_is_missing(folder: Path) -> None:
    """A name that the node holds no document for cannot be tried."""
    questions = Questions(str(folder), connections=dict, pipelines=list, policy=lambda: LOCAL)
    question = Question(
        id="0" * 32, topic=QuestionTopic.CONNECTION_TEST, name="none", deadline=datetime.now(UTC) + timedelta(seconds=5)
    )
    assert (await questions.answer(question)).code is Code.CONNECTION_MISSING


async def test_the_answer_comes_before_the_deadline(folder: Path) -> None:
    """A server that never answers is given up in time."""
    blackhole = structs.replace(
        connection("shop"), config=PostgresConfig(host="127.0.0.1", port=free_port(), database="db", user="u")
    )
    import socket

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", blackhole.config.port))
        listener.listen()
        began = time.monotonic()
        answer = await ask(blackhole, folder, seconds=2.0)
        assert time.monotonic() - began < 2.0
    assert (answer.ok, answer.code) == (False, Code.SOURCE_UNREACHABLE)


async def test_a_question_that_is_too_late_starts_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With no time left no process is started."""
    monkeypatch.setattr(questions_module, "CHECK_COMMAND", ("/nonexistent",))
    assert (await ask(connection("shop"), folder, seconds=0.1)).code is Code.SOURCE_UNREACHABLE


@pytest.mark.parametrize(("name", "side"), [("shop", Side.SOURCE), ("warehouse", Side.SINK), ("unused", Side.SOURCE)])
def test_the_side_follows_from_the_pipelines(name: str, side: Side) -> None:
    """A connection that is only written to is checked as a destination."""
    assert side_of(name, [pipeline()]) is side
