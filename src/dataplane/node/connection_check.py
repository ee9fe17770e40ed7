"""`python -m dataplane.node.connection_check`: connect, say what came of it, and end.

It reads a `Check` as JSON from standard input and writes a `Found` to standard output. A process of its own, because
the systems' libraries would stay in the agent's memory for good, and because a process can be ended when it hangs. The
secret is resolved in here and goes nowhere but to the server. Called by `questions`.
"""

import asyncio
import sys
import time

import msgspec
import psycopg

from contracts.checks import Check as DoctorCheck
from contracts.checks import Outcome
from contracts.codes import Code
from contracts.kafka import KafkaConfig
from contracts.v2 import Finding
from dataplane import postgres, secrets
from dataplane.failures import Failure, Permanent
from dataplane.node.questions import Check, Found, Side


def run(check: Check) -> Found:
    """Connect, look, disconnect. Failures of the connection are an answer, not an error."""
    began = time.monotonic()
    try:
        if isinstance(check.connection.config, KafkaConfig):
            _connect_to_kafka(check)
            findings = [Finding(check=DoctorCheck.CONNECTS, outcome=Outcome.OK)]
            return Found(ok=True, elapsed_seconds=time.monotonic() - began, findings=findings)
        if check.examination is not None:
            from dataplane.node.doctor import examination  # only when it is asked for

            return examination.run(check, check.examination, began)
        version = _connect(check)
    except Failure as failure:
        elapsed = time.monotonic() - began
        return Found(ok=False, code=failure.code, sql_state=failure.sql_state, elapsed_seconds=elapsed)
    return Found(ok=True, elapsed_seconds=time.monotonic() - began, server_version=version)


def _connect(check: Check) -> int:
    conninfo = postgres.conninfo(
        check.connection,
        secrets.password(check.connection.secrets, check.secrets_folder),
        application_name="pointsman connection test",
    )
    try:
        with psycopg.connect(conninfo) as connection:
            version = connection.info.server_version
            if check.side is Side.SOURCE:
                row = connection.execute("SELECT pg_catalog.current_setting('wal_level')").fetchone()
                if row is None or row[0] != "logical":
                    raise Permanent(Code.SOURCE_NOT_LOGICAL, "wal_level is not logical")
            return version
    except psycopg.Error as error:
        raise postgres.failure(error, postgres.Side(check.side.value)) from error


def _connect_to_kafka(check: Check) -> None:
    from dataplane.sinks.kafka import reach  # only when it is asked for

    asyncio.run(reach(check.connection, secrets.password(check.connection.secrets, check.secrets_folder)))


def main() -> None:
    """Answer one check."""
    found = run(msgspec.json.decode(sys.stdin.buffer.read(), type=Check))
    sys.stdout.buffer.write(msgspec.json.encode(found))


if __name__ == "__main__":
    main()
