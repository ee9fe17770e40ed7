"""One connection to the destination: many statements in one round trip, and COPY.

Statements are handed over as bytes with text parameters, are prepared once and sent through libpq's pipeline, so a small
transaction (begin, checkpoint, rows, commit) costs one round trip and about as little CPU as libpq itself takes. Called
by the sink alone, which holds a lock: one exchange at a time.

What was rejected: psycopg's own pipeline and executemany, which take several times the CPU for a row; a second driver.
Prepared statements are the session's: a pooler between us must keep sessions apart (session mode).
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypeVar

import psycopg
from psycopg import pq
from psycopg.abc import PQGen
from psycopg.pq.abc import PGresult
from psycopg.waiting import Ready, Wait

T = TypeVar("T")

PREPARED_MAX = 2000
"""So many prepared statements a session keeps; then all are let go."""

PIPELINE_STATEMENTS_MAX = 1000
"""So many statements go out before their results are read, which bounds memory on both ends."""

_FAILED = (pq.ExecStatus.FATAL_ERROR, pq.ExecStatus.BAD_RESPONSE)


class Statement(NamedTuple):
    """One statement. With `rows` it must touch exactly so many rows."""

    text: bytes
    parameters: Sequence[bytes | None] = ()
    rows: int | None = None


class StatementFailed(Exception):
    """The server refused a statement: `index` is its place among those of the exchange, `error` its words."""

    def __init__(self, error: psycopg.Error, index: int) -> None:
        super().__init__(str(error))
        self.error = error
        self.index = index


class RowsMissed(Exception):
    """A statement touched other rows than it should have: `index` is its place among those of the exchange."""

    def __init__(self, index: int) -> None:
        super().__init__(f"statement {index} touched another number of rows than expected")
        self.index = index


class Session:
    """Statements and COPY on one connection that nobody else uses."""

    def __init__(self, connection: psycopg.AsyncConnection[tuple[object, ...]]) -> None:
        self.connection = connection
        self._names: dict[bytes, bytes] = {}
        self._made = 0

    async def run(self, statements: Sequence[Statement]) -> None:
        """Run the statements in order, in one round trip.

        Raises:
            psycopg.Error: the server refused one, or the connection was lost.
        """
        try:
            await self.exchange(statements)
        except StatementFailed as failed:
            raise failed.error from None

    async def exchange(self, statements: Sequence[Statement]) -> list[PGresult]:
        """Run the statements in order, in one round trip, and return a result for each.

        Raises:
            StatementFailed: the server refused one; those after it were not run.
            RowsMissed: one touched another number of rows than it had to. All were run.
            psycopg.OperationalError: the connection was lost.
        """
        results: list[PGresult] = []
        for start in range(0, len(statements), PIPELINE_STATEMENTS_MAX):
            part = statements[start : start + PIPELINE_STATEMENTS_MAX]
            results += await self._run_part(part, start)
        for index, (statement, result) in enumerate(zip(statements, results, strict=True)):
            if statement.rows is not None and (result.command_tuples or 0) != statement.rows:
                raise RowsMissed(index)
        return results

    async def _run_part(self, statements: Sequence[Statement], start: int) -> list[PGresult]:
        texts = {statement.text for statement in statements}
        if len(self._names.keys() | texts) > PREPARED_MAX:
            await self.forget_prepared()
        pgconn = self.connection.pgconn
        commands: list[tuple[bytes, bytes | None, Sequence[bytes | None]]] = []
        places: list[int] = []
        fresh: dict[bytes, bytes] = {}
        for statement in statements:
            name = self._names.get(statement.text) or fresh.get(statement.text)
            if name is None:
                self._made += 1
                name = fresh[statement.text] = b"pm%d" % self._made
                commands.append((name, statement.text, ()))
            places.append(len(commands))
            commands.append((name, None, statement.parameters))
        pgconn.enter_pipeline_mode()
        answers = await self._wait(_exchange(pgconn, commands))
        pgconn.exit_pipeline_mode()
        for place, answer in enumerate(answers):
            if answer.status in _FAILED:
                index = next(number for number, at in enumerate(places) if at >= place)
                raise StatementFailed(psycopg.errors.error_from_result(answer), start + index)
        self._names.update(fresh)
        return [answers[place] for place in places]

    async def forget_prepared(self) -> None:
        """Let go of every prepared statement."""
        self._names.clear()
        await self.execute("DEALLOCATE ALL")

    async def execute(self, query: str, parameters: Sequence[object] = ()) -> list[tuple[object, ...]]:
        """Run one statement that is not on the hot path, and return its rows."""
        cursor = await self.connection.execute(query.encode(), parameters or None, prepare=False)
        return await cursor.fetchall() if cursor.description else []

    async def copy(self, statement: bytes, blocks: Iterable[bytes | memoryview]) -> None:
        """Send `blocks` to a `COPY … FROM STDIN`.

        Raises:
            psycopg.Error: the server refused a row, or the connection was lost.
        """
        await self._wait(_copy_in(self.connection.pgconn, statement, blocks))

    async def _wait(self, exchange: PQGen[T]) -> T:
        try:
            return await self.connection.wait(exchange)
        except psycopg.Error:
            raise
        except BaseException:
            # Stopped in the middle of an exchange: nobody can tell what the server has heard. It rolls back.
            self.connection.pgconn.finish()
            raise

    async def close(self) -> None:
        """End the session; the server rolls back what is open."""
        await self.connection.close()


def _exchange(
    pgconn: pq.abc.PGconn, commands: Sequence[tuple[bytes, bytes | None, Sequence[bytes | None]]]
) -> PQGen[list[PGresult]]:
    """Send the commands and a sync, and give each one's first result; results are read while sending goes on."""
    for name, text, parameters in commands:
        if text is not None:
            pgconn.send_prepare(name, text)
        else:
            pgconn.send_query_prepared(name, parameters)
    pgconn.pipeline_sync()
    answers: list[PGresult] = []
    waiting_to_send = pgconn.flush() != 0
    while True:
        ready = yield (Wait.RW if waiting_to_send else Wait.R)
        if not ready:
            continue
        if ready & Ready.R:
            pgconn.consume_input()
            while not pgconn.is_busy():
                result = pgconn.get_result()
                if result is None:
                    if pgconn.is_busy():
                        break
                    continue
                if result.status == pq.ExecStatus.PIPELINE_SYNC:
                    return answers
                answers.append(result)
        if waiting_to_send:
            waiting_to_send = pgconn.flush() != 0


def _copy_in(pgconn: pq.abc.PGconn, statement: bytes, blocks: Iterable[bytes | memoryview]) -> PQGen[None]:
    """Run a COPY from the client: a block is made only when the one before it has left for the server."""
    pgconn.send_query(statement)
    yield from _sent(pgconn)
    (answer,) = yield from _received(pgconn, pq.ExecStatus.COPY_IN)
    if answer.status != pq.ExecStatus.COPY_IN:
        raise psycopg.errors.error_from_result(answer)
    for block in blocks:
        while pgconn.put_copy_data(block) == 0:
            yield from _sent(pgconn)
        yield from _sent(pgconn)
    while pgconn.put_copy_end() == 0:
        yield from _sent(pgconn)
    yield from _sent(pgconn)
    answers = yield from _received(pgconn)
    for answer in answers:
        if answer.status in _FAILED:
            raise psycopg.errors.error_from_result(answer)


def _sent(pgconn: pq.abc.PGconn) -> PQGen[None]:
    """Wait until everything that was put has left."""
    while pgconn.flush() != 0:
        while not (ready := (yield Wait.RW)):
            continue
        if ready & Ready.R:
            pgconn.consume_input()


def _received(pgconn: pq.abc.PGconn, until: pq.ExecStatus | None = None) -> PQGen[list[PGresult]]:
    """Wait for the results of a statement: all of them, or up to the first that is `until` or an error."""
    answers: list[PGresult] = []
    while True:
        while pgconn.is_busy():
            if (yield Wait.R):
                pgconn.consume_input()
        answer = pgconn.get_result()
        if answer is None:
            return answers
        answers.append(answer)
        if answer.status == until:
            return answers
