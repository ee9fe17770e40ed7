"""A node knows how the slots of its pipelines stand, also of those that nobody streams."""

import asyncio
from collections.abc import Iterator
from uuid import uuid4

import pytest
from msgspec import structs
from tests.conftest import Database
from tests.dataplane.node.documents import connection, pipeline, until, worker_status

from contracts.codes import Code
from contracts.names import resource_id
from contracts.slots import Invalidation, OnFull, Slot, SlotStatus, SourceLog
from contracts.v2 import Phase, PipelineDocument, RunState
from dataplane.node import slot_care, standing
from dataplane.node.slot_care import Kept, SlotCare, look_of
from dataplane.node.slot_trends import Trend
from dataplane.node.statuses import combine
from dataplane.object_names import object_name
from dataplane.slot_measure import SlotMeasure
from dataplane.worker.protocol import Half, WorkerTelemetry

MIB = 1 << 20
SHOP = connection("shop")
STOP = SourceLog(retain_bytes_max=64 * MIB, on_full=OnFull.STOP)


def measure(at: float, retained: int, **fields: object) -> SlotMeasure:
    values = {"name": "slot_1", "status": SlotStatus.RESERVED, "retained_bytes": retained, **fields}
    return SlotMeasure(at=at, **values)  # type: ignore[arg-type]


def limited(document: PipelineDocument, log: SourceLog = STOP) -> PipelineDocument:
    return structs.replace(document, source=structs.replace(document.source, log=log))


class TestTrend:
    """Measures become a growth and a time that is left."""

    def test_a_steady_growth_is_told_with_the_time_that_is_left(self) -> None:
        """Of the pipeline's own limit or the server's, whichever comes first."""
        trend = Trend()
        for at in range(0, 600, 15):
            trend.note(measure(float(at), at * 1000, safe_bytes=10_000_000 - at * 1000))
        assert trend.growth_bytes_per_second == pytest.approx(1000)
        own = trend.told(1_000_000)
        assert own is not None
        assert (own.limit_bytes, own.seconds_left) == (1_000_000, pytest.approx(415))
        server = trend.told(None)
        assert server is not None
        assert (server.limit_bytes, server.seconds_left) == (10_000_000, pytest.approx(9415))

    def test_a_slot_that_goes_up_and_down_does_not_grow(self) -> None:
        """The log is let go of in pieces; what is kept at the top of a saw's tooth is no trend."""
        trend = Trend()
        for at in range(0, 1200, 5):
            trend.note(measure(float(at), (at % 30) * 1_000_000))
        assert trend.growth_bytes_per_second < 200_000

    def test_without_a_limit_or_growth_nobody_can_say_when_it_ends(self) -> None:
        """The disk of the server is not to be seen from here."""
        trend = Trend()
        assert trend.told(None) is None
        trend.note(measure(0, 5_000))
        trend.note(measure(10, 4_000))
        assert trend.told(10_000) == Slot(
            status=SlotStatus.RESERVED, retained_bytes=4_000, limit_bytes=10_000, growth_bytes_per_second=0.0
        )
        trend.note(measure(20, 400_000))
        told = trend.told(None)
        assert told is not None
        assert told.growth_bytes_per_second > 0
        assert (told.limit_bytes, told.seconds_left) == (None, None)

    def test_another_slot_begins_anew_and_an_older_measure_changes_nothing(self) -> None:
        """A resync makes a slot of another name; a look may be overtaken by a worker's own measure."""
        trend = Trend()
        trend.note(measure(0, 0))
        trend.note(measure(10, 1_000_000))
        trend.note(measure(5, 9_000_000))
        assert trend.growth_bytes_per_second == pytest.approx(100_000)
        trend.note(measure(20, 77, name="slot_2"))
        assert trend.growth_bytes_per_second == 0
        trend.note(measure(30, 0, name="slot_2", status=SlotStatus.LOST, invalidation=Invalidation.IDLE_TIMEOUT))
        told = trend.told(None)
        assert told is not None
        assert (told.status, told.invalidation) == (SlotStatus.LOST, Invalidation.IDLE_TIMEOUT)


class TestWhatIsLookedAt:
    """Slots that nobody streams, and which of them may be given up."""

    @pytest.mark.parametrize(
        ("document", "phases", "looked_at", "given_up"),
        [
            (pipeline(run=RunState.PAUSED), [], True, True),
            (pipeline(), [], True, False),
            (pipeline(), [(Phase.STREAMING, 0)], False, False),
            (pipeline(), [(Phase.SNAPSHOTTING, 0)], False, False),
            (pipeline(), [(Phase.PENDING, 0)], True, False),
            (pipeline(), [(Phase.RETRYING, 10)], True, False),
            (pipeline(), [(Phase.RETRYING, 40)], True, True),
            (pipeline(), [(Phase.GAP, 40)], True, True),
            (pipeline(run=RunState.PAUSED), [(Phase.PAUSED, 40)], True, True),
            (pipeline(run=RunState.REMOVED), [], False, False),
        ],
    )
    def test_a_pipeline_that_may_go_on_by_itself_keeps_its_slot(
        self, document: PipelineDocument, phases: list[tuple[Phase, int]], looked_at: bool, given_up: bool
    ) -> None:
        """Only one that has stopped for a while, or was told to, loses it; and only where somebody chose so."""
        workers = [worker_status(phase=phase, since_seconds=1000.0 - ago) for phase, ago in phases]
        for log in (STOP, SourceLog(retain_bytes_max=64 * MIB), SourceLog()):
            kept = {"orders": Kept(document=limited(document, log), connection=SHOP, workers=workers)}
            look = look_of(kept, "/secrets", 1000.0)
            assert bool(look.subjects) is looked_at
            limits = [each.give_up_bytes for each in look.subjects]
            assert limits == ([64 * MIB if given_up and log is STOP else None] if looked_at else [])

    def test_the_sinks_half_says_nothing_of_the_slot(self) -> None:
        """It may stream from the buffer while the source's half stands still."""
        workers = [
            worker_status(half=Half.SINK, since_seconds=0.0),
            worker_status(half=Half.SOURCE, phase=Phase.RETRYING, since_seconds=0.0),
        ]
        kept = {"orders": Kept(document=limited(pipeline()), connection=SHOP, workers=workers)}
        assert [each.give_up_bytes for each in look_of(kept, "/", 1000.0).subjects] == [64 * MIB]


class PausedPipeline:
    """A pipeline without workers, whose slot and publication are on a real server."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.document = pipeline(f"orders-{uuid4().hex[:8]}", run=RunState.PAUSED)
        self.publication = object_name(str(resource_id(self.document.tenant, "Pipeline", self.document.name)))
        database.execute("CREATE TABLE public.orders (id integer PRIMARY KEY)")
        database.execute(f"CREATE PUBLICATION {self.publication} FOR TABLE public.orders")
        database.execute(f'COMMENT ON PUBLICATION {self.publication} IS \'{{"pointsman":"p"}}\'')
        database.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", f"{self.publication}_00000001")
        self.connection = connection("shop", port=database.port, database=database.name)
        self.workers = []

    def kept(self) -> dict[str, Kept]:
        return {
            self.document.name: Kept(document=self.document, connection=self.connection, workers=self.workers),
            "away": Kept(document=pipeline("away"), connection=connection("shop", port=1)),
        }

    def write(self, megabytes: int) -> None:
        self.database.execute(
            "SELECT count(pg_logical_emit_message(false, 'noise', repeat('x', 1048576))) FROM generate_series(1, %s)",
            megabytes,
        )


@pytest.fixture
def paused(database: Database) -> Iterator[PausedPipeline]:
    paused = PausedPipeline(database)
    yield paused
    database.drop_slots()


async def test_a_paused_pipelines_slot_is_measured_and_given_up_at_the_limit(
    paused: PausedPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its growth is seen though nobody streams; with `on_full: stop` it goes, which is told at once and remembered."""
    monkeypatch.setattr(slot_care, "LOOK_SECONDS", 0.2)
    monkeypatch.setattr(slot_care, "TICK_SECONDS", 0.05)
    name = paused.document.name
    told = asyncio.Event()
    care = SlotCare("/secrets", paused.kept, told.set)
    caring = asyncio.create_task(care.run())
    try:
        await until(lambda: name in care.slots())
        assert care.slots()[name].limit_bytes is None
        paused.write(2)
        await until(lambda: care.slots()[name].growth_bytes_per_second > 0)
        assert care.slots()[name].retained_bytes > 2 * MIB
        assert "away" not in care.slots()
        assert care.gone() == {}
        paused.document = limited(paused.document, SourceLog(retain_bytes_max=MIB, on_full=OnFull.STOP))
        async with asyncio.timeout(20):
            await told.wait()
        assert care.gone() == {name: Code.GAP_LOG_LIMIT}
        assert care.slots()[name].status is SlotStatus.MISSING
    finally:
        caring.cancel()
        await asyncio.wait([caring])
    after = SlotCare("/secrets", paused.kept, told.set)
    again = asyncio.create_task(after.run())
    try:
        await until(lambda: after.gone() == {name: Code.GAP_LOG_LIMIT})
        # A new session has made a new slot; what was seen before it counts no more.
        paused.workers = [worker_status(name, phase=Phase.SNAPSHOTTING)]
        assert after.gone() == {}
    finally:
        again.cancel()
        await asyncio.wait([again])


class TestStanding:
    """What a pipeline says of itself is held against what is seen of it."""

    @pytest.mark.parametrize(
        "phase", [Phase.STREAMING, Phase.SNAPSHOTTING, Phase.PAUSED, Phase.RETRYING, Phase.DEGRADED]
    )
    def test_a_slot_that_is_gone_is_a_gap_whatever_the_workers_say(self, phase: Phase) -> None:
        """Also where they wait for a destination that is away, or for somebody to resume them."""
        status = standing.judged(
            combine([worker_status(phase=phase, code=Code.SINK_UNREACHABLE, sql_state="08006")]),
            gone=Code.GAP_LOG_LIMIT,
            stalled=True,
        )
        assert (status.phase, status.code, status.sql_state) == (Phase.GAP, Code.GAP_LOG_LIMIT, None)

    @pytest.mark.parametrize("phase", [Phase.GAP, Phase.PENDING, Phase.REMOVED])
    def test_a_pipeline_that_knows_better_keeps_its_word(self, phase: Phase) -> None:
        """It found a gap of its own, or is about to look, or is gone itself."""
        said = combine([worker_status(phase=phase, code=Code.GAP_SLOT_AHEAD)])
        assert standing.judged(said, gone=Code.GAP_LOG_LIMIT, stalled=True) == said

    def test_one_that_is_connected_and_hangs_is_no_longer_green(self) -> None:
        """It has a backlog, and for a minute neither rows nor positions nor what is confirmed has moved."""
        progress = standing.Progress()
        hangs = {"orders": [worker_status(position_lsn=7, telemetry=WorkerTelemetry(idle=False, rows_total=5))]}
        assert progress.stalled(hangs, 100.0) == frozenset()
        assert progress.stalled(hangs, 159.0) == frozenset()
        assert progress.stalled(hangs, 160.0) == {"orders"}
        status = standing.judged(combine(hangs["orders"]), gone=None, stalled=True)
        assert (status.phase, status.code) == (Phase.STREAMING, Code.NO_PROGRESS)
        moved = {"orders": [worker_status(position_lsn=7, telemetry=WorkerTelemetry(idle=False, rows_total=6))]}
        assert progress.stalled(moved, 161.0) == frozenset()

    @pytest.mark.parametrize(
        ("telemetry", "stalls"),
        [
            (WorkerTelemetry(idle=True, lag_bytes=5000), False),
            (WorkerTelemetry(idle=True, lag_bytes=5 * MIB), True),
            (WorkerTelemetry(idle=True, queue_bytes=1), True),
        ],
    )
    def test_only_a_backlog_can_stall(self, telemetry: WorkerTelemetry, stalls: bool) -> None:
        """An idle pipeline moves nothing and is well; one whose server went on without it is not."""
        progress = standing.Progress()
        workers = {"orders": [worker_status(telemetry=telemetry)]}
        progress.stalled(workers, 0.0)
        assert (progress.stalled(workers, 100.0) == {"orders"}) is stalls

    def test_what_is_confirmed_counts_as_movement(self) -> None:
        """A source that only has others' changes goes on without a row."""
        progress = standing.Progress()

        def at(confirmed: int) -> dict[str, list[object]]:
            slot = measure(1.0, 0, log_end=50 * MIB + confirmed, unconfirmed_bytes=50 * MIB)
            return {"orders": [worker_status(telemetry=WorkerTelemetry(lag_bytes=50 * MIB, slot=slot))]}

        assert progress.stalled(at(1), 0.0) == frozenset()  # type: ignore[arg-type]
        assert progress.stalled(at(2), 100.0) == frozenset()  # type: ignore[arg-type]
        assert progress.stalled(at(2), 200.0) == {"orders"}  # type: ignore[arg-type]
