"""What a node reports as facts: transitions of pipelines, failures with their counts, and the tables it sees.

In flow the plan's statuses and the workers' views, each time the agent reconciles; out flow messages for the link.
A `FactLog` remembers what was said, so that only changes are. Everything is bounded: transitions of one pipeline by a
token bucket that always lets the latest state through in the end, errors to one report a code and interval, tables to a
number a round.

A name outside the contract's alphabet is never sent: columns are left out, tables are not reported, and both counted.
What a restarted agent sends again is the same as before, and the control plane makes nothing of it.
"""

import re
from collections import Counter
from collections.abc import Mapping
from datetime import datetime

from msgspec import Struct, structs

from contracts.codes import Code
from contracts.names import SQL_NAME_PATTERN, TABLE_NAME_PATTERN, matches
from contracts.reconciling import ReconcileState
from contracts.v2 import ColumnSeen, ErrorReport, Fact, PipelineStatus, ReconcileStatus, SchemaSeen
from dataplane.node.process import WorkerKey
from dataplane.node.supervisor import WorkerView
from dataplane.worker.protocol import ReconcileLine, SchemaLine, WorkerStatus

TRANSITIONS_BURST = 20
TRANSITIONS_PER_SECOND = 0.5
ERROR_INTERVAL_SECONDS = 10.0
SCHEMAS_PER_ROUND_MAX = 20
COLUMNS_BYTES_MAX = 50_000
"""Names and types in one report, so that it stays below the channel's bound: more than 200 of the longest columns, and
all 1,600 that PostgreSQL allows when they are short."""
COLUMN_BYTES = 50
"""What a column takes in a report beside its name and type."""
TYPE_UNNAMED = "other"


class _Bucket(Struct):
    tokens: float
    at: float


class _Errors(Struct):
    """Failures of one code of one pipeline that were not reported yet, and where the last one was."""

    count: int = 0
    sent_at: float = -ERROR_INTERVAL_SECONDS
    table: str | None = None
    column: str | None = None
    sql_state: str | None = None


class FactLog:
    """What one agent has said so far. `now` is a monotonic clock's seconds, `at` the time of day."""

    def __init__(self) -> None:
        self._sent: dict[str, tuple[object, ...]] = {}
        self._buckets: dict[str, _Bucket] = {}
        self._seen_counts: dict[WorkerKey, tuple[int, dict[str, int]]] = {}
        self._seen_deaths: dict[WorkerKey, tuple[int, int]] = {}
        self._errors: dict[tuple[str, Code], _Errors] = {}
        self._schemas: dict[tuple[str, str], SchemaLine] = {}
        self._reconciles: dict[tuple[str, str], tuple[int, ReconcileState]] = {}
        self.errors_total: Counter[tuple[str, str]] = Counter()
        """Failures seen since the agent's start, by pipeline and code."""
        self.names_withheld_total = 0
        """Names of tables, columns and types that were not sent because of their alphabet."""
        self.pending = False
        """Something waits for its turn: ask again soon, though nothing changes."""

    def round(
        self,
        statuses: Mapping[str, PipelineStatus],
        workers: Mapping[WorkerKey, WorkerView],
        *,
        now: float,
        at: datetime,
    ) -> list[Fact]:
        """Return what is to be sent now. Only pipelines with a status are this node's to speak of."""
        self.pending = False
        facts: list[Fact] = [*self._transitions(statuses, now)]
        self._count(workers)
        facts += self._due_errors(now, at)
        ours = {key: view for key, view in workers.items() if key.pipeline in statuses}
        facts += self._due_schemas(ours)
        facts += self._due_reconciles(ours)
        self._forget(statuses, workers)
        return facts

    # ---- Transitions ------------------------------------------------------------------------------------------------

    def _transitions(self, statuses: Mapping[str, PipelineStatus], now: float) -> list[PipelineStatus]:
        due: list[PipelineStatus] = []
        for name, status in statuses.items():
            if self._sent.get(name) == _transition(status):
                continue
            bucket = self._buckets.setdefault(name, _Bucket(TRANSITIONS_BURST, now))
            bucket.tokens = min(TRANSITIONS_BURST, bucket.tokens + (now - bucket.at) * TRANSITIONS_PER_SECOND)
            bucket.at = now
            if bucket.tokens < 1:
                self.pending = True
                continue
            bucket.tokens -= 1
            self._sent[name] = _transition(status)
            due.append(status)
        return due

    # ---- Errors -----------------------------------------------------------------------------------------------------

    def _count(self, workers: Mapping[WorkerKey, WorkerView]) -> None:
        for key, view in workers.items():
            exits, stalls = self._seen_deaths.get(key, (0, 0))
            self._add(key.pipeline, Code.WORKER_EXITED, view.exits_total - exits, None)
            self._add(key.pipeline, Code.WORKER_STALLED, view.stalls_total - stalls, None)
            self._seen_deaths[key] = (view.exits_total, view.stalls_total)
            if view.status is None:
                continue
            pid, counts = self._seen_counts.get(key, (0, {}))
            if pid != view.status.pid:
                counts = view.status.error_counts if view.adopted and not pid else {}
            for word, count in view.status.error_counts.items():
                self._add(key.pipeline, _code(word), count - counts.get(word, 0), view.status)
            self._seen_counts[key] = (view.status.pid, view.status.error_counts)

    def _add(self, pipeline: str, code: Code, count: int, status: WorkerStatus | None) -> None:
        if count <= 0:
            return
        errors = self._errors.setdefault((pipeline, code), _Errors())
        errors.count += count
        self.errors_total[pipeline, code.value] += count
        if status is not None and status.code is code:
            errors.table, errors.column, errors.sql_state = status.table, status.column, status.sql_state

    def _due_errors(self, now: float, at: datetime) -> list[ErrorReport]:
        due: list[ErrorReport] = []
        for (pipeline, code), errors in self._errors.items():
            if not errors.count:
                continue
            if now < errors.sent_at + ERROR_INTERVAL_SECONDS:
                self.pending = True
                continue
            due.append(
                ErrorReport(
                    code=code,
                    at=at,
                    count=errors.count,
                    pipeline=pipeline,
                    table=errors.table,
                    column=errors.column,
                    sql_state=errors.sql_state,
                )
            )
            errors.count, errors.sent_at = 0, now
        return due

    # ---- Schemas ----------------------------------------------------------------------------------------------------

    def _due_schemas(self, workers: Mapping[WorkerKey, WorkerView]) -> list[SchemaSeen]:
        due: list[SchemaSeen] = []
        for key, view in workers.items():
            for line in view.status.schemas if view.status is not None else ():
                if self._schemas.get((key.pipeline, line.table)) == line:
                    continue
                if len(due) >= SCHEMAS_PER_ROUND_MAX:
                    self.pending = True
                    return due
                self._schemas[key.pipeline, line.table] = line
                seen, withheld = schema_seen(key.pipeline, line)
                self.names_withheld_total += withheld
                if seen is not None:
                    due.append(seen)
        return due

    # ---- Comparisons ------------------------------------------------------------------------------------------------

    def not_kept(self, status: ReconcileStatus) -> None:
        """Say this again with the next round: nothing else would ever tell it."""
        self._reconciles.pop((status.pipeline, status.table), None)
        self.pending = True

    def _due_reconciles(self, workers: Mapping[WorkerKey, WorkerView]) -> list[ReconcileStatus]:
        """Return the comparisons that have begun or ended since they were last spoken of."""
        due: list[ReconcileStatus] = []
        for key, view in workers.items():
            for line in view.status.reconciles if view.status is not None else ():
                place, said = (key.pipeline, line.table), (line.number, line.state)
                if self._reconciles.get(place) != said:
                    self._reconciles[place] = said
                    due.append(reconcile_status(key.pipeline, line))
        return due

    def _forget(self, statuses: Mapping[str, PipelineStatus], workers: Mapping[WorkerKey, WorkerView]) -> None:
        """Let go of what is said of pipelines that are not here any more, so that memory stays bounded."""
        self._sent = {name: sent for name, sent in self._sent.items() if name in statuses}
        self._buckets = {name: bucket for name, bucket in self._buckets.items() if name in statuses}
        self._seen_counts = {key: seen for key, seen in self._seen_counts.items() if key in workers}
        self._seen_deaths = {key: seen for key, seen in self._seen_deaths.items() if key in workers}
        self._schemas = {place: line for place, line in self._schemas.items() if place[0] in statuses}
        self._reconciles = {place: said for place, said in self._reconciles.items() if place[0] in statuses}
        here = {key.pipeline for key in workers} | statuses.keys()
        self._errors = {place: each for place, each in self._errors.items() if place[0] in here or each.count}


def clean(status: PipelineStatus) -> PipelineStatus:
    """Return the status without names that may not cross."""
    table = status.table if status.table and matches(TABLE_NAME_PATTERN, status.table) else None
    column = status.column if status.column and matches(SQL_NAME_PATTERN, status.column) else None
    if (table, column) == (status.table, status.column):
        return status
    fields = {name: getattr(status, name) for name in status.__struct_fields__}
    return PipelineStatus(**{**fields, "table": table, "column": column})


def reconcile_status(pipeline: str, line: ReconcileLine) -> ReconcileStatus:
    """Return the report about a comparison. The table's name is that of the document; nothing else in it is a name."""
    return ReconcileStatus(pipeline=pipeline, **structs.asdict(line))


def schema_seen(pipeline: str, line: SchemaLine) -> tuple[SchemaSeen | None, int]:
    """Return the report about a table, None if its name may not cross, and how many names were withheld."""
    if not matches(TABLE_NAME_PATTERN, line.table):
        return None, 1
    withheld = 0
    columns: list[ColumnSeen] = []
    size = 0
    for name, type_text, key, nullable in line.columns:
        size += len(name) + min(len(type_text), 63) + COLUMN_BYTES
        if not matches(SQL_NAME_PATTERN, name) or size > COLUMNS_BYTES_MAX:
            withheld += 1
            continue
        type_name = reduced_type(type_text)
        withheld += type_name is None
        columns.append(ColumnSeen(name=name, type=type_name or TYPE_UNNAMED, key=key, nullable=nullable))
    return SchemaSeen(pipeline=pipeline, table=line.table, columns=columns), withheld


def reduced_type(text: str) -> str | None:
    """Return a type's bare name: `numeric(10,2)` is numeric, `text[]` is text_array; None if it may not cross."""
    bare = re.sub(r"\([^()]*\)", "", text).strip()
    is_array = bare.endswith("[]")
    bare = re.sub(r"(\[\])+$", "", bare).strip().rpartition(".")[2]
    name = re.sub(r" +", "_", bare.removeprefix('"').removesuffix('"')) + ("_array" if is_array else "")
    return name if matches(SQL_NAME_PATTERN, name) else None


def _transition(status: PipelineStatus) -> tuple[object, ...]:
    return (
        (status.epoch, status.observed_generation, status.phase, status.code, status.restarts),
        (status.sql_state, status.table, status.column, status.policy),
    )


def _code(word: str) -> Code:
    """Return the code that a worker counted; one of a newer worker than this agent is INTERNAL here."""
    try:
        return Code(word)
    except ValueError:
        return Code.INTERNAL
