"""Ask a server small questions, each within a bounded time, all within one budget.

In flow statements that read catalogs and statistics only; out flow rows, or None for what could not be seen: a right is
missing, a statement took too long, the time is over. Called by the examiners; nothing here decides.
"""

import logging
import time
from collections.abc import Mapping
from typing import Any

import psycopg
from psycopg import sql

from dataplane.postgres import TEXT_SETTINGS

STATEMENT_MILLISECONDS_MAX = 2_000
LOCK_MILLISECONDS_MAX = 200

SETTINGS: Mapping[str, str] = {
    **TEXT_SETTINGS,
    "statement_timeout": str(STATEMENT_MILLISECONDS_MAX),
    "lock_timeout": str(LOCK_MILLISECONDS_MAX),
    "idle_in_transaction_session_timeout": "10000",
    "max_parallel_workers_per_gather": "0",
    # A row-level policy must not make a table with rows look empty.
    "row_security": "off",
}
"""A session that reads, briefly, and holds up nobody."""

Row = tuple[Any, ...]

_log = logging.getLogger(__name__)


class Reader:
    """One connection in autocommit. `ends_at` is on the monotonic clock; later statements are not sent."""

    def __init__(self, connection: psycopg.Connection[Row], *, ends_at: float) -> None:
        self._connection = connection
        self._ends_at = ends_at

    @property
    def version(self) -> int:
        """The server's version as PostgreSQL counts it."""
        return self._connection.info.server_version

    @property
    def has_time(self) -> bool:
        """Whether the budget is not used up."""
        return time.monotonic() < self._ends_at

    def rows(self, statement: str | sql.Composed, *parameters: object) -> list[Row] | None:
        """Return the rows of a statement, or None when it could not be answered."""
        if not self.has_time or self._connection.closed:
            return None
        try:
            cursor = self._connection.execute(statement, parameters or None)
            return cursor.fetchall()
        except psycopg.Error as error:
            _log.info("doctor_statement_failed", extra={"sql_state": error.sqlstate})
            return None

    def row(self, statement: str | sql.Composed, *parameters: object) -> Row | None:
        """Return the first row, or None when there is none or it could not be answered."""
        rows = self.rows(statement, *parameters)
        return rows[0] if rows else None
