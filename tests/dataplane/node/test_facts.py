"""What goes up: changes only, bounded, and no name outside the contract's alphabet."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.dataplane.node.documents import NOW, key, view, worker_status

from contracts.codes import Code
from contracts.names import SQL_NAME_PATTERN, matches
from contracts.reconciling import ReconcileState
from contracts.v2 import ErrorReport, Fact, Phase, PipelineStatus, ReconcileStatus, SchemaSeen
from dataplane.node.facts import (
    ERROR_INTERVAL_SECONDS,
    SCHEMAS_PER_ROUND_MAX,
    TRANSITIONS_BURST,
    FactLog,
    clean,
    reduced_type,
    schema_seen,
)
from dataplane.node.statuses import combine, measure
from dataplane.worker.protocol import Half, ReconcileLine, SchemaLine, WorkerStatus, WorkerTelemetry


class Said:
    """A fact log with a clock of the test's own."""

    def __init__(self) -> None:
        self.log = FactLog()
        self.now = 0.0

    def round(self, status: WorkerStatus | None, *, after: float = 1.0, **fields: object) -> list[Fact]:
        self.now += after
        statuses = {"orders": clean(combine([status]))} if status is not None else {}
        workers = {key(): view(status, **fields)}
        return self.log.round(statuses, workers, now=self.now, at=NOW)


def of_kind(facts: list[Fact], kind: type) -> list[Fact]:
    return [each for each in facts if isinstance(each, kind)]


def test_a_status_is_sent_when_it_changes_and_not_again() -> None:
    """Numbers that move are no transition; phase, code, generation and the like are."""
    said = Said()
    assert len(said.round(worker_status())) == 1
    assert said.round(worker_status(position_lsn=99, telemetry=WorkerTelemetry(rows_total=5))) == []
    assert len(said.round(worker_status(generation=2))) == 1
    assert len(said.round(worker_status(generation=2, phase=Phase.RETRYING, code=Code.SINK_UNREACHABLE))) == 1


def test_a_comparison_is_told_when_it_begins_and_when_it_ends() -> None:
    """Counts that move in between are not; what the link did not keep is told again."""
    said = Said()

    def told(**fields: object) -> list[Fact]:
        line = ReconcileLine(table="public.orders", number=1, repair=False, **fields)  # type: ignore[arg-type]
        return of_kind(said.round(worker_status(reconciles=[line])), ReconcileStatus)

    assert [each.state for each in told(rows_compared=1)] == [ReconcileState.RUNNING]
    assert told(rows_compared=2) == []
    (ended,) = told(rows_compared=3, rows_missing=1, state=ReconcileState.DONE)
    assert (ended.pipeline, ended.table, ended.rows_compared, ended.rows_missing) == ("orders", "public.orders", 3, 1)
    assert told(rows_compared=3, rows_missing=1, state=ReconcileState.DONE) == []
    said.log.not_kept(ended)
    assert told(rows_compared=3, rows_missing=1, state=ReconcileState.DONE) == [ended]


def test_a_flapping_pipeline_is_bounded_and_its_last_state_arrives() -> None:
    """Past the burst transitions wait, and the newest one is sent when there is room."""
    said = Said()
    sent = 0
    for number in range(200):
        sent += len(said.round(worker_status(generation=number + 1), after=0.01))
    assert TRANSITIONS_BURST <= sent <= TRANSITIONS_BURST + 2
    assert said.log.pending
    last = said.round(worker_status(generation=200), after=10.0)
    assert [each.observed_generation for each in last if isinstance(each, PipelineStatus)] == [200]
    assert not said.log.pending


def test_errors_are_counted_between_reports() -> None:
    """One report a code and interval, with how often it was met since, and where it was met last."""
    said = Said()
    failing = {"phase": Phase.RETRYING, "code": Code.SINK_CONSTRAINT, "table": "public.orders", "sql_state": "23505"}
    first = of_kind(said.round(worker_status(error_counts={"sink_constraint": 1}, **failing)), ErrorReport)
    assert [(each.code, each.count, each.table) for each in first] == [(Code.SINK_CONSTRAINT, 1, "public.orders")]  # type: ignore[union-attr]
    for count in (3, 7):
        assert not of_kind(said.round(worker_status(error_counts={"sink_constraint": count}, **failing)), ErrorReport)
    later = said.round(worker_status(error_counts={"sink_constraint": 7}, **failing), after=ERROR_INTERVAL_SECONDS)
    assert [each.count for each in of_kind(later, ErrorReport)] == [6]  # type: ignore[union-attr]
    assert said.log.errors_total["orders", "sink_constraint"] == 7


def test_a_new_process_counts_from_zero() -> None:
    """The count of a process that was replaced is not subtracted from the next one's."""
    said = Said()
    said.round(worker_status(error_counts={"internal": 5}, pid=1))
    said.round(worker_status(error_counts={"internal": 2}, pid=2))
    assert said.log.errors_total["orders", "internal"] == 7


def test_a_restarted_agent_does_not_report_old_errors_again() -> None:
    """What an adopted worker had counted before is known already."""
    said = Said()
    assert not of_kind(said.round(worker_status(error_counts={"internal": 5}), adopted=True), ErrorReport)
    said.round(worker_status(error_counts={"internal": 6}), adopted=True)
    assert said.log.errors_total["orders", "internal"] == 1


def test_deaths_of_workers_are_errors() -> None:
    """Exits and stalls are reported with their own codes."""
    said = Said()
    reports = of_kind(said.round(worker_status(), exits_total=2, stalls_total=1), ErrorReport)
    assert {(each.code, each.count) for each in reports} == {(Code.WORKER_EXITED, 2), (Code.WORKER_STALLED, 1)}  # type: ignore[union-attr]


def test_a_code_of_a_newer_worker_is_internal() -> None:
    """An unknown word never goes up."""
    said = Said()
    reports = of_kind(said.round(worker_status(error_counts={"code_of_tomorrow": 1})), ErrorReport)
    assert [each.code for each in reports] == [Code.INTERNAL]  # type: ignore[union-attr]


def test_a_table_is_reported_when_first_seen_and_when_it_changes() -> None:
    """The same columns are said once."""
    said = Said()
    line = SchemaLine(table="public.orders", columns=[("id", "integer", True, False)])
    wider = SchemaLine(table="public.orders", columns=[*line.columns, ("note", "text", False, True)])
    assert len(of_kind(said.round(worker_status(schemas=[line])), SchemaSeen)) == 1
    assert not of_kind(said.round(worker_status(schemas=[line])), SchemaSeen)
    assert len(of_kind(said.round(worker_status(schemas=[wider])), SchemaSeen)) == 1


def test_many_tables_come_in_rounds() -> None:
    """A pipeline of hundreds of tables does not fill the way up at once."""
    said = Said()
    lines = [SchemaLine(table=f"public.t{number}", columns=[]) for number in range(SCHEMAS_PER_ROUND_MAX + 5)]
    assert len(of_kind(said.round(worker_status(schemas=lines)), SchemaSeen)) == SCHEMAS_PER_ROUND_MAX
    assert said.log.pending
    assert len(of_kind(said.round(worker_status(schemas=lines)), SchemaSeen)) == 5


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("integer", "integer"),
        ("numeric(10,2)", "numeric"),
        ("numeric(10,2)[]", "numeric_array"),
        ("text[][]", "text_array"),
        ("character varying(20)", "character_varying"),
        ("timestamp(3) with time zone", "timestamp_with_time_zone"),
        ("public.mood", "mood"),
        ('"Mood"', "Mood"),
        ("my_schema.mood[]", "mood_array"),
        ('"grün"', None),
        ("", None),
        ("x" * 64, None),
    ],
)
def test_types_are_reduced_to_a_bare_name(text: str, name: str | None) -> None:
    """Neither modifiers nor schemas go up, and nothing outside the alphabet."""
    assert reduced_type(text) == name


def test_names_outside_the_alphabet_are_withheld_and_counted() -> None:
    """A column's odd name is left out, an odd type is `other`, an odd table is not reported at all."""
    columns = [("id", "integer", True, False), ("größe", "text", False, True), ("mood", '"grün"', False, True)]
    seen, withheld = schema_seen("orders", SchemaLine(table="public.orders", columns=columns))
    assert seen is not None
    assert [(each.name, each.type) for each in seen.columns] == [("id", "integer"), ("mood", "other")]
    assert withheld == 2
    assert schema_seen("orders", SchemaLine(table="public.größen", columns=columns)) == (None, 1)
    dirty = combine([worker_status(phase=Phase.DEGRADED, code=Code.INTERNAL, table="a.b c", column="x'y")])
    assert (clean(dirty).table, clean(dirty).column) == (None, None)


def test_the_widest_table_fits_a_message() -> None:
    """1,600 columns of the longest names stay below the channel's bound; what is cut is counted."""
    columns = [("c" * 59 + f"{number:04}", "t" * 63, False, True) for number in range(1600)]
    seen, withheld = schema_seen("p" * 63, SchemaLine(table="public." + "t" * 63, columns=columns))
    assert seen is not None
    assert len(seen.columns) + withheld == 1600
    assert len(msgspec.json.encode(seen)) < 60_000


@given(
    table=st.text(max_size=20),
    columns=st.lists(st.tuples(st.text(max_size=8), st.text(max_size=12), st.booleans(), st.booleans()), max_size=5),
)
def test_whatever_a_database_is_called_the_report_is_valid(
    table: str, columns: list[tuple[str, str, bool, bool]]
) -> None:
    """What is built from any names passes the contract's own checks."""
    seen, _ = schema_seen("orders", SchemaLine(table=table, columns=columns))
    if seen is not None:
        assert msgspec.json.decode(msgspec.json.encode(seen), type=SchemaSeen) == seen
    for _, type_text, _, _ in columns:
        name = reduced_type(type_text)
        assert name is None or matches(SQL_NAME_PATTERN, name)


def test_two_halves_make_one_status_and_one_row_of_numbers() -> None:
    """Each number comes from the half that knows it, and the worst phase wins."""
    source = worker_status(
        half=Half.SOURCE,
        phase=Phase.SNAPSHOTTING,
        generation=2,
        telemetry=WorkerTelemetry(
            rows_total=90, lag_bytes=11, slot_retained_bytes=12, buffer_bytes=13, tables_total=4, tables_copied=3
        ),
    )
    sink = worker_status(
        half=Half.SINK,
        generation=3,
        position_lsn=77,
        position_ordinal=5,
        telemetry=WorkerTelemetry(rows_total=80, bytes_total=800, lag_seconds=1.5, latency_seconds=0.2, errors_total=1),
    )
    status = combine([source, sink])
    assert (status.phase, status.observed_generation) == (Phase.SNAPSHOTTING, 2)
    assert status.position is not None
    assert (status.position.lsn, status.position.ordinal) == (77, 5)
    assert (status.tables_total, status.tables_copied) == (4, 3)
    numbers = measure("orders", [source, sink])
    assert (numbers.rows_total, numbers.bytes_total, numbers.errors_total) == (80, 800, 1)
    assert (numbers.lag_bytes, numbers.lag_seconds, numbers.slot_retained_bytes) == (11, 1.5, 12)
    assert numbers.buffer_bytes == 13
