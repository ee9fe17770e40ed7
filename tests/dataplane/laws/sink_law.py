"""The law of `dataplane.sinks.port` as tests: every sink is held to them, by a class that says how to reach it.

A member's class has a fixture `destination` that gives a `Destination`. What a sink keeps no rows of is compared only
by its checkpoint.
"""

import dataclasses
from typing import Protocol

import pytest
from msgspec import structs
from tests.dataplane.sinks.changes import (
    SOURCE,
    Change,
    Emptied,
    Log,
    Row,
    batch,
    delete,
    insert,
    joined,
    table,
    update,
)

from contracts.backfilling import Comparison, Condition
from contracts.codes import Code
from dataplane.batch import START, Op, Position, TableSchema
from dataplane.failures import RetryLater
from dataplane.sinks.port import Sink

ITEMS = table("items", {"id": "integer", "name": "text"})
OTHERS = table("others", {"id": "integer", "name": "text"})


class Destination(Protocol):
    """One destination that several owners' sessions can reach.

    One whose `replaces` is False keeps a log: rows that a copy does not find any more stay in it, as it has no word for
    those of a range of keys.
    """

    replaces: bool

    def sink(self) -> Sink:
        """A new owner's sink of the same pipeline."""
        ...

    def rows(self, of: TableSchema) -> list[Row] | None:
        """What others see of a table, by key; None where no rows are kept."""
        ...

    async def crash(self, sink: Sink) -> None:
        """End the sink as a kill would: nothing is said to the destination."""
        ...


async def streaming(destination: Destination, rows: list[Row] | None = None) -> Sink:
    """A sink whose tables' snapshots are done, ITEMS with `rows`."""
    sink = destination.sink()
    await sink.open()
    await sink.begin(SOURCE)
    await sink.apply(Log().snapshot(ITEMS, rows or []))
    await sink.apply(Log().snapshot(OTHERS, last=True))
    return sink


def expect(destination: Destination, *rows: Row, of: TableSchema = ITEMS, by_number: bool = False) -> None:
    """Compare what others see of a table, with `by_number` in any order."""
    seen = destination.rows(of)
    if by_number and seen is not None:
        seen = sorted(seen, key=lambda row: int(str(row["id"])))
        rows = tuple(sorted(rows, key=lambda row: int(str(row["id"]))))
    assert seen is None or seen == list(rows)


class SinkLaw:
    """What every sink does."""

    async def test_a_pipeline_that_never_wrote_has_no_checkpoint(self, destination: Destination) -> None:
        """Claiming alone leaves none."""
        sink = destination.sink()
        assert await sink.open() is None
        assert await sink.load() is None
        await sink.close()
        again = destination.sink()
        assert await again.open() is None
        await again.close()

    async def test_a_new_source_is_remembered_by_the_next_owner(self, destination: Destination) -> None:
        """`begin` is durable at once, at position START; each owner's epoch is higher than the last one's."""
        sink = destination.sink()
        await sink.open()
        await sink.begin(SOURCE)
        mine = await sink.load()
        await sink.close()
        next_owner = destination.sink()
        theirs = await next_owner.open()
        await next_owner.close()
        assert mine is not None
        assert theirs is not None
        assert (theirs.source, theirs.position, theirs.snapshot_done) == (SOURCE, START, False)
        assert theirs.epoch > mine.epoch

    async def test_a_whole_transaction_becomes_visible_with_its_position(self, destination: Destination) -> None:
        """The answer says what is durable, and the next owner finds the same."""
        sink = await streaming(destination)
        change = Log().transaction(insert(ITEMS, id="1", name="a"), insert(OTHERS, id="7", name="b"))
        progress = await sink.apply(change)
        expect(destination, {"id": "1", "name": "a"})
        expect(destination, {"id": "7", "name": "b"}, of=OTHERS)
        assert progress is not None
        assert (progress.position, progress.confirmed_through) == (change.last, change.commit_end_lsn)
        assert (progress.rows, progress.transactions, progress.commit_time) == (2, 1, change.commit_time)
        await sink.close()
        held = await destination.sink().open()
        assert held is not None
        assert (held.position, held.confirmed_through) == (change.last, change.commit_end_lsn)

    async def test_a_transaction_in_parts_becomes_visible_at_its_end(self, destination: Destination) -> None:
        """Nothing is seen and nothing is answered before; then all of it at once."""
        sink = await streaming(destination)
        first, second, third = Log().parts(
            [[insert(ITEMS, id=str(each), name="x")] for each in (1, 2, 3)],
        )
        assert await sink.apply(first) is None
        assert await sink.apply(second) is None
        expect(destination)
        progress = await sink.apply(third)
        assert progress is not None
        assert (progress.rows, progress.transactions, progress.position) == (3, 1, third.last)
        expect(destination, *({"id": each, "name": "x"} for each in "123"))
        await sink.close()

    async def test_a_crash_in_the_middle_leaves_nothing(self, destination: Destination) -> None:
        """The next owner starts from the checkpoint before, and the whole transaction comes again."""
        sink = await streaming(destination, [{"id": "1", "name": "a"}])
        parts = Log().parts([[update(ITEMS, id="1", name="b")], [insert(ITEMS, id="2", name="c")]])
        await sink.apply(parts[0])
        await destination.crash(sink)
        again = destination.sink()
        held = await again.open()
        assert held is not None
        assert held.position < parts[0].first
        expect(destination, {"id": "1", "name": "a"})
        for part in parts:
            progress = await again.apply(part)
        assert progress is not None
        assert progress.position == parts[1].last
        expect(destination, {"id": "1", "name": "b"}, {"id": "2", "name": "c"})
        await again.close()

    async def test_what_is_durable_already_is_dropped(self, destination: Destination) -> None:
        """A set that comes again changes nothing, even if it would; the answer is what is durable."""
        sink = await streaming(destination)
        log = Log()
        first = log.transaction(insert(ITEMS, id="1", name="a"))
        second = log.transaction(delete(ITEMS, id="1"))
        await sink.apply(first)
        done = await sink.apply(second)
        again = await sink.apply(first)
        assert done is not None
        assert again is not None
        assert (again.position, again.confirmed_through) == (done.position, done.confirmed_through)
        assert again.rows == 0
        expect(destination)
        await sink.close()

    async def test_a_set_that_straddles_the_position_is_cut(self, destination: Destination) -> None:
        """Its known transactions are dropped, and the new ones are applied."""
        sink = await streaming(destination)
        log = Log()
        old = log.transaction(insert(ITEMS, id="1", name="a"), insert(ITEMS, id="2", name="a"))
        between = log.transaction(update(ITEMS, id="1", name="b"))
        new = log.transaction(insert(ITEMS, id="3", name="c"), delete(ITEMS, id="2"))
        await sink.apply(old)
        await sink.apply(between)
        progress = await sink.apply(joined([old, between, new]))
        assert progress is not None
        assert (progress.rows, progress.position) == (2, new.last)
        expect(destination, {"id": "1", "name": "b"}, {"id": "3", "name": "c"})
        await sink.close()

    async def test_a_truncate_stands_between_what_is_before_and_after_it(self, destination: Destination) -> None:
        """Rows before it go, rows after it stay, in one transaction."""
        sink = await streaming(destination, [{"id": "1", "name": "a"}])
        await sink.apply(
            Log().transaction(
                insert(ITEMS, id="2", name="b"), Emptied(ITEMS), insert(ITEMS, id="2", name="c"), insert(OTHERS, id="5")
            )
        )
        expect(destination, {"id": "2", "name": "c"})
        expect(destination, {"id": "5", "name": None}, of=OTHERS)
        await sink.close()

    async def test_an_older_owner_can_write_nothing(self, destination: Destination) -> None:
        """Not rows, not the checkpoint: whatever it tries is refused with SINK_FENCED, or its session was ended."""
        attempts = (
            lambda sink: sink.apply(Log().transaction(insert(ITEMS, id="1", name="old"))),
            lambda sink: sink.advance(10**9),
            lambda sink: sink.begin(SOURCE),
            lambda sink: sink.follow(SOURCE, 10**9),
            lambda sink: sink.forget(),
        )
        for attempt in attempts:
            older = await streaming(destination)
            newer = destination.sink()
            held = await newer.open()
            with pytest.raises(RetryLater) as caught:
                await attempt(older)
            assert caught.value.code in (Code.SINK_FENCED, Code.SINK_UNREACHABLE)
            assert await newer.load() == held
            expect(destination)
            await older.close()
            await newer.apply(Log().transaction(insert(ITEMS, id="1", name="new")))
            expect(destination, {"id": "1", "name": "new"})
            await newer.close()

    async def test_a_takeover_in_the_middle_of_a_transaction_waits_for_nobody(self, destination: Destination) -> None:
        """An owner that froze with an open transaction loses it, and cannot end it when it wakes up."""
        older = await streaming(destination)
        parts = Log().parts([[insert(ITEMS, id="1", name="old")], [insert(ITEMS, id="2", name="old")]])
        await older.apply(parts[0])
        newer = destination.sink()
        await newer.open()
        for part in parts:
            await newer.apply(part)
        with pytest.raises(RetryLater):
            await older.apply(parts[1])
        expect(destination, {"id": "1", "name": "old"}, {"id": "2", "name": "old"})
        await older.close()
        await newer.close()

    async def test_what_the_source_may_be_told_never_goes_back(self, destination: Destination) -> None:
        """`advance` is durable when it returns, and a lower number changes nothing."""
        sink = await streaming(destination)
        await sink.advance(5000)
        await sink.advance(4000)
        await sink.close()
        held = await destination.sink().open()
        assert held is not None
        assert held.confirmed_through == 5000

    async def test_a_source_that_failed_over_is_followed(self, destination: Destination) -> None:
        """Durable at once: its new timeline, and where the old one ended. Rows, position and copies stay."""
        sink = await streaming(destination)
        await sink.apply(Log().transaction(insert(ITEMS, id="1", name="kept")))
        await sink.advance(5000)
        before = await sink.load()
        assert before is not None
        promoted = structs.replace(SOURCE, timeline=SOURCE.timeline + 1)
        await sink.follow(promoted, 4000)
        await sink.close()
        held = await destination.sink().open()
        assert held is not None
        assert held == structs.replace(before, epoch=held.epoch, source=promoted, confirmed_through=4000)
        expect(destination, {"id": "1", "name": "kept"})

    async def test_a_removed_pipeline_begins_from_nothing_and_above_its_old_owners(
        self, destination: Destination
    ) -> None:
        """After `forget` there is no checkpoint, and whoever wrote before cannot come back."""
        older = await streaming(destination)
        newer = destination.sink()
        await newer.open()
        await newer.forget()
        assert await newer.load() is None
        await newer.close()
        newest = destination.sink()
        assert await newest.open() is None
        with pytest.raises(RetryLater):
            await older.advance(10**9)
        assert await newest.load() is None
        await older.close()
        await newest.close()

    async def test_each_table_is_copied_whole_and_once(self, destination: Destination) -> None:
        """Tables are named when their snapshot is whole; one that comes again afterwards is dropped."""
        sink = destination.sink()
        await sink.open()
        await sink.begin(SOURCE)
        first = Log().snapshot(ITEMS, [{"id": "1", "name": "a"}, {"id": "2", "name": None}])
        await sink.apply(first)
        held = await sink.load()
        assert held is not None
        assert (held.tables_copied, held.tables_owned, held.snapshot_done) == (
            ["public.items"],
            ["public.items"],
            False,
        )
        await sink.apply(Log().snapshot(OTHERS, [{"id": "1", "name": "b"}], last=True))
        held = await sink.load()
        assert held is not None
        assert set(held.tables_copied) == {"public.items", "public.others"}
        assert held.snapshot_done
        await sink.apply(first)
        expect(destination, {"id": "1", "name": "a"}, {"id": "2", "name": None})
        expect(destination, {"id": "1", "name": "b"}, of=OTHERS)
        await sink.close()

    async def test_a_snapshot_that_starts_over_replaces_what_is_ours(self, destination: Destination) -> None:
        """A new source identity copies again into tables that this pipeline owns; old rows are gone."""
        sink = await streaming(destination, [{"id": "1", "name": "a"}, {"id": "2", "name": "a"}])
        await sink.apply(Log().transaction(insert(ITEMS, id="3", name="a")))
        await sink.begin(SOURCE)
        held = await sink.load()
        assert held is not None
        assert (held.position, held.confirmed_through, held.tables_copied) == (Position(0, 0), 0, [])
        await sink.apply(Log().snapshot(ITEMS, [{"id": "2", "name": "b"}], last=True))
        expect(destination, {"id": "2", "name": "b"})
        await sink.close()

    async def test_a_table_is_copied_again_and_its_counter_is_durable_with_the_copy(
        self, destination: Destination
    ) -> None:
        """What is beside it stays; a crash before the copy's end leaves rows and counter as they were."""
        sink = await streaming(destination, [{"id": "1", "name": "a"}, {"id": "2", "name": "b"}])
        log = Log()
        await sink.apply(log.transaction(update(ITEMS, id="1", name="c"), insert(OTHERS, id="1", name="x")))
        copy = log.snapshot(ITEMS, [{"id": "3", "name": "d"}], last=True, resync=4, lsn=5000)
        await sink.apply(dataclasses.replace(copy, ends=False))
        await destination.crash(sink)
        sink = destination.sink()
        before = await sink.open()
        assert before is not None
        assert before.resynced == {}
        expect(destination, {"id": "1", "name": "c"}, {"id": "2", "name": "b"})
        assert await sink.apply(copy) is not None
        expect(destination, {"id": "3", "name": "d"})
        expect(destination, {"id": "1", "name": "x"}, of=OTHERS)
        await sink.close()
        after = await destination.sink().open()
        assert after is not None
        assert (after.resynced, after.snapshot_done, after.position) == ({ITEMS.table: 4}, True, copy.last)

    async def test_a_first_copy_that_a_crash_ended_is_done_again_and_stays_ours(self, destination: Destination) -> None:
        """What it wrote counts as nobody's; once it is whole, also in parts, a later copy may take its place."""
        rows = [{"id": "1", "name": "a"}, {"id": "2", "name": "a"}]
        whole = Log().snapshot(ITEMS, rows, last=True)
        rest = batch([Change(ITEMS, Op.INSERT, {"id": "3", "name": "a"})], 999, 3)
        parts = [
            dataclasses.replace(whole, ends=False, transactions=0, snapshot_ends=False),
            dataclasses.replace(
                whole, begins=False, items=(rest,), first=Position(999, 3), last=Position(999, 3), snapshot_ends=True
            ),
        ]
        sink = destination.sink()
        await sink.open()
        await sink.begin(SOURCE)
        await sink.apply(parts[0])
        await destination.crash(sink)
        again = destination.sink()
        await again.open()
        for part in parts:
            await again.apply(part)
        expect(destination, *rows, {"id": "3", "name": "a"})
        held = await again.load()
        assert held is not None
        assert destination.rows(ITEMS) is None or held.tables_owned == [ITEMS.table]
        await again.begin(SOURCE)
        await again.apply(Log().snapshot(ITEMS, [{"id": "2", "name": "b"}], last=True))
        expect(destination, {"id": "2", "name": "b"})
        await again.close()

    async def test_a_counter_is_forgotten_with_the_source_and_with_a_copy_that_nobody_asked_for(
        self, destination: Destination
    ) -> None:
        """A table that left the pipeline and came back counts from nothing, and so does a pipeline that starts over."""
        sink = await streaming(destination)
        await sink.apply(Log().snapshot(ITEMS, resync=4, lsn=5000))
        await sink.apply(Log().snapshot(OTHERS, resync=5, lsn=6000))
        await sink.apply(Log().snapshot(ITEMS, lsn=7000))
        held = await sink.load()
        assert held is not None
        assert held.resynced == {OTHERS.table: 5}
        await sink.begin(SOURCE)
        held = await sink.load()
        assert held is not None
        assert held.resynced == {}

    async def test_a_copy_in_chunks_goes_on_after_a_crash_and_drops_what_comes_again(
        self, destination: Destination
    ) -> None:
        """The cursor is durable with each chunk's rows; the table counts as copied when the last set says so."""
        sink = destination.sink()
        await sink.open()
        await sink.begin(SOURCE)
        log = Log()
        first = log.chunk(ITEMS, [{"id": "1", "name": "a"}, {"id": "9", "name": "b"}], index=0, upto="9")
        progress = await sink.apply(first)
        assert progress is not None
        assert (progress.chunk, progress.confirmed_through) == (1, first.commit_end_lsn)
        second = log.chunk(ITEMS, [{"id": "10", "name": "c"}], index=1, after="9", upto=None)
        await sink.apply(dataclasses.replace(second, ends=False, commit_end_lsn=0))
        await destination.crash(sink)
        sink = destination.sink()
        held = await sink.open()
        assert held is not None
        cursor = held.cursors[ITEMS.table]
        assert (cursor.chunks, cursor.last, cursor.rows, cursor.read) == (1, ["9"], 2, False)
        assert (held.tables_copied, held.unsettled) == ([], {ITEMS.table})
        again = await sink.apply(first)
        assert again is not None
        assert (again.rows, again.chunk) == (0, 1)
        await sink.apply(second)
        await sink.apply(log.settled(ITEMS, index=2, last=True))
        expect(
            destination, {"id": "1", "name": "a"}, {"id": "10", "name": "c"}, {"id": "9", "name": "b"}, by_number=True
        )
        await sink.close()
        held = await destination.sink().open()
        assert held is not None
        assert (held.tables_copied, held.unsettled, held.snapshot_done) == ([ITEMS.table], frozenset(), True)
        assert (held.cursors[ITEMS.table].chunks, held.cursors[ITEMS.table].rows) == (2, 3)

    @pytest.mark.parametrize("many", [0, 300])
    @pytest.mark.parametrize("over", [False, True])
    async def test_a_part_takes_the_place_of_what_matches_and_of_no_other_row(
        self, destination: Destination, over: bool, many: int
    ) -> None:
        """Without conditions nothing is deleted; the number is reached when it is settled, and other counters stay."""
        kept = [{"id": str(each), "name": "old"} for each in (1, 5, 6, 20)]
        sink = await streaming(destination, kept)
        log = Log()
        where = (Condition(column="id", comparison=Comparison.BETWEEN, values=("5", "10")),)
        new = [{"id": each, "name": "new"} for each in ("5", "9")]
        more = [{"id": str(1000 + each), "name": "new"} for each in range(many)]
        await sink.apply(log.part(ITEMS, [*new, *more], () if over else where))
        await sink.apply(log.transaction(update(ITEMS, id="20", name="streamed"), insert(ITEMS, id="9", name="again")))
        held = await sink.load()
        assert held is not None
        assert (held.backfilled(ITEMS.table), held.unsettled) == (0, {ITEMS.table})
        await sink.apply(log.as_part(log.settled(ITEMS, index=1, copy=2, last=True)))
        expect(
            destination,
            {"id": "1", "name": "old"},
            {"id": "5", "name": "new"},
            *([{"id": "6", "name": "old"}] if over or not destination.replaces else []),
            {"id": "9", "name": "again"},
            {"id": "20", "name": "streamed"},
            *more,
            by_number=True,
        )
        held = await sink.load()
        assert held is not None
        assert (held.backfilled(ITEMS.table), held.unsettled, held.resynced) == (7, frozenset(), {})
        await sink.apply(log.chunk(ITEMS, [], index=0, upto="10", copy=3))
        held = await sink.load()
        assert held is not None
        assert held.backfilled(ITEMS.table) == 7, "what was reached is forgotten while a later copy is on its way"

    async def test_a_chunk_replaces_its_range_and_no_other_row(self, destination: Destination) -> None:
        """Readers never see the table empty; a counter that was asked for is reached when the copy is settled."""
        rows = [{"id": str(each), "name": "old"} for each in (1, 5, 6, 20)]
        sink = await streaming(destination, rows)
        log = Log()
        await sink.apply(log.chunk(ITEMS, [{"id": "5", "name": "new"}], index=0, upto="10", copy=2, resync=3))
        stay = [] if destination.replaces else [{"id": each, "name": "old"} for each in ("1", "6")]
        expect(destination, {"id": "5", "name": "new"}, {"id": "20", "name": "old"}, *stay, by_number=True)
        await sink.apply(
            log.chunk(ITEMS, [{"id": "30", "name": "new"}], index=1, after="10", upto=None, copy=2, resync=3)
        )
        stay += [] if destination.replaces else [{"id": "20", "name": "old"}]
        expect(destination, {"id": "5", "name": "new"}, {"id": "30", "name": "new"}, *stay, by_number=True)
        held = await sink.load()
        assert held is not None
        assert held.resynced == {}
        await sink.apply(log.settled(ITEMS, index=2, copy=2, resync=3))
        held = await sink.load()
        assert held is not None
        assert held.resynced == {ITEMS.table: 3}
        await sink.close()

    @pytest.mark.parametrize("many", [1, 300])
    async def test_the_stream_is_done_again_over_a_chunk(self, destination: Destination, many: int) -> None:
        """Rows are there already, or not yet, or not any more; a value that did not travel is the chunk's."""
        sink = destination.sink()
        await sink.open()
        await sink.begin(SOURCE)
        log = Log()
        copied = [{"id": str(each), "name": "chunk"} for each in range(1, many + 5)]
        await sink.apply(log.chunk(ITEMS, copied, index=0, upto="1000"))
        await sink.apply(
            log.transaction(
                *(insert(ITEMS, id=str(each), name="stream") for each in range(1, many + 1)),
                delete(ITEMS, id="777"),
                update(ITEMS, id="888", name=None, unchanged=["name"]),
                update(ITEMS, id=str(many + 1), name=None, unchanged=["name"]),
                insert(ITEMS, id=str(many + 2), name="gone"),
                delete(ITEMS, id=str(many + 2)),
                update(ITEMS, old={"id": "666"}, id=str(many + 3), name="moved"),
                insert(ITEMS, id="2000", name="ahead"),
            )
        )
        await sink.apply(log.chunk(ITEMS, [{"id": "2000", "name": "x"}], index=1, after="1000", upto=None))
        await sink.apply(log.settled(ITEMS, index=2))
        expect(
            destination,
            *({"id": str(each), "name": "stream"} for each in range(1, many + 1)),
            {"id": str(many + 1), "name": "chunk"},
            {"id": str(many + 3), "name": "moved"},
            {"id": str(many + 4), "name": "chunk"},
            {"id": "2000", "name": "x"},
            by_number=True,
        )
        await sink.close()

    async def test_closing_twice_is_no_error(self, destination: Destination) -> None:
        """Also before it was ever opened."""
        sink = destination.sink()
        await sink.close()
        await sink.open()
        await sink.close()
        await sink.close()
