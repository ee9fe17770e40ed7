"""The law of dead letters as tests: every sink that keeps rows is held to them.

A member's destination can be told to refuse the rows of a table whose `name` is a given one, and shows the letters.
"""

from typing import NamedTuple, Protocol

import pytest
from tests.dataplane.laws.sink_law import ITEMS, OTHERS, Destination
from tests.dataplane.sinks.changes import SOURCE, Emptied, Log, Row, delete, insert, joined, update

from contracts.codes import Code
from contracts.delivery import OnRefused
from contracts.v2 import PipelineSink
from dataplane.batch import TableSchema
from dataplane.failures import Permanent
from dataplane.sinks.port import Sink

SETTINGS = PipelineSink(connection="warehouse", on_refused=OnRefused.DEAD_LETTER, dead_letters_max=5)
STOPS = PipelineSink(connection="warehouse")
POISON = "poison"


class Lies(NamedTuple):
    """A letter as a test looks at it."""

    op: str
    key: str | None
    code: Code


class RefusingDestination(Destination, Protocol):
    """A destination that does not take every row."""

    def refuse(self, of: TableSchema, name: str | None) -> None:
        """From now on rows with this `name` are refused; None takes all again."""
        ...

    def with_settings(self, settings: PipelineSink) -> Sink:
        """A new owner's sink of the same pipeline."""
        ...

    def letters(self) -> list[Lies]:
        """The pipeline's letters, in the order in which they must be applied."""
        ...


async def streaming(
    destination: RefusingDestination, rows: list[Row] | None = None, settings: PipelineSink = SETTINGS
) -> Sink:
    """A sink whose tables are copied; ITEMS refuses poison from then on."""
    sink = destination.with_settings(settings)
    await sink.open()
    await sink.begin(SOURCE)
    await sink.apply(Log().snapshot(ITEMS, rows or []))
    await sink.apply(Log().snapshot(OTHERS, last=True))
    destination.refuse(ITEMS, POISON)
    return sink


def names(destination: RefusingDestination, of: TableSchema = ITEMS) -> dict[str | None, str | None]:
    return {row["id"]: row["name"] for row in destination.rows(of) or ()}


REFUSED, BEHIND = Code.SINK_CONSTRAINT, Code.BEHIND_DEAD_LETTER


class LetterLaw:
    """What every sink does with a row that its destination refuses."""

    whole = True
    """A set is applied as a whole or not at all; a member that says False promises this for each key only."""

    async def test_a_refused_row_lies_down_and_the_rest_of_its_transaction_is_visible(
        self, destination: RefusingDestination
    ) -> None:
        """Other rows, other tables and the position arrive as if the row had not been there."""
        sink = await streaming(destination)
        change = Log().transaction(
            insert(ITEMS, id="1", name="a"),
            insert(ITEMS, id="2", name=POISON),
            insert(ITEMS, id="3", name="c"),
            insert(OTHERS, id="2", name=POISON),
        )
        progress = await sink.apply(change)
        assert progress is not None
        assert progress.position == change.last
        assert names(destination) == {"1": "a", "3": "c"}
        assert names(destination, OTHERS) == {"2": POISON}
        assert destination.letters() == [Lies("insert", "2", REFUSED)]
        assert (sink.gauges.dead_letters, sink.gauges.dead_letters_total) == (1, 1)
        await sink.close()

    async def test_later_changes_of_a_refused_key_wait_behind_it_in_order(
        self, destination: RefusingDestination
    ) -> None:
        """In the same set, in a later one, and after another owner has taken over; other keys go on."""
        sink = await streaming(destination, [{"id": "1", "name": "a"}, {"id": "2", "name": "b"}])
        log = Log()
        await sink.apply(
            log.transaction(
                update(ITEMS, id="1", name=POISON), update(ITEMS, id="2", name="c"), update(ITEMS, id="1", name="d")
            )
        )
        # Merging may have made one change of two, and nothing of a poison that never was anyone's last word.
        if not destination.letters():
            assert names(destination) == {"1": "d", "2": "c"}
            await sink.apply(log.transaction(update(ITEMS, id="1", name=POISON)))
            await sink.apply(log.transaction(update(ITEMS, id="1", name="d")))
        assert destination.letters() == [Lies("update", "1", REFUSED), Lies("update", "1", BEHIND)]
        await sink.close()
        sink = destination.with_settings(SETTINGS)
        await sink.open()
        assert sink.gauges.dead_letters == 2
        await sink.apply(log.transaction(update(ITEMS, id="2", name="e"), delete(ITEMS, id="1")))
        assert destination.letters()[2:] == [Lies("delete", "1", BEHIND)]
        assert names(destination)["2"] == "e"
        assert "1" in names(destination)
        await sink.close()

    async def test_a_key_that_moves_parks_both_its_names(self, destination: RefusingDestination) -> None:
        """Changes of the old key and of the new one wait, whichever of them has the letter."""
        sink = await streaming(destination, [{"id": each, "name": "a"} for each in "123"])
        log = Log()
        await sink.apply(log.transaction(update(ITEMS, id="1", name=POISON)))
        await sink.apply(log.transaction(update(ITEMS, old={"id": "1"}, id="7", name="b")))
        await sink.apply(log.transaction(update(ITEMS, id="7", name="c"), insert(ITEMS, id="1", name="new")))
        await sink.apply(log.transaction(update(ITEMS, id="2", name="c"), update(ITEMS, id="3", name="c")))
        assert names(destination) == {"1": "a", "2": "c", "3": "c"}
        assert [(each.op, each.key) for each in destination.letters()] == [
            ("update", "1"),
            ("update", "7"),
            ("update", "7"),
            ("insert", "1"),
        ]
        await sink.close()

    async def test_letters_are_kept_in_order_by_a_sink_that_stops_at_refusals(
        self, destination: RefusingDestination
    ) -> None:
        """What waits behind a letter goes on waiting after the policy was changed back; a new refusal stops."""
        sink = await streaming(destination, [{"id": "1", "name": "a"}])
        log = Log()
        await sink.apply(log.transaction(update(ITEMS, id="1", name=POISON)))
        await sink.close()
        sink = destination.with_settings(STOPS)
        await sink.open()
        await sink.apply(log.transaction(update(ITEMS, id="1", name="b"), insert(ITEMS, id="2", name="b")))
        assert names(destination) == {"1": "a", "2": "b"}
        assert [each.code for each in destination.letters()] == [REFUSED, BEHIND]
        with pytest.raises(Permanent) as caught:
            await sink.apply(log.transaction(update(ITEMS, id="2", name=POISON)))
        assert caught.value.code is REFUSED
        assert len(destination.letters()) == 2
        await sink.close()

    async def test_a_crash_before_the_end_leaves_no_letter_and_what_comes_again_makes_none_twice(
        self, destination: RefusingDestination
    ) -> None:
        """Letters are as exactly once as rows are."""
        sink = await streaming(destination)
        parts = Log().parts(
            [[insert(ITEMS, id="1", name=POISON)], [insert(ITEMS, id="2", name=POISON), insert(ITEMS, id="3")]]
        )
        await sink.apply(parts[0])
        await destination.crash(sink)
        sink = destination.with_settings(SETTINGS)
        await sink.open()
        assert destination.letters() == []
        for _ in range(2):
            for each in parts:
                await sink.apply(each)
        assert destination.letters() == [Lies("insert", "1", REFUSED), Lies("insert", "2", REFUSED)]
        assert sink.gauges.dead_letters == 2
        assert names(destination) == {"3": None}
        await sink.close()

    async def test_an_emptied_table_has_no_letters(self, destination: RefusingDestination) -> None:
        """After a truncate, and when the table is copied again, its keys begin anew; other tables' letters stay."""
        sink = await streaming(destination, [{"id": "1", "name": "a"}])
        destination.refuse(OTHERS, POISON)
        log = Log()
        await sink.apply(log.transaction(insert(OTHERS, id="1", name=POISON), insert(ITEMS, id="2", name=POISON)))
        await sink.apply(
            log.transaction(insert(ITEMS, id="2", name="b"), Emptied(ITEMS), insert(ITEMS, id="2", name="c"))
        )
        assert names(destination) == {"2": "c"}
        assert destination.letters() == [Lies("insert", "1", REFUSED)]
        await sink.apply(Log().snapshot(OTHERS, [{"id": "1", "name": "b"}], last=True, resync=1, lsn=9000))
        assert destination.letters() == []
        assert names(destination, OTHERS) == {"1": "b"}
        await sink.look_again()
        assert sink.gauges.dead_letters == 0
        await sink.close()

    async def test_more_letters_than_allowed_stop_the_pipeline_and_leave_nothing(
        self, destination: RefusingDestination
    ) -> None:
        """DEAD_LETTERS_FULL: the set that would have made one too many is undone as a whole."""
        sink = await streaming(destination)
        log = Log()
        await sink.apply(log.transaction(*(insert(ITEMS, id=str(each), name=POISON) for each in range(4))))
        with pytest.raises(Permanent) as caught:
            await sink.apply(
                log.transaction(
                    insert(ITEMS, id="9", name="x"), *(insert(ITEMS, id=str(each), name=POISON) for each in (5, 6))
                )
            )
        assert (caught.value.code, caught.value.table) == (Code.DEAD_LETTERS_FULL, "public.items")
        assert len(destination.letters()) == 4
        assert names(destination) == {} or (not self.whole and names(destination) == {"9": "x"})
        await sink.close()

    async def test_a_removed_pipeline_leaves_no_letters(self, destination: RefusingDestination) -> None:
        """A pipeline of the same name begins without them."""
        sink = await streaming(destination)
        await sink.apply(Log().transaction(insert(ITEMS, id="1", name=POISON)))
        await sink.forget()
        assert destination.letters() == []
        await sink.close()

    async def test_rows_of_a_joined_set_are_refused_one_by_one(self, destination: RefusingDestination) -> None:
        """Several transactions in one set, several poisons among them: each good row arrives, each bad one lies down."""
        sink = await streaming(destination)
        log = Log()
        sets = [
            log.transaction(
                *(
                    insert(ITEMS, id=f"{at}{n}", name=POISON if (at, n) in ((1, 0), (1, 1), (3, 4)) else "ok")
                    for n in range(5)
                )
            )
            for at in range(1, 5)
        ]
        await sink.apply(joined(sets))
        keys = [each.key for each in destination.letters()]
        assert (keys if self.whole else sorted(map(str, keys))) == ["10", "11", "34"]
        assert len(names(destination)) == 17
        await sink.close()
