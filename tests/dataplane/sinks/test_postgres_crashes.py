"""Whatever is cut off between any two steps, and whoever writes at the same time, each change is there once."""

import asyncio
import contextlib
import resource
from collections.abc import AsyncIterator, Callable

import psycopg
import pytest
from tests.dataplane.sinks.changes import SOURCE, Emptied, Log, Row, delete, insert, table, update
from tests.dataplane.sinks.destinations import PostgresDestination, send_singly

from contracts.codes import Code
from dataplane.batch import ChangeSet, Position
from dataplane.failures import Failure, RetryLater
from dataplane.sinks.ownership import Ownership
from dataplane.sinks.postgres import PostgresSink
from dataplane.sinks.postgres.opening import application_name
from dataplane.sinks.postgres.session import Session

ITEMS = table("items", {"id": "integer", "name": "text"})
COPIED: list[Row] = [{"id": "1", "name": "a"}, {"id": "2", "name": "b"}]


@pytest.fixture
async def destination(database) -> AsyncIterator[PostgresDestination]:  # type: ignore[no-untyped-def]
    made = PostgresDestination(database)
    yield made
    await made.close()


def history() -> list[ChangeSet]:
    """A snapshot, small transactions, one in parts, a truncate between: as a source gives them again and again."""
    log = Log()
    return [
        log.snapshot(ITEMS, COPIED, last=True),
        log.transaction(update(ITEMS, id="1", name="c"), insert(ITEMS, id="3", name="d")),
        *log.parts(
            [[insert(ITEMS, id="4", name="e"), delete(ITEMS, id="2")], [update(ITEMS, old={"id": "3"}, id="2")]]
        ),
        log.transaction(Emptied(ITEMS), insert(ITEMS, id="1", name="f")),
        log.transaction(update(ITEMS, id="1", name="g"), insert(ITEMS, id="5", name="h")),
    ]


AFTER: dict[int, list[tuple[str, str | None]]] = {
    0: [],
    999: [("1", "a"), ("2", "b")],
    1100: [("1", "c"), ("2", "b"), ("3", "d")],
    1200: [("1", "c"), ("2", None), ("4", "e")],
    1300: [("1", "f")],
    1400: [("1", "g"), ("5", "h")],
}
"""The rows that belong to each position."""


class Cut:
    """Cuts the connection at the step of a given number: before it reaches the server, or after it was carried out."""

    def __init__(self, at: int, *, after: bool) -> None:
        self.left = at
        self._after = after

    def wrap(self, step: Callable[..., object]) -> Callable[..., object]:
        async def wrapped(session: Session, *arguments: object) -> object:
            self.left -= 1
            if self.left == 0 and not self._after:
                session.connection.pgconn.finish()
            result = await step(session, *arguments)  # type: ignore[misc]
            if self.left == 0:
                session.connection.pgconn.finish()
                raise psycopg.OperationalError("the answer was lost")
            return result

        return wrapped


def check(others: psycopg.Connection) -> list[tuple[str, str | None]]:
    """The rows that others see are exactly those of the position that they see. Return them."""
    (tables,) = others.execute("SELECT to_regclass('pointsman.checkpoints'), to_regclass('public.items')").fetchall()
    found = others.execute("SELECT position_lsn FROM pointsman.checkpoints").fetchall() if tables[0] else []
    rows = others.execute("SELECT id::text, name FROM public.items ORDER BY id").fetchall() if tables[1] else []
    assert rows == AFTER[found[0][0] if found else 0]
    return rows


async def deliver(sink: PostgresSink) -> None:
    """One session: from whatever is durable to the end of the history."""
    held = await sink.open()
    if held is None:
        await sink.begin(SOURCE)
    for change in history():
        await sink.apply(change)
    await sink.advance(9000)
    await sink.close()


@pytest.mark.parametrize(("singly", "after"), [(0, True), (100, False)])
async def test_a_cut_between_any_two_steps_loses_and_doubles_nothing(
    destination: PostgresDestination, monkeypatch: pytest.MonkeyPatch, after: bool, singly: int
) -> None:
    """After each cut rows and position belong together, and the next owner brings all to the same end."""
    send_singly(monkeypatch, singly)
    steps = {name: getattr(Session, name) for name in ("exchange", "copy", "execute")}
    at = 0
    with psycopg.connect(destination.database.conninfo, autocommit=True) as others:
        others.execute("SET client_min_messages = warning")
        while True:
            at += 1
            others.execute("DROP SCHEMA IF EXISTS pointsman CASCADE")
            others.execute("DROP TABLE IF EXISTS public.items")
            cut = Cut(at, after=after)
            with monkeypatch.context() as patch:
                for name, step in steps.items():
                    patch.setattr(Session, name, cut.wrap(step))
                sink = destination.sink()
                with contextlib.suppress(Failure):
                    await deliver(sink)
            check(others)
            await sink.close()
            await deliver(destination.sink())
            assert check(others) == AFTER[1400]
            if cut.left > 0:
                break
    assert at > 20


async def test_a_set_that_is_cancelled_leaves_nothing(destination: PostgresDestination) -> None:
    """Whenever the worker is stopped: the transaction is gone, and the next session starts from the checkpoint."""
    sink = destination.sink()
    await sink.open()
    await sink.begin(SOURCE)
    await sink.apply(Log().snapshot(ITEMS, last=True))
    destination.database.execute(
        "CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS "
        "'BEGIN PERFORM pg_sleep(30); RETURN NEW; END'; CREATE TRIGGER wait BEFORE INSERT ON items "
        "FOR EACH ROW EXECUTE FUNCTION wait()"
    )
    change = Log().transaction(insert(ITEMS, id="1"))
    applying = asyncio.create_task(sink.apply(change))
    busy = (
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pointsman sink p' AND wait_event = 'PgSleep'"
    )
    while destination.database.execute(busy) != [(1,)]:  # noqa: ASYNC110  # another process changes it
        await asyncio.sleep(0.01)
    applying.cancel()
    with pytest.raises(asyncio.CancelledError):
        await applying
    with pytest.raises(RetryLater):
        await sink.apply(change)
    await sink.close()
    destination.database.execute("DROP TRIGGER wait ON items")
    assert destination.rows(ITEMS) == []
    again = destination.sink()
    await again.open()
    await again.apply(change)
    assert [row["id"] for row in destination.rows(ITEMS)] == ["1"]


async def test_a_frozen_owner_that_wakes_up_can_do_nothing(destination: PostgresDestination) -> None:
    """Its session was ended by the new owner; a connection that outlived this finds the epoch raised."""
    older = destination.sink(owner="node-1")
    await older.open()
    await older.begin(SOURCE)
    await older.apply(Log().snapshot(ITEMS, last=True))
    # Another role's session could not be ended by the new owner: the fence alone must hold.
    destination.database.execute("UPDATE pointsman.checkpoints SET epoch = nextval('pointsman.epochs')")
    for attempt in (
        older.apply(Log().transaction(insert(ITEMS, id="1"))),
        older.apply(Log().transaction(insert(ITEMS, id="1"))),
    ):
        with pytest.raises(RetryLater) as caught:
            await attempt
        assert caught.value.code is Code.SINK_FENCED
    await older.open()
    destination.database.execute("UPDATE pointsman.checkpoints SET epoch = nextval('pointsman.epochs')")
    with pytest.raises(RetryLater) as caught:
        await older.advance(10**9)
    assert caught.value.code is Code.SINK_FENCED
    assert destination.rows(ITEMS) == []
    assert destination.database.execute("SELECT confirmed_through, position_lsn FROM pointsman.checkpoints") == [
        (0, 999)
    ]


async def test_owners_that_claim_at_once_get_epochs_of_their_own(destination: PostgresDestination) -> None:
    """Also on a destination where nothing is set up yet; only the last of them can write."""
    sinks = [destination.sink(owner=f"node-{number}") for number in range(4)]
    opened = await asyncio.gather(*(sink.open() for sink in sinks), return_exceptions=True)
    assert all(result is None or isinstance(result, RetryLater) for result in opened)
    wrote = 0
    for sink, result in zip(sinks, opened, strict=True):
        if result is None:
            with contextlib.suppress(RetryLater):
                await sink.begin(SOURCE)
                wrote += 1
    assert wrote == 1


async def test_an_owner_that_was_replaced_does_not_claim_back(destination: PostgresDestination) -> None:
    """Its process held the pipeline before: its next session is refused, and the new owner's goes on undisturbed."""
    replaced, new = Ownership.of("node-1"), Ownership.of("node-2")
    older = destination.sink(owner=replaced)
    await older.open()
    await older.begin(SOURCE)
    await older.open()  # nobody claimed it since
    newer = destination.sink(owner=new)
    await newer.open()
    for _ in range(2):
        with pytest.raises(RetryLater) as caught:
            await destination.sink(owner=replaced).open()
        assert caught.value.code is Code.SINK_FENCED
    await newer.apply(Log().snapshot(ITEMS, COPIED, last=True))
    await newer.forget()
    with pytest.raises(RetryLater) as caught:
        await older.open()
    assert caught.value.code is Code.SINK_FENCED, "removed by its new owner, and not to be begun again"
    await newer.open()


@pytest.mark.parametrize(("node", "claims"), [("node-1", True), ("node-2", False)])
async def test_without_the_leaf_a_new_process_claims_what_its_node_held(
    destination: PostgresDestination, node: str, claims: bool
) -> None:
    """A node restarts its own worker with nobody to ask; one that only believes that it holds the lease waits."""
    first = destination.sink(owner="node-1")
    await first.open()
    await first.begin(SOURCE)
    again = destination.sink(owner=Ownership.of(node, leased=False))
    if claims:
        await again.open()
        return
    with pytest.raises(RetryLater) as caught:
        await again.open()
    assert caught.value.code is Code.SINK_FENCED
    await first.advance(5000)
    await destination.sink(owner=Ownership.of(node)).open()


async def test_of_two_that_claim_at_once_the_one_without_a_lease_yields(
    destination: PostgresDestination, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was read is compared with what is there when the row is locked."""
    first = destination.sink(owner="node-1")
    await first.open()
    read = Ownership.check

    def meanwhile(self: Ownership, held: object) -> None:
        read(self, held)  # type: ignore[arg-type]
        destination.database.execute("UPDATE pointsman.checkpoints SET epoch = nextval('pointsman.epochs')")

    monkeypatch.setattr(Ownership, "check", meanwhile)
    with pytest.raises(RetryLater) as caught:
        await destination.sink(owner=Ownership.of("node-1", leased=False)).open()
    assert caught.value.code is Code.SINK_FENCED


async def test_pipelines_of_one_destination_do_not_meet(destination: PostgresDestination) -> None:
    """Each has its own checkpoint and its own fence."""
    one, other = destination.sink(pipeline_id="one"), destination.sink(pipeline_id="other")
    for sink, of in ((one, ITEMS), (other, table("others", {"id": "integer"}))):
        await sink.open()
        await sink.begin(SOURCE)
        await sink.apply(Log().snapshot(of, last=True))
    await one.apply(Log().transaction(insert(ITEMS, id="1")))
    held = await other.load()
    assert held is not None
    assert held.position == Position(999, 0)
    assert held.tables_owned == ["public.others"]


def test_a_long_pipeline_id_keeps_an_application_name_of_its_own() -> None:
    """The server cuts names at 63 bytes, and two pipelines must not end each other's sessions."""
    one, other = application_name("x" * 100 + "1"), application_name("x" * 100 + "2")
    assert one != other
    assert max(map(len, (one, other))) <= 63


async def test_a_transaction_of_200_000_rows_passes_in_bounded_memory(destination: PostgresDestination) -> None:
    """It is written set by set inside one transaction; nothing of it is kept here, and nobody sees a part."""
    sink = destination.sink()
    await sink.open()
    await sink.begin(SOURCE)
    await sink.apply(Log().snapshot(ITEMS, last=True))
    log = Log()
    rows_of_a_set = 10_000
    shapes = log.parts([[insert(ITEMS, id="0")] for _ in range(20)])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    progress = None
    for number, shape in enumerate(shapes):
        start = number * rows_of_a_set
        made = Log(lsn=shape.first.lsn - 100).transaction(
            *(insert(ITEMS, id=str(start + row), name="x" * 200) for row in range(rows_of_a_set))
        )
        part = ChangeSet(
            items=made.items,
            first=Position(shape.first.lsn, start),
            last=Position(shape.first.lsn, start + rows_of_a_set - 1),
            begins=shape.begins,
            ends=shape.ends,
            commit_end_lsn=shape.commit_end_lsn,
            commit_time=shape.commit_time,
            transactions=shape.transactions,
        )
        if number == len(shapes) - 1:
            assert destination.database.execute("SELECT count(*) FROM items") == [(0,)]
        progress = await sink.apply(part)
    assert progress is not None
    assert progress.rows == 200_000
    assert destination.database.execute("SELECT count(*), count(DISTINCT id) FROM items") == [(200_000, 200_000)]
    grown_kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown_kilobytes < 100 << 10


async def test_a_checkpoint_of_a_release_before_resync_is_gone_on_with(destination: PostgresDestination) -> None:
    """The table of checkpoints gets what it lacks, and keeps what it holds."""
    sink = destination.sink()
    await sink.open()
    await sink.begin(SOURCE)
    for change in history():
        await sink.apply(change)
    held = await sink.load()
    await sink.close()
    destination.database.execute("ALTER TABLE pointsman.checkpoints DROP COLUMN resynced, DROP COLUMN cursors")
    again = destination.sink()
    found = await again.open()
    assert found is not None
    assert held is not None
    assert (found.position, found.tables_copied, found.resynced) == (held.position, held.tables_copied, {})
    await again.apply(Log().snapshot(ITEMS, COPIED, resync=1, lsn=5000))
    assert destination.database.execute("SELECT resynced FROM pointsman.checkpoints") == [({"public.items": 1},)]
