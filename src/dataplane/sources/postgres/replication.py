"""The replication connection: a walsender session that takes commands, until it begins to stream.

In flow commands and answers; out flows a connection that streams, for `stream` to own. Called by the source's opening.
"""

import select
import threading
import time

import psycopg
from psycopg import errors, pq

from contracts.codes import Code
from dataplane.failures import Failure, Gap, RetryLater
from dataplane.postgres import Side, failure
from dataplane.sources.postgres.messages import lsn_text
from dataplane.sources.postgres.wire import LibpqWire, Wire, take_over

COMMAND_SECONDS_MAX = 120.0
"""Making a slot waits for every transaction that is open."""
PARALLEL_VERSION = 160000
POLL_SECONDS_MAX = 0.2
"""How late a stop is noticed while a command runs."""


class ReplicationConnection:
    """A walsender session that takes commands one at a time.

    `connect`, `command` and `start` block: call them off the event loop. `close` may be called from elsewhere at the same
    time: it lets a command that is under way end, and waits for it.
    """

    def __init__(self, conninfo: str) -> None:
        self._conninfo = conninfo
        self._pgconn: pq.abc.PGconn | None = None
        self._wire: Wire | None = None
        self._turn = threading.Lock()
        self._closing = False

    @property
    def is_connected(self) -> bool:
        """Whether there is a connection that takes commands."""
        return self._pgconn is not None

    def connect(self) -> None:
        """Connect, anew if there was a connection.

        Raises:
            Failure: the server does not answer, or refuses us.
        """
        with self._turn:
            self._finish()
            if self._closing:
                raise RetryLater(Code.SOURCE_UNREACHABLE, "the connection was closed")
            # The blocking connect of libpq knows no bound but connect_timeout, which the connection string carries.
            pgconn = pq.PGconn.connect(self._conninfo.encode())
            if pgconn.status != pq.ConnStatus.OK:
                error = psycopg.OperationalError(pgconn.get_error_message())
                needs_password = pgconn.needs_password
                pgconn.finish()
                if needs_password:
                    raise RetryLater(Code.SOURCE_AUTH_FAILED, str(error), sql_state="28P01")
                raise failure(error, Side.SOURCE)
            self._pgconn = pgconn

    def command(self, text: str) -> list[tuple[str | None, ...]]:
        """Run a command and return its rows.

        Raises:
            psycopg.Error: the server refused the command.
            RetryLater: it took longer than `COMMAND_SECONDS_MAX`, or the connection was closed meanwhile.
        """
        with self._turn:
            rows: list[tuple[str | None, ...]] = []
            pgconn = self._send(text)
            while (result := self._result(pgconn)) is not None:
                rows = [
                    tuple(_text(result.get_value(row, column)) for column in range(result.nfields))
                    for row in range(result.ntuples)
                ]
            return rows

    def start(self, slot: str, publication: str, lsn: int, *, in_progress: bool = False) -> None:
        """Begin the stream at `lsn`: from now on the connection takes no commands; `detach` it.

        With `in_progress` the server may send transactions before they commit.

        Raises:
            psycopg.Error: the server refused; SQLSTATE 55006 says that the slot is in use.
            RetryLater: as for `command`.
        """
        with self._turn:
            options = stream_options(self._live().server_version, publication, in_progress=in_progress)
            pgconn = self._send(f'START_REPLICATION SLOT "{slot}" LOGICAL {lsn_text(lsn)} ({options})')
            self._wait(pgconn, time.monotonic() + COMMAND_SECONDS_MAX)
            if (wire := take_over(pgconn)) is not None:
                self._wire = wire
                return
            result = self._result(pgconn)
            if result is None or result.status != pq.ExecStatus.COPY_BOTH:
                raise psycopg.OperationalError("the server did not begin the stream")
            self._wire = LibpqWire(pgconn)

    def detach(self) -> Wire:
        """Hand the connection over to a stream, which closes it. Only after `start`."""
        with self._turn:
            wire, self._wire, self._pgconn = self._wire, None, None
            if wire is None:
                raise RetryLater(Code.SOURCE_UNREACHABLE, "the connection is closed")
            return wire

    def close(self) -> None:
        """Close the connection, if there is one, for good. Blocks while a command is under way."""
        self._closing = True
        with self._turn:
            self._finish()

    def end_session(self) -> None:
        """Close the connection; another one may be made."""
        with self._turn:
            self._finish()

    def _finish(self) -> None:
        if self._wire is not None:
            self._wire.close()
            self._wire = None
        if self._pgconn is not None:
            self._pgconn.finish()
            self._pgconn = None

    def _live(self) -> pq.abc.PGconn:
        if self._pgconn is None:
            raise RetryLater(Code.SOURCE_UNREACHABLE, "the connection is closed")
        return self._pgconn

    def _send(self, text: str) -> pq.abc.PGconn:
        pgconn = self._live()
        pgconn.send_query(text.encode())
        return pgconn

    def _result(self, pgconn: pq.abc.PGconn) -> pq.abc.PGresult | None:
        end = time.monotonic() + COMMAND_SECONDS_MAX
        while pgconn.is_busy():
            self._wait(pgconn, end)
            pgconn.consume_input()
        result = pgconn.get_result()
        if result is not None and result.status in (pq.ExecStatus.FATAL_ERROR, pq.ExecStatus.BAD_RESPONSE):
            raise errors.error_from_result(result, encoding="utf-8")
        return result

    def _wait(self, pgconn: pq.abc.PGconn, end: float) -> None:
        """Wait until something has come."""
        poll = select.poll()
        poll.register(pgconn.socket, select.POLLIN)
        while True:
            if self._closing or time.monotonic() > end:
                raise RetryLater(
                    Code.SOURCE_UNREACHABLE,
                    "a replication command did not end in time; a transaction may be open for long",
                )
            if poll.poll(POLL_SECONDS_MAX * 1000):
                return


def stream_options(version: int, publication: str, *, in_progress: bool) -> str:
    """Return the options of START_REPLICATION for a server of this version (160004).

    `in_progress` asks for the newest protocol that tells of transactions in progress: 4 from PostgreSQL 16 on, 2 before.
    Two-phase commit stays off: a prepared transaction comes when it is committed.
    """
    if not in_progress:
        protocol = "proto_version '1'"
    elif version >= PARALLEL_VERSION:
        protocol = "proto_version '4', streaming 'parallel'"
    else:
        protocol = "proto_version '2', streaming 'on'"
    return f"{protocol}, publication_names '\"{publication}\"', messages 'true'"


def stream_failure(error: psycopg.Error) -> Failure:
    """Return what an error of START_REPLICATION or of the running stream means."""
    if isinstance(error, errors.UndefinedObject):
        if "publication" in str(error):
            return Gap(Code.GAP_PUBLICATION_CHANGED, str(error), sql_state=error.sqlstate)
        return Gap(Code.GAP_SLOT_MISSING, str(error), sql_state=error.sqlstate)
    if isinstance(error, errors.ObjectNotInPrerequisiteState):
        return Gap(Code.GAP_SLOT_INVALIDATED, str(error), sql_state=error.sqlstate)
    return failure(error, Side.SOURCE)


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode()
