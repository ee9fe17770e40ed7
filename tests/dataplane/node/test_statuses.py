"""When a status says since when it holds, it never goes back in time."""

from datetime import UTC, datetime, timedelta

from msgspec import structs
from tests.dataplane.node.documents import worker_status

from contracts.codes import Code
from contracts.v2 import Phase, PipelineStatus
from dataplane.node.statuses import combine, dated
from dataplane.worker.protocol import Half

START = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)
STREAMING = PipelineStatus(
    pipeline="orders", epoch=1, observed_generation=3, phase=Phase.STREAMING, since=START - timedelta(hours=2)
)
PENDING = structs.replace(STREAMING, phase=Phase.PENDING, since=START + timedelta(seconds=1))


def test_what_an_adopted_worker_says_is_dated_after_what_its_agent_said_before() -> None:
    """A worker that has streamed for hours is news to an agent that just called the pipeline pending."""
    assert dated(STREAMING, before=PENDING, started_at=START) == structs.replace(STREAMING, since=PENDING.since)


def test_the_first_word_of_an_agent_is_dated_after_all_that_the_one_before_it_said() -> None:
    """Otherwise a killed agent's last word, whatever it was, would stand for ever."""
    assert dated(STREAMING, before=None, started_at=START).since == START


def test_what_a_half_says_while_its_rows_flow_is_the_pipelines_word() -> None:
    """Dead letters are known to the sink's half alone; a worse phase has its own reason."""
    source = worker_status(half=Half.SOURCE)
    sink = worker_status(half=Half.SINK, code=Code.DEAD_LETTERS)
    for statuses in ([source, sink], [sink, source]):
        assert (combine(statuses).phase, combine(statuses).code) == (Phase.STREAMING, Code.DEAD_LETTERS)
    away = structs.replace(source, phase=Phase.RETRYING, code=Code.SOURCE_UNREACHABLE)
    assert combine([away, sink]).code is Code.SOURCE_UNREACHABLE


def test_a_status_that_stays_keeps_its_date() -> None:
    """Neither a worker's restart nor a newer position begins it anew."""
    before = dated(STREAMING, before=None, started_at=START)
    again = structs.replace(STREAMING, since=START + timedelta(minutes=5), tables_total=2)
    assert dated(again, before=before, started_at=START) == structs.replace(again, since=START)


def test_a_new_status_has_its_own_date() -> None:
    """What really began later is dated later."""
    failed = structs.replace(
        STREAMING, phase=Phase.RETRYING, code=Code.SINK_UNREACHABLE, since=START + timedelta(minutes=9)
    )
    assert dated(failed, before=STREAMING, started_at=START) == failed
