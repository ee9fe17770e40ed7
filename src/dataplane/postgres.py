"""What sources and sinks on PostgreSQL share: how to connect, the session's settings, and what an error means.

In flow a connection's document and its secret, or an error of psycopg; out flow libpq's connection string, or one of
the two families of `failures`. Nothing here connects or decides what a pipeline does next.

An error's text can quote a row: it goes into the failure's message, which stays in the node's log. Only the SQLSTATE
and names of the plain alphabet go into the fields that may cross.
"""

from collections.abc import Mapping
from enum import Enum
from typing import Protocol

import psycopg
import psycopg.conninfo

from contracts.codes import Code
from contracts.names import SQL_NAME_PATTERN, TABLE_NAME_PATTERN, matches
from contracts.v2 import ConnectionDocument, PostgresConfig
from dataplane.failures import Failure, Permanent, RetryLater

SQL_STATE_PATTERN = r"^[0-9A-Z]{5}$(?!\n)"

CONNECT_SECONDS_MAX = 10
TCP_SILENCE_SECONDS_MAX = 30
"""A peer whose network swallows everything is given up after this time."""

TEXT_SETTINGS: Mapping[str, str] = {
    "bytea_output": "hex",
    "DateStyle": "ISO",
    "IntervalStyle": "iso_8601",
    "TimeZone": "UTC",
    "extra_float_digits": "3",
    "lc_monetary": "C",
    # Names of regclass and its like are written with their schema, and read back to the same object.
    "search_path": "pg_catalog",
    "quote_all_identifiers": "off",
    "xmloption": "content",
}
"""With these a value's text is the same from a snapshot and from the stream, and reading it gives the same value."""

SESSION_SETTINGS: Mapping[str, str] = {
    **TEXT_SETTINGS,
    # Limits that a role may carry for its interactive use would cut a long COPY or a quiet stream.
    "statement_timeout": "0",
    "lock_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    # A row-level policy is an error, never a table that silently lacks rows.
    "row_security": "off",
}
"""What every session of ours sets at its start."""


class Side(Enum):
    """On which end of a pipeline a server stands: the same error has another code there."""

    SOURCE = "source"
    SINK = "sink"


class Revealable(Protocol):
    """A secret that never prints."""

    def reveal(self) -> str:
        """Return the secret's value."""
        ...


def conninfo(
    connection: ConnectionDocument,
    password: Revealable | None,
    *,
    application_name: str,
    replication: bool = False,
    settings: Mapping[str, str] = SESSION_SETTINGS,
) -> str:
    """Return libpq's connection string. It holds the password: it may go to libpq and nowhere else.

    `settings` hold from the session's first moment, also on a replication connection (`replication`), where no SET
    could be sent once the stream runs.
    """
    config = postgres_config(connection)
    parameters: dict[str, str | int] = {
        "host": config.host,
        "port": config.port,
        "dbname": config.database,
        "user": config.user,
        "sslmode": config.ssl_mode,
        "application_name": application_name,
        "client_encoding": "UTF8",
        "connect_timeout": CONNECT_SECONDS_MAX,
        "keepalives_idle": TCP_SILENCE_SECONDS_MAX // 3,
        "keepalives_interval": TCP_SILENCE_SECONDS_MAX // 6,
        "keepalives_count": 3,
        "tcp_user_timeout": TCP_SILENCE_SECONDS_MAX * 1000,
        "options": " ".join(f"-c {name}={_escaped(value)}" for name, value in settings.items()),
        # The password file of the process's user is not ours to use; nothing can lie below this path.
        "passfile": "/dev/null/none",
    }
    if password is not None:
        parameters["password"] = password.reveal()
    if replication:
        parameters["replication"] = "database"
    return psycopg.conninfo.make_conninfo("", **parameters)


def postgres_config(connection: ConnectionDocument) -> PostgresConfig:
    """Return the configuration of a connection that is one to PostgreSQL.

    Raises:
        Permanent: it is one to another system (Code.CONNECTION_UNFIT).
    """
    if not isinstance(connection.config, PostgresConfig):
        raise Permanent(Code.CONNECTION_UNFIT, "the connection is not one to PostgreSQL")
    return connection.config


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace(" ", "\\ ")


_CODES: Mapping[Side, Mapping[str, Code]] = {
    Side.SOURCE: {
        "unreachable": Code.SOURCE_UNREACHABLE,
        "auth": Code.SOURCE_AUTH_FAILED,
        "rights": Code.SOURCE_RIGHTS_MISSING,
        "table": Code.SOURCE_TABLE_MISSING,
        "type": Code.INTERNAL,
        "value": Code.SOURCE_PROTOCOL,
        "constraint": Code.INTERNAL,
        "shape": Code.SOURCE_TABLE_MISSING,
        "disk": Code.SOURCE_UNREACHABLE,
        "exhausted": Code.SOURCE_SLOTS_EXHAUSTED,
        "busy": Code.SOURCE_SLOT_BUSY,
        "internal": Code.INTERNAL,
    },
    Side.SINK: {
        "unreachable": Code.SINK_UNREACHABLE,
        "auth": Code.SINK_AUTH_FAILED,
        "rights": Code.SINK_RIGHTS_MISSING,
        "table": Code.SINK_TABLE_MISMATCH,
        "type": Code.SINK_TYPE_UNSUPPORTED,
        "value": Code.SINK_VALUE_REFUSED,
        "constraint": Code.SINK_CONSTRAINT,
        "shape": Code.SINK_TABLE_MISMATCH,
        "disk": Code.SINK_DISK_FULL,
        "exhausted": Code.SINK_UNREACHABLE,
        "busy": Code.SINK_UNREACHABLE,
        "internal": Code.INTERNAL,
    },
}

# What a SQLSTATE, or its class, means: first the whole of it, then its first two characters.
_MEANINGS: Mapping[str, str] = {
    "08": "unreachable",
    "22": "value",
    "23": "constraint",
    "28": "auth",
    "3D": "unreachable",
    "3F": "rights",
    "57": "unreachable",
    "58": "unreachable",
    "25006": "unreachable",  # read-only: the server is a standby at the moment
    "42501": "rights",
    "42P01": "table",
    "42703": "shape",
    "42804": "shape",
    "42P10": "shape",
    "42704": "type",
    "53100": "disk",
    "53300": "unreachable",
    "53400": "exhausted",
    "55006": "busy",
}
_PERMANENT = frozenset({"rights", "table", "type", "value", "constraint", "shape", "exhausted"})

# libpq gives no SQLSTATE for a connection that was refused: the server's words, in its default language, are all.
_REFUSALS: tuple[tuple[str, str], ...] = (
    ("authentication failed", "28P01"),
    ("no password supplied", "28P01"),
    ("no pg_hba.conf entry", "28000"),
    ("permission denied for database", "42501"),
    ("permission denied to start wal sender", "42501"),
    ("must be superuser or replication role", "42501"),
    ("requested standby connections exceed", "53300"),
    ("too many connections", "53300"),
    ("too many clients", "53300"),
    ("remaining connection slots", "53300"),
    ("starting up", "57P03"),
    ("shutting down", "57P03"),
)


def sql_state(error: psycopg.Error) -> str | None:
    """Return the error's SQLSTATE, read from the words of a refused connection where libpq has none; None if unknown."""
    if error.sqlstate is not None:
        return error.sqlstate
    text = str(error).lower()
    for words, state in _REFUSALS:
        if words in text:
            return state
    if "does not exist" in text:
        return "3D000" if "database" in text.split("does not exist")[0].rsplit("fatal:", 1)[-1] else "28000"
    if error.pgconn is not None and error.pgconn.needs_password:
        return "28P01"
    return None


def failure(error: psycopg.Error, side: Side, *, table: str | None = None, column: str | None = None) -> Failure:
    """Return what `error` means for a pipeline: a `RetryLater` or a `Permanent`, to be raised by the caller.

    `table` (schema.table) and `column` are what the caller was busy with; the server's own word comes first.
    """
    state = sql_state(error)
    if state is None:
        meaning = "unreachable" if isinstance(error, psycopg.OperationalError) else "internal"
    else:
        meaning = _MEANINGS.get(state) or _MEANINGS.get(state[:2]) or "internal"
    family = Permanent if meaning in _PERMANENT else RetryLater
    return family(
        _CODES[side][meaning],
        _text_of(error),
        table=_table_of(error) or table,
        column=_name(error.diag.column_name) or column,
        sql_state=state if state and matches(SQL_STATE_PATTERN, state) else None,
    )


def _text_of(error: psycopg.Error) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _name(name: str | None) -> str | None:
    return name if name and matches(SQL_NAME_PATTERN, name) else None


def _table_of(error: psycopg.Error) -> str | None:
    schema, table = error.diag.schema_name, error.diag.table_name
    full = f"{schema}.{table}"
    return full if schema and table and matches(TABLE_NAME_PATTERN, full) else None
