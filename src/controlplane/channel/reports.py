"""Takes in what nodes report: facts once each and answered after the commit, heartbeats as the last value only.

A fact is known by its node's key and number; one that comes again is answered as taken and changes nothing. Statuses go
to the command that turns transitions into events, errors and schemas into tables that the API reads. A heartbeat renews
the telemetry tables and, because it says how everything stands now, passes its statuses to the same command.
Called by the intake with batches, on worker threads.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import msgspec
import psycopg
from msgspec import Struct, structs

from contracts import v1, v2
from contracts.convert import report_to_v2
from controlplane.channel.directory import Directory, KnownNode, Refusal, open_report
from controlplane.channel.intake import Answer, Arrived
from controlplane.channel.metrics import ChannelMetrics
from controlplane.projection import Pool
from controlplane.refusals import Refused

RECEIPTS_KEPT = 50_000
"""Numbers remembered for each node key behind its newest one: far more than a node keeps in its outbox."""
PRUNE_EVERY = 1_000
STATUSES_REMEMBERED_MAX = 50_000

Connection = psycopg.Connection[tuple[Any, ...]]


class StatusCommand(Protocol):
    """What turns reported statuses into events: idempotent, so that no change makes no event."""

    def report(self, tenant: str, data_plane: str, node: str, statuses: Sequence[v2.PipelineStatus]) -> None:
        """Record the transitions among `statuses`."""

    def reconciled(self, tenant: str, data_plane: str, node: str, status: v2.ReconcileStatus) -> None:
        """Record how the comparison of a table's two ends stands."""


class _Report(Struct, frozen=True):
    arrived: Arrived
    node: KnownNode
    report: v2.Report


class ReportConsumer:
    """Takes facts and heartbeats."""

    def __init__(self, pool: Pool, directory: Directory, commands: StatusCommand, metrics: ChannelMetrics) -> None:
        self._pool = pool
        self._directory = directory
        self._commands = commands
        self._metrics = metrics
        self._last_statuses: dict[tuple[str, str], tuple[object, ...]] = {}
        self._since_prune = 0

    # ---- Facts ------------------------------------------------------------------------------------------------------

    def handle_facts(self, batch: Sequence[Arrived]) -> list[Answer]:
        """Take a batch of facts, and give each its receipt after everything is committed.

        Raises:
            psycopg.OperationalError: the database does not answer; nobody gets a receipt.
        """
        with self._pool.connection() as connection:
            believed, answers = self._open(connection, batch, "report")
            taken = self._taken(connection, believed)
            fresh = []
            for each in believed:
                identity = (each.node.key, each.report.sequence)
                if identity not in taken:
                    taken.add(identity)
                    fresh.append(each)
        # The command commits on its own and is idempotent: a crash between the two commits repeats it without effect.
        waiting = self._pass_on(fresh)
        fresh = [each for each in fresh if each.node.key not in waiting]
        believed = [each for each in believed if each.node.key not in waiting]
        if fresh:
            with self._pool.connection() as connection, connection.transaction(), connection.cursor() as cursor:
                _write_facts(cursor, fresh)
                self._prune(cursor, fresh)
        self._metrics.reports.labels(kind="report", result="taken").inc(len(fresh))
        self._metrics.reports.labels(kind="report", result="again").inc(len(believed) - len(fresh))
        for each in believed:
            is_fact = isinstance(each.report.message, v2.Fact)
            receipt = v2.Receipt(
                sequence=each.report.sequence, accepted=is_fact, code=None if is_fact else Refusal.MALFORMED.value
            )
            answers.append(Answer(each.arrived.reply, msgspec.json.encode(receipt)))
        return answers

    def _pass_on(self, fresh: Sequence[_Report]) -> set[str]:
        """Hand statuses to the command; return the keys of nodes whose reports must come again, none out of order."""
        waiting: set[str] = set()
        for each in fresh:
            message, node = each.report.message, each.node
            if isinstance(message, v2.PipelineStatus | v2.ReconcileStatus) and node.key not in waiting:
                try:
                    if isinstance(message, v2.PipelineStatus):
                        self._report(node, [message])
                    else:
                        self._commands.reconciled(node.tenant, node.data_plane, node.node, message)
                except Refused as refused:
                    waiting.add(node.key)
                    self._metrics.reports.labels(kind="report", result=refused.code).inc()
        return waiting

    def _taken(self, connection: Connection, reports: Sequence[_Report]) -> set[tuple[str, int]]:
        rows = connection.execute(
            "SELECT key, sequence FROM channel_receipts"
            " JOIN unnest(%s::text[], %s::bigint[]) AS r (key, sequence) USING (key, sequence)",
            [[each.node.key for each in reports], [each.report.sequence for each in reports]],
        ).fetchall()
        return {(key, sequence) for key, sequence in rows}

    def _prune(self, cursor: psycopg.Cursor[Any], fresh: Sequence[_Report]) -> None:
        self._since_prune += len(fresh)
        if self._since_prune < PRUNE_EVERY:
            return
        self._since_prune = 0
        newest = {each.node.key: each.report.sequence for each in fresh}
        for key, sequence in newest.items():
            cursor.execute(
                "DELETE FROM channel_receipts WHERE key = %s AND sequence < %s", [key, sequence - RECEIPTS_KEPT]
            )

    # ---- Heartbeats -------------------------------------------------------------------------------------------------

    def handle_heartbeats(self, batch: Sequence[Arrived]) -> list[Answer]:
        """Take a batch of heartbeats. Nobody waits for an answer.

        Raises:
            psycopg.OperationalError: the database does not answer; the next heartbeat says the same.
        """
        with self._pool.connection() as connection:
            believed, _ = self._open(connection, batch, "heartbeat")
            with connection.transaction(), connection.cursor() as cursor:
                # In one order of rows everywhere, so that two processes cannot wait for each other.
                ordered = sorted(believed, key=lambda each: (each.node.tenant, each.node.node, each.report.sequence))
                newer = [each for each in ordered if _write_heartbeat(cursor, each)]
        for each in newer:
            message = each.report.message
            if isinstance(message, v2.Heartbeat) and message.pipelines:
                try:
                    self._report(each.node, message.pipelines)
                except Refused as refused:  # the next heartbeat says it again
                    self._metrics.reports.labels(kind="heartbeat", result=refused.code).inc()
        self._metrics.reports.labels(kind="heartbeat", result="taken").inc(len(believed))
        return []

    # ---- Both -------------------------------------------------------------------------------------------------------

    def _open(self, connection: Connection, batch: Sequence[Arrived], kind: str) -> tuple[list[_Report], list[Answer]]:
        known = self._directory.find(connection, [each.address for each in batch])
        believed: list[_Report] = []
        answers: list[Answer] = []
        for each in batch:
            node = known.get((each.address.account, each.address.node))
            report: v1.Report | v2.Report | Refusal = open_report(each.data, each.address, node)
            if isinstance(report, Refusal) or node is None:
                refusal = report if isinstance(report, Refusal) else Refusal.UNKNOWN_NODE
                self._metrics.reports.labels(kind=kind, result=refusal.value).inc()
                if refusal is not Refusal.UNKNOWN_NODE:
                    receipt = v2.Receipt(sequence=0, accepted=False, code=refusal.value)
                    answers.append(Answer(each.reply, msgspec.json.encode(receipt)))
                continue
            believed.append(_Report(each, node, report_to_v2(report)))
        return believed, answers

    def _report(self, node: KnownNode, statuses: Sequence[v2.PipelineStatus]) -> None:
        """Pass on the statuses that differ from what was last passed on for their pipeline, by whichever node."""
        changed: list[v2.PipelineStatus] = []
        for status in statuses:
            key = (node.tenant, status.pipeline)
            said = (node.node, *structs.astuple(structs.replace(status, position=None)))
            if self._last_statuses.get(key) != said:
                changed.append(status)
        if not changed:
            return
        self._commands.report(node.tenant, node.data_plane, node.node, changed)
        if len(self._last_statuses) > STATUSES_REMEMBERED_MAX:
            self._last_statuses.clear()
        for status in changed:
            said = (node.node, *structs.astuple(structs.replace(status, position=None)))
            self._last_statuses[node.tenant, status.pipeline] = said


def _write_facts(cursor: psycopg.Cursor[Any], fresh: Sequence[_Report]) -> None:
    cursor.executemany(
        "INSERT INTO channel_receipts (key, sequence) VALUES (%s, %s) ON CONFLICT DO NOTHING",
        [(each.node.key, each.report.sequence) for each in fresh],
    )
    for each in fresh:
        match each.report.message:
            case v2.ErrorReport() as error:
                _write_error(cursor, each.node, error)
            case v2.SchemaSeen() as seen:
                cursor.execute(
                    'INSERT INTO schemas_seen (tenant, pipeline, "table", node, columns) VALUES (%s, %s, %s, %s, %s)'
                    ' ON CONFLICT (tenant, pipeline, "table") DO UPDATE'
                    " SET node = excluded.node, columns = excluded.columns",
                    [
                        each.node.tenant,
                        seen.pipeline,
                        seen.table,
                        each.node.node,
                        msgspec.json.encode(seen.columns).decode(),
                    ],
                )


def _write_error(cursor: psycopg.Cursor[Any], node: KnownNode, error: v2.ErrorReport) -> None:
    cursor.execute(
        "INSERT INTO node_errors AS e"
        ' (tenant, data_plane, node, code, pipeline, count, first_at, last_at, "table", "column", sql_state)'
        " VALUES (%(tenant)s, %(plane)s, %(node)s, %(code)s, %(pipeline)s, %(count)s, %(at)s, %(at)s,"
        " %(table)s, %(column)s, %(sql_state)s)"
        " ON CONFLICT (tenant, node, code, pipeline) DO UPDATE SET data_plane = excluded.data_plane,"
        " count = least(e.count::numeric + excluded.count, 9223372036854775807)::bigint, last_at = greatest(e.last_at, excluded.last_at),"
        ' "table" = excluded."table", "column" = excluded."column", sql_state = excluded.sql_state',
        {
            "tenant": node.tenant,
            "plane": node.data_plane,
            "node": node.node,
            "code": error.code.value,
            "pipeline": error.pipeline or "",
            "count": error.count,
            "at": error.at,
            "table": error.table,
            "column": error.column,
            "sql_state": error.sql_state,
        },
    )


def _write_heartbeat(cursor: psycopg.Cursor[Any], each: _Report) -> bool:
    """Renew the telemetry tables; return whether it was a heartbeat, and newer than what they had of this node.

    `at` is when it came: a node's clock may be wrong, and freshness is judged by ours.
    """
    beat, node = each.report.message, each.node
    if not isinstance(beat, v2.Heartbeat):
        return False
    cursor.execute(
        "INSERT INTO telemetry_nodes AS t"
        " (tenant, data_plane, node, at, started_at, agent_version, contract, index_digest, key, sequence)"
        " VALUES (%s, %s, %s, now(), %s, %s, %s, %s, %s, %s) ON CONFLICT (tenant, data_plane, node) DO UPDATE"
        " SET at = excluded.at, started_at = excluded.started_at, agent_version = excluded.agent_version,"
        " contract = excluded.contract, index_digest = excluded.index_digest, key = excluded.key,"
        " sequence = excluded.sequence WHERE t.key <> excluded.key OR t.sequence < excluded.sequence",
        [
            node.tenant,
            node.data_plane,
            node.node,
            beat.started_at,
            beat.agent_version,
            beat.contract,
            beat.index_digest,
            node.key,
            each.report.sequence,
        ],
    )
    if cursor.rowcount == 0:
        return False
    for numbers in sorted(beat.telemetry, key=lambda numbers: numbers.pipeline):
        fields = {name: value for name, value in structs.asdict(numbers).items() if name != "pipeline"}
        # Which life of the agent said so: one that has started again since has not yet said that it runs the pipeline.
        fields["agent_started_at"] = beat.started_at
        cursor.execute(
            "INSERT INTO telemetry_pipelines (tenant, pipeline, data_plane, node, at, numbers)"
            " VALUES (%s, %s, %s, %s, now(), %s) ON CONFLICT (tenant, pipeline) DO UPDATE SET"
            " data_plane = excluded.data_plane, node = excluded.node, at = excluded.at, numbers = excluded.numbers",
            [node.tenant, numbers.pipeline, node.data_plane, node.node, msgspec.json.encode(fields).decode()],
        )
    return True
