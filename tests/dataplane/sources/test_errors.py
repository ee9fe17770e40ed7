"""What an error of PostgreSQL means, on either side; and that a connection string says what every session needs."""

import psycopg
import pytest
from psycopg import errors
from tests.dataplane.sources.origins import TENANT

from contracts.codes import Code
from contracts.v2 import ConnectionDocument, PostgresConfig
from dataplane import postgres
from dataplane.failures import Failure, Permanent, RetryLater
from dataplane.postgres import Side, failure
from dataplane.secrets import Secret

DOCUMENT = ConnectionDocument(
    tenant=TENANT,
    data_plane="local",
    name="shop",
    epoch=1,
    generation=1,
    config=PostgresConfig(host="db.internal", port=6543, database="shop", user="pm", ssl_mode="verify-full"),
)


@pytest.mark.parametrize(
    ("error", "side", "family", "code"),
    [
        (errors.InsufficientPrivilege("x"), Side.SOURCE, Permanent, Code.SOURCE_RIGHTS_MISSING),
        (errors.InsufficientPrivilege("x"), Side.SINK, Permanent, Code.SINK_RIGHTS_MISSING),
        (errors.NumericValueOutOfRange("x"), Side.SINK, Permanent, Code.SINK_VALUE_REFUSED),
        (errors.UniqueViolation("x"), Side.SINK, Permanent, Code.SINK_CONSTRAINT),
        (errors.UndefinedColumn("x"), Side.SINK, Permanent, Code.SINK_TABLE_MISMATCH),
        (errors.UndefinedObject("x"), Side.SINK, Permanent, Code.SINK_TYPE_UNSUPPORTED),
        (errors.DiskFull("x"), Side.SINK, RetryLater, Code.SINK_DISK_FULL),
        (errors.AdminShutdown("x"), Side.SINK, RetryLater, Code.SINK_UNREACHABLE),
        (errors.AdminShutdown("x"), Side.SOURCE, RetryLater, Code.SOURCE_UNREACHABLE),
        (errors.ObjectInUse("x"), Side.SOURCE, RetryLater, Code.SOURCE_SLOT_BUSY),
        (errors.ConfigurationLimitExceeded("x"), Side.SOURCE, Permanent, Code.SOURCE_SLOTS_EXHAUSTED),
        (errors.UndefinedTable("x"), Side.SOURCE, Permanent, Code.SOURCE_TABLE_MISSING),
        (errors.DeadlockDetected("x"), Side.SINK, RetryLater, Code.INTERNAL),
        (psycopg.OperationalError("server closed the connection"), Side.SINK, RetryLater, Code.SINK_UNREACHABLE),
        (
            psycopg.OperationalError('FATAL:  password authentication failed for user "pm"'),
            Side.SINK,
            RetryLater,
            Code.SINK_AUTH_FAILED,
        ),
        (
            psycopg.OperationalError('FATAL:  role "pm" does not exist'),
            Side.SOURCE,
            RetryLater,
            Code.SOURCE_AUTH_FAILED,
        ),
        (
            psycopg.OperationalError('FATAL:  database "role" does not exist'),
            Side.SOURCE,
            RetryLater,
            Code.SOURCE_UNREACHABLE,
        ),
        (
            psycopg.OperationalError("FATAL:  the database system is starting up"),
            Side.SOURCE,
            RetryLater,
            Code.SOURCE_UNREACHABLE,
        ),
        (psycopg.InterfaceError("x"), Side.SOURCE, RetryLater, Code.INTERNAL),
    ],
)
def test_an_error_has_a_family_and_a_code(error: psycopg.Error, side: Side, family: type[Failure], code: Code) -> None:
    """The same error means another thing at another end."""
    failed = failure(error, side, table="public.a", column="b")
    assert type(failed) is family
    assert (failed.code, failed.table, failed.column) == (code, "public.a", "b")


def test_the_connection_string_carries_everything_and_escapes_it() -> None:
    """Spaces, quotes and backslashes in a password are its own."""
    text = postgres.conninfo(
        DOCUMENT, Secret("p' w\\d"), application_name="a name", replication=True, settings={"DateStyle": "ISO, YMD"}
    )
    parsed = psycopg.conninfo.conninfo_to_dict(text)
    assert parsed["password"] == "p' w\\d"
    assert parsed["options"] == "-c DateStyle=ISO,\\ YMD"
    expected = {"host": "db.internal", "port": 6543, "dbname": "shop", "user": "pm", "sslmode": "verify-full"}
    assert {name: int(parsed[name]) if name == "port" else parsed[name] for name in expected} == expected
    assert (parsed["replication"], parsed["application_name"]) == ("database", "a name")


def test_without_a_password_none_is_looked_for_elsewhere() -> None:
    """The password file of the process's user is not ours to use."""
    parsed = psycopg.conninfo.conninfo_to_dict(postgres.conninfo(DOCUMENT, None, application_name="a"))
    assert "password" not in parsed
    assert parsed["passfile"] == "/dev/null/none"
