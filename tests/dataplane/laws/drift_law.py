"""The law of changed shapes as tests: every sink that keeps rows obeys `sink.on_schema_change`."""

import pytest
from tests.dataplane.laws.letter_law import RefusingDestination
from tests.dataplane.laws.sink_law import ITEMS
from tests.dataplane.sinks.changes import SOURCE, Log, insert, joined, table, update

from contracts.codes import Code
from contracts.delivery import OnSchemaChange
from contracts.v2 import PipelineSink
from dataplane.failures import Permanent
from dataplane.sinks.port import Sink

WIDER = table("items", {"id": "integer", "name": "text", "more": "text"})
WIDEST = table("items", {"id": "integer", "name": "text", "more": "text", "most": "text"})


def settings(policy: OnSchemaChange, resumes: int = 0) -> PipelineSink:
    return PipelineSink(connection="warehouse", on_schema_change=policy, resumes=resumes)


async def streaming(destination: RefusingDestination, policy: OnSchemaChange) -> Sink:
    """A sink whose table is copied, with one row."""
    sink = destination.with_settings(settings(policy))
    await sink.open()
    await sink.begin(SOURCE)
    await sink.apply(Log().snapshot(ITEMS, [{"id": "1", "name": "a"}], last=True))
    return sink


async def resumed(destination: RefusingDestination, policy: OnSchemaChange, resumes: int) -> Sink:
    """The next session, after a person has let the pipeline go on so often."""
    sink = destination.with_settings(settings(policy, resumes))
    await sink.open()
    return sink


class DriftLaw:
    """What every sink does when a table's shape changes."""

    async def test_a_new_column_is_carried_unless_somebody_wants_something_else(
        self, destination: RefusingDestination
    ) -> None:
        """Rows that were there have NULL in it."""
        sink = await streaming(destination, OnSchemaChange.PROPAGATE)
        await sink.apply(Log().transaction(insert(WIDER, id="2", name="b", more="x")))
        rows = destination.rows(WIDER) or []
        assert [(row["id"], row.get("more")) for row in rows] == [("1", None), ("2", "x")]
        assert sink.gauges.columns_ignored == 0
        await sink.close()

    async def test_ignored_columns_are_left_out_and_counted(self, destination: RefusingDestination) -> None:
        """Everything else of the row arrives, also of an update that did not send a value, in this session and the next."""
        sink = await streaming(destination, OnSchemaChange.IGNORE)
        log = Log()
        await sink.apply(
            log.transaction(
                insert(WIDER, id="2", name="b", more="x"), update(WIDER, id="1", more="y", unchanged=["name"])
            )
        )
        assert destination.rows(ITEMS) == [{"id": "1", "name": "a"}, {"id": "2", "name": "b"}]
        assert sink.gauges.columns_ignored == 1
        await sink.close()
        sink = await resumed(destination, OnSchemaChange.IGNORE, 0)
        await sink.apply(log.transaction(update(WIDEST, id="1", name="c", more="y", most="z")))
        assert destination.rows(ITEMS) == [{"id": "1", "name": "c"}, {"id": "2", "name": "b"}]
        assert sink.gauges.columns_ignored == 2
        await sink.close()

    async def test_a_pipeline_that_pauses_stops_before_the_first_row_of_a_new_shape(
        self, destination: RefusingDestination
    ) -> None:
        """Whole transactions before it are durable, nothing of it and after it is; table and column are named."""
        sink = await streaming(destination, OnSchemaChange.PAUSE)
        log = Log()
        before = log.transaction(insert(ITEMS, id="2", name="b"))
        mixed = log.transaction(insert(ITEMS, id="3", name="c"), insert(WIDER, id="4", name="d", more="x"))
        after = log.transaction(insert(WIDER, id="5", name="e"))
        with pytest.raises(Permanent) as caught:
            await sink.apply(joined([before, mixed, after]))
        failure = caught.value
        assert (failure.code, failure.table, failure.column) == (Code.SCHEMA_CHANGED, "public.items", "more")
        assert [row["id"] for row in destination.rows(ITEMS) or []] == ["1", "2"]
        await sink.close()
        held = await destination.with_settings(settings(OnSchemaChange.PAUSE)).open()
        assert held is not None
        assert held.position == before.last
        assert held.confirmed_through < mixed.commit_end_lsn

    async def test_a_restart_accepts_nothing_and_a_resume_accepts_what_was_seen(
        self, destination: RefusingDestination
    ) -> None:
        """What the person saw is taken; the next change stops again, and so does another one than that which was seen."""
        sink = await streaming(destination, OnSchemaChange.PAUSE)
        log = Log()
        change = log.transaction(insert(WIDER, id="2", name="b", more="x"))
        for _ in range(2):
            with pytest.raises(Permanent):
                await sink.apply(change)
            await sink.close()
            sink = await resumed(destination, OnSchemaChange.PAUSE, 0)
        await sink.close()
        sink = await resumed(destination, OnSchemaChange.PAUSE, 1)
        await sink.apply(change)
        assert [(row["id"], row.get("more")) for row in destination.rows(WIDER) or []] == [("1", None), ("2", "x")]
        widest = log.transaction(insert(WIDEST, id="3", name="c", most="y"))
        with pytest.raises(Permanent) as caught:
            await sink.apply(widest)
        assert caught.value.column == "most"
        await sink.close()
        sink = await resumed(destination, OnSchemaChange.PAUSE, 2)
        narrower = log.transaction(insert(ITEMS, id="3", name="c"))
        with pytest.raises(Permanent) as caught:
            await sink.apply(narrower)
        assert (caught.value.code, caught.value.column) == (Code.SCHEMA_CHANGED, "more")
        await sink.close()

    async def test_a_large_transaction_in_which_a_shape_changes_is_undone_as_a_whole(
        self, destination: RefusingDestination
    ) -> None:
        """Its earlier sets go with it; resumed, all of it comes again."""
        sink = await streaming(destination, OnSchemaChange.PAUSE)
        parts = Log().parts([[insert(ITEMS, id="2", name="b")], [insert(WIDER, id="3", name="c", more="x")]])
        await sink.apply(parts[0])
        with pytest.raises(Permanent):
            await sink.apply(parts[1])
        assert [row["id"] for row in destination.rows(ITEMS) or []] == ["1"]
        await sink.close()
        sink = await resumed(destination, OnSchemaChange.PAUSE, 1)
        for part in parts:
            await sink.apply(part)
        assert [row["id"] for row in destination.rows(WIDER) or []] == ["1", "2", "3"]
        await sink.close()
