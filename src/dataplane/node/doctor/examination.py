"""Examine one connection on every side on which pipelines use it, and put the findings in order.

In flow the check that the node asks for; out flows what `connection_check` answers. A connection that nobody uses yet is
examined as a source without tables. Whatever happens, it ends before the time that it is given.
"""

import time
from collections.abc import Iterable, Sequence

import psycopg

from contracts.checks import Check as DoctorCheck
from contracts.checks import Outcome
from contracts.v2 import FINDINGS_MAX, ConnectionDocument, Finding
from dataplane import postgres, secrets
from dataplane.failures import Failure
from dataplane.node.doctor import destination, failover, source, tables
from dataplane.node.doctor.reading import SETTINGS, Reader, Row
from dataplane.node.questions import COUNTERPARTS_MAX, Check, Examination, Found, Side
from dataplane.object_names import object_name

APPLICATION_NAME = "pointsman doctor"
MARGIN_SECONDS = 1.0
"""What is left of the time for ending and for the answer; statements in flight end by their own limit."""

_SEVERITY = (Outcome.PROBLEM, Outcome.WARNING, Outcome.UNKNOWN, Outcome.OK)


def run(check: Check, examination: Examination, began: float) -> Found:
    """Connect and look at everything.

    Raises:
        Failure: it does not connect.
    """
    ends_at = began + examination.seconds_max - MARGIN_SECONDS
    conninfo = _conninfo(check.connection, check.secrets_folder)
    try:
        with psycopg.connect(conninfo, autocommit=True) as connection:
            reader = Reader(connection, ends_at=ends_at)
            found = list(_examine(reader, check, examination))
            version = reader.version
    except psycopg.Error as error:
        raise postgres.failure(error, postgres.Side(check.side.value)) from error
    findings, left_off = in_order(found)
    return Found(
        ok=not any(each.outcome is Outcome.PROBLEM for each in found),
        elapsed_seconds=time.monotonic() - began,
        server_version=version,
        findings=findings,
        left_off=left_off,
    )


def _examine(reader: Reader, check: Check, examination: Examination) -> Iterable[Finding]:
    yield Finding(check=DoctorCheck.CONNECTS, outcome=Outcome.OK)
    uses = examination.as_source
    if check.side is Side.SOURCE:
        own = {object_name(use.pipeline_id): use.pipeline for use in uses}
        yield from source.examine(reader, own)
        yield from failover.examine(reader, own, {use.pipeline for use in uses if use.failover})
        names = sorted({table for use in uses for table in use.tables})
        if names:
            yield from tables.examine(reader, names)
    if examination.as_destination:
        yield from destination.examine(reader, examination.as_destination)
        yield from _counterparts(reader, check, examination)


def _counterparts(reader: Reader, check: Check, examination: Examination) -> Iterable[Finding]:
    here = reader.row(destination.IDENTITY)
    sources = {use.pipeline: use for use in examination.as_source}
    seen: dict[str, Row | None] = {}
    good = 0
    for use in examination.as_destination:
        if use.pipeline in sources:
            finding = destination.judge_identity(use.pipeline, here, here)
        else:
            document = examination.counterparts.get(use.pipeline)
            there = None
            if document is not None:
                key = document.name
                if key not in seen and len(seen) < COUNTERPARTS_MAX and reader.has_time:
                    seen[key] = _identity(document, check.secrets_folder)
                there = seen.get(key)
            finding = destination.judge_identity(use.pipeline, here, there)
        if finding.outcome is Outcome.OK:
            good += 1
        else:
            yield finding
    if good:
        yield Finding(check=DoctorCheck.OTHER_DATABASE, outcome=Outcome.OK, count=good)


def _identity(document: ConnectionDocument, secrets_folder: str) -> Row | None:
    try:
        return destination.identity(_conninfo(document, secrets_folder))
    except Failure:
        return None


def _conninfo(document: ConnectionDocument, secrets_folder: str) -> str:
    password = secrets.password(document.secrets, secrets_folder)
    return postgres.conninfo(document, password, application_name=APPLICATION_NAME, settings=SETTINGS)


def in_order(findings: Sequence[Finding]) -> tuple[list[Finding], int]:
    """Return the findings, worst first and otherwise as they came, cut to what a message holds; and how many were cut."""
    ordered = sorted(findings, key=lambda each: _SEVERITY.index(each.outcome))
    return ordered[:FINDINGS_MAX], max(0, len(ordered) - FINDINGS_MAX)
