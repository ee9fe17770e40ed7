"""A part of a table copied again and a copy that is paused, through the command line, with kills and writes meanwhile."""

import threading
from collections.abc import Callable, Iterator

import psycopg
import pytest
from tests.system.databases import Pair, Side
from tests.system.stack import Stack, eventually

pytestmark = [pytest.mark.system, pytest.mark.timeout(180)]

ROWS = 60_000
INSIDE = "id BETWEEN 10000 AND 50000"


class Writes:
    """Changes rows at the source until it is told to stop; none of them is one of those that a test plants."""

    def __init__(self, source: Side) -> None:
        self._source = source
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "Writes":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._thread.join()

    def _run(self) -> None:
        with psycopg.connect(self._source.conninfo, autocommit=True) as connection:
            number = 0
            while not self._ending.wait(0.01):
                number += 1
                row = number * 7919 % ROWS
                connection.execute("UPDATE items SET state = state || '+' WHERE id = %s AND id %% 10 <> 0", [row])
                connection.execute("INSERT INTO items VALUES (%s, 'new')", [ROWS + number])


@pytest.fixture(scope="module", params=["direct", "jetstream"])
def pair(request: pytest.FixtureRequest, stack: Stack, make_pair: Callable[[str], Pair]) -> Iterator[Pair]:
    """A pipeline that is ready, with small chunks, over a table and one beside it."""
    made = make_pair(f"copies-{request.param}")
    made.source.execute(
        "CREATE TABLE items (id int PRIMARY KEY, state text); CREATE TABLE beside (id int PRIMARY KEY, state text);"
        f"INSERT INTO items SELECT n, 'as it was' FROM generate_series(1, {ROWS}) n; INSERT INTO beside VALUES (1, 'b')"
    )
    stack.apply(
        made.manifest("public.items", "public.beside", buffer=request.param).replace(
            "tables: [", "snapshot: {chunk_rows: 1000, parallelism: 1}, tables: ["
        )
    )
    stack.wait(made.name)
    yield made
    stack.cli("pause", "pipeline", made.name)


def test_a_part_is_mended_under_writes_and_kills_and_nothing_else_is_touched(stack: Stack, pair: Pair) -> None:
    """Rows that were changed, lost and added at the destination: mended inside the range, left as they are outside."""
    for place in (5_000, 30_000):
        pair.sink.execute("UPDATE items SET state = 'planted' WHERE id = %s", place)
        pair.sink.execute("DELETE FROM items WHERE id = %s", place + 10)
    pair.source.execute("DELETE FROM items WHERE id IN (5020, 30020)")
    eventually(
        lambda: pair.sink.execute("SELECT count(*) FROM items WHERE id IN (5020, 30020)") == [(0,)],
        within=60,
        what="the deletes",
    )
    pair.sink.execute("INSERT INTO items VALUES (5020, 'planted'), (30020, 'planted')")
    pair.sink.execute("UPDATE beside SET state = 'planted'")
    with Writes(pair.source):
        asked = stack.cli(
            "resync", "pipeline", pair.name, "--table", "public.items", "--where", "id between 10000 and 50000"
        )
        assert "deleted, because" in asked.err
        eventually(lambda: has_begun(pair), within=60, what="the copy's first chunk", every=0.01)
        stack.kill_worker(pair.name)
        stack.wait(pair.name)
    eventually(lambda: equal_inside(pair), within=60, what="the range equal on both sides")
    assert pair.sink.execute("SELECT id, state FROM items WHERE id IN (5000, 5010, 5020) ORDER BY id") == [
        (5000, "planted"),
        (5020, "planted"),
    ]
    assert pair.sink.execute("SELECT state FROM beside") == [("planted",)]
    pair.sink.execute("DELETE FROM items WHERE id = 5020")
    pair.sink.execute("UPDATE beside SET state = 'b'")


def has_begun(pair: Pair) -> bool:
    [(part,)] = pair.sink.execute(
        "SELECT cursors -> 'public.items' -> 'part' FROM pointsman.checkpoints WHERE cursors ? 'public.items'"
    )
    return bool(part)


def equal_inside(pair: Pair) -> bool:
    digest = f"SELECT count(*), md5(string_agg(t::text, '' ORDER BY id)) FROM items t WHERE {INSIDE}"
    assert pair.source.execute(digest) == pair.sink.execute(digest)
    return True


def test_a_paused_copy_waits_through_kills_and_goes_on(stack: Stack, pair: Pair) -> None:
    """The other table flows and the pipeline says what it waits for, until somebody resumes the copying."""
    stack.cli("pause", "pipeline", pair.name, "--table", "public.items")
    pair.sink.execute("UPDATE items SET state = 'planted' WHERE id = 40000")
    stack.cli("resync", "pipeline", pair.name, "--table", "public.items", "--where", "state is not null")
    eventually(
        lambda: stack.pipeline(pair.name)["status"]["code"] == "copy_paused",
        within=60,
        what="what the pipeline waits for",
    )
    stack.kill_worker(pair.name)
    pair.source.execute("INSERT INTO beside VALUES (2, 'b')")
    eventually(lambda: pair.equal("beside"), within=60, what="the other table equal")
    eventually(lambda: waits(stack, pair), within=60, what="the copy told as paused")
    assert pair.sink.execute("SELECT state FROM items WHERE id = 40000") == [("planted",)]
    stack.cli("resume", "pipeline", pair.name, "--table", "public.items")
    stack.wait(pair.name)
    eventually(lambda: pair.equal("items", "beside"), within=60, what="everything equal")


def waits(stack: Stack, pair: Pair) -> bool:
    status = stack.pipeline(pair.name)["status"]
    assert not status["ready"]
    assert status["telemetry"]["copies"][0]["paused"], "told by a heartbeat"
    return True


def test_a_condition_that_does_not_fit_is_never_green_and_holds_up_nothing(stack: Stack, pair: Pair) -> None:
    """The pipeline streams and says which column; a request that fits takes its place."""
    refused = stack.cli("resync", "pipeline", pair.name, "--table", "public.beside", "--where", "id = one", expect=None)
    assert "invalid_condition" in refused.err
    pair.source.execute("ALTER TABLE beside ADD COLUMN place point")
    pair.source.execute("INSERT INTO beside VALUES (3, 'b', '(1,2)')")
    eventually(lambda: pair.equal("beside"), within=60, what="the new column")
    asked = ("resync", "pipeline", pair.name, "--table", "public.beside", "--where")

    def told() -> bool:
        status = stack.pipeline(pair.name)["status"]
        assert (status["code"], status["column"], status["ready"]) == ("backfill_refused", "place", False)
        return True

    eventually(lambda: stack.cli(*asked, "place < (0,0)"), within=60, what="the column known", every=1.0)
    eventually(told, within=60, what="the refusal")
    pair.source.execute("INSERT INTO beside VALUES (4, 'b')")
    eventually(lambda: pair.equal("beside"), within=60, what="the stream beside it")
    stack.cli(*asked, "id >= 1")
    stack.wait(pair.name)
