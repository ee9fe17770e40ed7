"""With `consistency: key` rows go over several connections, and each change of a key is there once and never goes back."""

import asyncio
import random
from collections.abc import AsyncIterator, Collection, Sequence
from dataclasses import replace

import psycopg
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.dataplane.sinks.changes import SOURCE, Change, Emptied, Log, delete, insert, joined, table, update
from tests.dataplane.sinks.destinations import PostgresDestination, divide_always, send_singly

from contracts.codes import Code
from dataplane.batch import START, ChangeBatch, ChangeSet, Op, Position, TableSchema
from dataplane.checkpoint import Checkpoint
from dataplane.failures import RetryLater
from dataplane.sinks import lanes
from dataplane.sinks.lanes import Ahead
from dataplane.sinks.postgres import PostgresSink
from dataplane.sinks.postgres.lanes import Lanes

ITEMS = table("items", {"id": "integer", "name": "text"})
KEYS = [str(number) for number in range(1, 9)]


def lane_of(key: str, count: int = 3) -> int:
    """The lane of a key of ITEMS."""
    return int(lanes.lanes_of_keys([pa.array([key], pa.string())], count)[0])


APART = ("1", next(key for key in KEYS if lane_of(key) != lane_of("1")))
"""Two keys of different lanes."""


class History:
    """Random transactions over few keys. A row's `name` is a number that grows with every change of anything."""

    def __init__(self, seed: int, transactions: int, *, moves: bool = True) -> None:
        self._random = random.Random(seed)
        self._moves = moves
        self._log = Log()
        self.rows: dict[str, str] = {}
        self._number = 0
        self.changes = [self._log.transaction(*self._transaction()) for _ in range(transactions)]

    def _transaction(self) -> list[Change]:
        return [self._change() for _ in range(self._random.randint(1, 4))]

    def _change(self) -> Change:
        self._number += 1
        key, name = self._random.choice(KEYS), f"{self._number:05d}"
        if key not in self.rows:
            self.rows[key] = name
            return insert(ITEMS, id=key, name=name)
        what = self._random.random()
        free = [each for each in KEYS if each not in self.rows]
        if what < 0.2:
            del self.rows[key]
            return delete(ITEMS, id=key)
        if what < 0.23 and free and self._moves:
            del self.rows[key]
            self.rows[free[0]] = name
            return update(ITEMS, old={"id": key}, id=free[0], name=name)
        self.rows[key] = name
        return update(ITEMS, id=key, name=name)

    def sets(self, seed: int) -> list[ChangeSet]:
        """The same transactions, joined as a worker may join them."""
        cuts, start, made = random.Random(seed), 0, []
        while start < len(self.changes):
            end = start + cuts.randint(1, 4)
            made.append(joined(self.changes[start:end]))
            start = end
        return made


@given(st.integers(0, 10**6), st.integers(2, 8))
@settings(max_examples=100, deadline=None)
def test_a_set_is_divided_by_key_and_nothing_is_lost(seed: int, count: int) -> None:
    """Each key is in one part, in its order; all parts together are the set."""
    change = joined(History(seed, 8, moves=False).changes)
    parts = lanes.divide(change, count, ())
    if parts is None:
        return
    seen: dict[str, list[tuple[int, int]]] = {}
    for number, part in enumerate(parts):
        for key, position in _places(part):
            assert lane_of(key, count) == number
            seen.setdefault(key, []).append(position)
    whole: dict[str, list[tuple[int, int]]] = {}
    for key, position in _places(change):
        whole.setdefault(key, []).append(position)
    assert seen == whole


@given(st.integers(0, 10**6), st.sets(st.integers(0, 2)), st.integers(0, 30))
@settings(max_examples=100, deadline=None)
def test_what_a_lane_has_is_dropped_and_nothing_else(seed: int, ahead: set[int], upto: int) -> None:
    """However the stream is cut the second time: by the key's lane and the row's place."""
    history = History(seed, 8, moves=False)
    place = Position(1100 + 100 * (upto // 4), upto % 4)
    reached = Ahead(3, dict.fromkeys(ahead, place))
    left = [each for part in history.sets(seed) for each in _places(lanes.unseen(part, reached))]
    expected = [
        (key, position)
        for part in history.sets(seed)
        for key, position in _places(part)
        if lane_of(key) not in ahead or position > place
    ]
    assert left == expected


def _places(change: ChangeSet) -> list[tuple[str, tuple[int, int]]]:
    return [
        (key, (int(lsn), int(ordinal)))
        for item in change.items
        if isinstance(item, ChangeBatch)
        for key, lsn, ordinal in zip(item.rows.column(0).to_pylist(), item.commit_lsns, item.ordinals, strict=True)
    ]


def test_a_key_that_moves_to_another_lane_keeps_its_set_whole() -> None:
    """And one that stays in its lane does not."""
    there = next(key for key in KEYS[1:] if lane_of(key) == lane_of("1"))
    one, other = (insert(ITEMS, id=key, name="a") for key in (there, APART[1]))
    near = Log().transaction(other, update(ITEMS, old={"id": "1"}, id=there, name="b"))
    far = Log().transaction(one, update(ITEMS, old={"id": "1"}, id=APART[1], name="b"))
    assert lanes.divide(near, 3, ()) is not None
    assert lanes.divide(far, 3, ()) is None


def test_the_lane_of_a_key_never_changes() -> None:
    """It says who has a row after a crash, also to the next release; texts of any length, and sliced columns."""
    keys = ["1", "2", "42", "", "a" * 200, "ключ", "00000000-0000-4000-8000-000000000001"]
    assert lanes.lanes_of_keys([pa.array(keys)], 8).tolist() == PINNED
    assert lanes.lanes_of_keys([pa.array(["x", *keys]).slice(1)], 8).tolist() == PINNED
    assert lanes.lanes_of_keys([pa.array(keys, pa.large_string())], 8).tolist() == PINNED
    assert lanes.lanes_of_keys([pa.array(keys), pa.array(keys[::-1])], 8).tolist() == PINNED_PAIRS


PINNED = [5, 3, 7, 0, 6, 1, 7]
PINNED_PAIRS = [2, 7, 6, 0, 0, 2, 5]


def test_keys_are_spread_over_all_lanes() -> None:
    """Numbers in a row, as most keys are."""
    found = lanes.lanes_of_keys([pa.array([str(number) for number in range(8000)])], 8)
    assert all(800 < int((found == lane).sum()) < 1200 for lane in range(8))


@pytest.mark.parametrize(
    ("type_", "exact"),
    [
        ("bigint", True),
        ("character varying(20)", True),
        ("timestamp(3) with time zone", True),
        ("uuid", True),
        ("numeric(10,2)", False),
        ("citext", False),
        ("interval", False),
        ("timestamp with time zone[]", False),
    ],
)
def test_a_key_of_which_two_texts_may_be_equal_is_not_divided(type_: str, exact: bool) -> None:
    """`1.0` and `1.00` are one key at the destination, and must not part."""
    assert lanes.has_exact_key(table("t", {"id": type_})) is exact


# ---- At a destination ------------------------------------------------------------------------------------------------

LOGGED = """CREATE TABLE public.happened (at bigint GENERATED ALWAYS AS IDENTITY, id integer, name text);
    CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        INSERT INTO public.happened (id, name) VALUES (NEW.id, NEW.name); RETURN NEW; END $$;
    CREATE TRIGGER note AFTER INSERT OR UPDATE ON items FOR EACH ROW EXECUTE FUNCTION note()"""


@pytest.fixture
async def destination(database, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[PostgresDestination]:  # type: ignore[no-untyped-def]
    divide_always(monkeypatch)
    made = PostgresDestination(database, lanes=3)
    yield made
    await made.close()


async def begun(destination: PostgresDestination, of: TableSchema = ITEMS) -> PostgresSink:
    """A sink whose table is copied and known: its next set may be divided."""
    sink = destination.sink()
    await sink.open()
    await sink.begin(SOURCE)
    await sink.apply(Log().snapshot(of, last=True))
    return sink


async def deliver(sink: PostgresSink, changes: Sequence[ChangeSet]) -> None:
    for change in changes:
        await sink.apply(change)


class Crash:
    """Lets only the `survivors` commit their part of a divided set, and ends the session: the first set from the `at`th on
    of which they and others have parts."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at: int, survivors: Collection[int]) -> None:
        seen, whole = 0, Lanes.deliver

        async def delivering(
            self: Lanes, parts: Sequence[ChangeSet], after: Checkpoint, unsettled: Collection[str]
        ) -> None:
            nonlocal seen
            seen += 1
            kept = [part if lane in survivors else replace(part, items=()) for lane, part in enumerate(parts)]
            lost = any(part.items for lane, part in enumerate(parts) if lane not in survivors)
            some = any(part.items for part in kept)
            if seen < at or not lost or (survivors and not some):
                await whole(self, parts, after, unsettled)
                return
            if some:
                await whole(self, kept, after, unsettled)
            raise RetryLater(Code.SINK_UNREACHABLE, "crashed")

        monkeypatch.setattr(Lanes, "deliver", delivering)


async def test_a_crash_between_any_two_lanes_loses_and_doubles_nothing(
    destination: PostgresDestination, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if the next owner has another number of lanes, or none, and the stream comes cut in another way.

    Every value that a key ever had at the destination is younger than the one before.
    """
    ahead = 0
    for seed, survivors in enumerate(({0}, {1}, {2}, {0, 1}, {1, 2}, {0, 2}, set[int]())):
        destination.database.execute("DROP SCHEMA IF EXISTS pointsman CASCADE; DROP TABLE IF EXISTS items, happened")
        destination.database.execute("DROP FUNCTION IF EXISTS note CASCADE")
        send_singly(monkeypatch, 0 if seed % 2 else 100)
        history = History(seed, 24)
        sink = await begun(destination)
        destination.database.execute(LOGGED)
        with monkeypatch.context() as patch:
            Crash(patch, seed % 3 + 1, survivors)
            with pytest.raises(RetryLater):
                await deliver(sink, [history.changes[0], *history.sets(seed)])
        await sink.close()
        after = PostgresDestination(destination.database, lanes=seed % 3 + 1)
        again = after.sink()
        held = await again.open()
        assert held is not None
        ahead += held.ahead > held.position
        await deliver(again, history.sets(seed + 100))
        held = await again.load()
        await again.close()
        assert held is not None
        assert (held.position, held.ahead) == (history.changes[-1].last, START)
        assert {row["id"]: row["name"] for row in destination.rows(ITEMS)} == history.rows
        found = destination.database.execute("SELECT id::text, array_agg(name ORDER BY at) FROM happened GROUP BY id")
        assert found
        for _, names in found:
            assert names == sorted(set(names))
    assert ahead == 6


async def test_an_older_owner_writes_over_no_lane(destination: PostgresDestination) -> None:
    """The epoch that was raised holds for each of them, though their sessions were not ended."""
    sink = await begun(destination)
    log = Log()
    await sink.apply(log.transaction(*(insert(ITEMS, id=key, name="a") for key in KEYS)))
    await sink.apply(log.transaction(*(update(ITEMS, id=key, name="b") for key in KEYS)))
    before = destination.rows(ITEMS)
    destination.database.execute("UPDATE pointsman.checkpoints SET epoch = nextval('pointsman.epochs')")
    with pytest.raises(RetryLater) as caught:
        await sink.apply(log.transaction(*(update(ITEMS, id=key, name="c") for key in KEYS)))
    assert caught.value.code is Code.SINK_FENCED
    assert destination.rows(ITEMS) == before


async def test_whoever_locks_the_checkpoint_waits_for_every_lane(destination: PostgresDestination) -> None:
    """A claim, a repair and a replay of dead letters: while one lane still writes, the row is not to be had."""
    sink = await begun(destination)
    log = Log()
    await sink.apply(log.transaction(*(insert(ITEMS, id=key, name="a") for key in KEYS)))
    lock = "SELECT epoch FROM pointsman.checkpoints FOR UPDATE NOWAIT"
    waiting = (
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pointsman sink p' AND wait_event_type = 'Lock'"
    )
    with psycopg.connect(destination.database.conninfo) as other:
        other.execute("UPDATE items SET name = 'locked' WHERE id = %s", (int(APART[0]),))
        applying = asyncio.create_task(sink.apply(log.transaction(*(update(ITEMS, id=k, name="b") for k in KEYS))))
        while destination.database.execute(waiting) != [(1,)]:  # noqa: ASYNC110  # another process changes it
            await asyncio.sleep(0.01)
        with pytest.raises(psycopg.errors.LockNotAvailable):
            destination.database.execute(lock)
        other.rollback()
    await applying
    assert len(destination.database.execute(lock)) == 1
    assert {row["name"] for row in destination.rows(ITEMS)} == {"b"}


@pytest.mark.parametrize(
    "tie",
    [
        "CREATE UNIQUE INDEX ON items (name)",
        "ALTER TABLE items ADD CONSTRAINT other EXCLUDE (name WITH =)",
        "ALTER TABLE items ADD parent integer REFERENCES items DEFERRABLE",
        """DROP TABLE items; CREATE TABLE items (id integer PRIMARY KEY, name text) PARTITION BY RANGE (id);
            CREATE TABLE all_items PARTITION OF items DEFAULT; CREATE UNIQUE INDEX ON all_items (name)""",
    ],
)
async def test_rows_that_the_destination_ties_together_go_through_one_lane(
    destination: PostgresDestination, tie: str
) -> None:
    """Two keys exchange what is unique: in two lanes one of them would be refused."""
    sink = await begun(destination)
    destination.database.execute(tie)
    one, other = APART
    log = Log()
    await sink.apply(log.transaction(insert(ITEMS, id=one, name="a"), insert(ITEMS, id=other, name="b")))
    for round_ in range(3):
        names = ("a", "b") if round_ % 2 else ("b", "a")
        await sink.apply(
            log.transaction(
                update(ITEMS, id=one, name="between"),
                update(ITEMS, id=other, name=names[1]),
                update(ITEMS, id=one, name=names[0]),
            )
        )
    assert {row["id"]: row["name"] for row in destination.rows(ITEMS)} == {one: "b", other: "a"}
    assert destination.database.execute("SELECT count(*) FROM pointsman.lanes") == [(0,)]


async def test_a_truncate_waits_for_all_lanes(destination: PostgresDestination) -> None:
    """And what comes behind it waits for it."""
    sink = await begun(destination)
    log = Log()
    await sink.apply(log.transaction(*(insert(ITEMS, id=key, name="a") for key in KEYS)))
    await sink.apply(
        joined(
            [
                log.transaction(*(update(ITEMS, id=key, name="b") for key in KEYS)),
                log.transaction(Emptied(ITEMS), *(insert(ITEMS, id=key, name="c") for key in APART)),
            ]
        )
    )
    assert [(row["id"], row["name"]) for row in destination.rows(ITEMS)] == [(key, "c") for key in sorted(APART)]


async def test_a_source_that_starts_over_forgets_every_lane(
    destination: PostgresDestination, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Positions of another source mean nothing: none of its rows may be taken for one that is there."""
    sink = await begun(destination)
    first = Log(lsn=5000).transaction(*(insert(ITEMS, id=key, name="a") for key in KEYS))
    second = Log(lsn=6000).transaction(*(update(ITEMS, id=key, name="b") for key in KEYS))
    await sink.apply(first)
    with monkeypatch.context() as patch:
        Crash(patch, 1, {0, 1})
        with pytest.raises(RetryLater):
            await sink.apply(second)
    again = destination.sink()
    held = await again.open()
    assert held is not None
    assert held.ahead == second.last
    await again.begin(SOURCE)
    await again.apply(Log().snapshot(ITEMS, last=True))
    await again.apply(Log().transaction(*(insert(ITEMS, id=key, name="new") for key in KEYS)))
    assert {row["name"] for row in destination.rows(ITEMS)} == {"new"}


async def test_a_pipeline_without_lanes_keeps_one_connection(destination: PostgresDestination) -> None:
    """So does one with lanes until a set is large enough."""
    count = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pointsman sink p'"
    sink = await begun(destination)
    assert destination.database.execute(count) == [(1,)]
    log = Log()
    for name in "ab":
        op = Op.INSERT if name == "a" else Op.UPDATE
        await sink.apply(log.transaction(*(Change(ITEMS, op, {"id": key, "name": name}) for key in KEYS)))
    assert destination.database.execute(count) == [(3,)]
