"""A node that speaks the contract before the newest one runs the same pipelines, and says what it cannot run."""

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.system.databases import Databases, Pair
from tests.system.stack import Stack, eventually

pytestmark = [pytest.mark.system, pytest.mark.timeout(240)]

MASK_EMAIL = "{type: mask, table: public.people, columns: [email]}"
DROP_PHONE = "{type: drop, table: public.people, columns: [phone]}"


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    """A stack whose node speaks contract version 1 only."""
    path = Path(tempfile.mkdtemp(prefix="pm-old-"))
    running = Stack(path / "up")
    try:
        running.start()
        running.cli("stop", "node-1")
        pinned = path / "up" / "nodes" / "node-1" / "node.json"
        pinned.write_text(json.dumps({**json.loads(pinned.read_bytes()), "contract_max": 1}))
        running.cli("start", "node-1")
        yield running
    finally:
        running.end()
        shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="module")
def pair(stack: Stack, databases: Databases) -> Pair:
    """A pipeline with one transform, which version 1 can say."""
    made = databases.pair("people", stack.secrets)
    made.source.execute("CREATE TABLE people (id int PRIMARY KEY, name text, email text, phone text)")
    made.source.execute("INSERT INTO people VALUES (1, 'Ada', 'ada@example.org', '1')")
    stack.apply(made.manifest("public.people", buffer="jetstream", more=f"transforms: [{MASK_EMAIL}]"))
    stack.wait(made.name)
    return made


def at_the_sink(pair: Pair, number: int) -> tuple[object, ...]:
    """Insert a person at the source and return the row that arrives."""
    pair.source.execute("INSERT INTO people VALUES (%s, 'Bob', 'bob@example.org', '2')", number)
    found: list[tuple[object, ...]] = eventually(
        lambda: pair.sink.execute("SELECT name, email, phone FROM people WHERE id = %s", number),
        within=20,
        what=f"person {number}",
    )
    return found[0]


def test_the_node_speaks_version_1(stack: Stack, pair: Pair) -> None:
    """The API shows the version that the node's own configuration pins."""

    def contract() -> object:
        with stack.api() as api:
            found = api.get("/nodes/node-1").json()
        return found["status"].get("contract", found.get("contract"))

    eventually(lambda: contract() == 1, within=30, what="contract 1")


def test_an_older_node_runs_the_same_pipeline_with_its_mask(stack: Stack, pair: Pair) -> None:
    """Snapshot and stream arrive, and the one transform is applied to both."""
    assert at_the_sink(pair, 2) == ("Bob", "***", "2")
    assert pair.sink.execute("SELECT email FROM people WHERE id = 1") == [("***",)]
    status = stack.pipeline(pair.name)["status"]
    assert (status["phase"], status["ready"]) == ("streaming", True)


def test_what_version_1_cannot_say_needs_an_upgrade_and_changes_nothing(stack: Stack, pair: Pair) -> None:
    """With a second transform the node keeps what it runs, mask and all, and the status says what is needed."""
    before = stack.pipeline(pair.name)["status"]["observed_generation"]
    stack.apply(pair.pipeline("public.people", buffer="jetstream", more=f"transforms: [{MASK_EMAIL}, {DROP_PHONE}]"))
    status = eventually(
        lambda: (found := stack.pipeline(pair.name)["status"])["code"] == "needs_upgrade" and found,
        within=30,
        what="needs_upgrade",
    )
    assert status["ready"] is False
    assert status["observed_generation"] == before
    assert status["hint"]
    assert at_the_sink(pair, 3) == ("Bob", "***", "2")
    stack.kill_worker(pair.name)
    assert at_the_sink(pair, 4) == ("Bob", "***", "2")


def test_back_to_one_transform_it_is_ready_again(stack: Stack, pair: Pair) -> None:
    """The next document that version 1 can say is obeyed at once."""
    stack.apply(pair.pipeline("public.people", buffer="jetstream", more=f"transforms: [{MASK_EMAIL}]"))
    stack.wait(pair.name)
    assert at_the_sink(pair, 5) == ("Bob", "***", "2")


def test_a_pipeline_that_was_never_expressible_waits(
    stack: Stack, databases: Databases, make_pair: Callable[[str], Pair]
) -> None:
    """A new pipeline with two transforms is not started in a reduced form: nothing arrives, and the code says why."""
    made = databases.pair("never", stack.secrets)
    made.source.execute("CREATE TABLE people (id int PRIMARY KEY, name text, email text, phone text)")
    made.source.execute("INSERT INTO people VALUES (1, 'Ada', 'ada@example.org', '1')")
    stack.apply(made.manifest("public.people", more=f"transforms: [{MASK_EMAIL}, {DROP_PHONE}]"))
    eventually(lambda: stack.pipeline(made.name)["status"]["code"] == "needs_upgrade", within=30, what="needs_upgrade")
    assert made.sink.content("people") is None
    assert made.source.execute("SELECT count(*) FROM pg_replication_slots WHERE database = current_database()") == [
        (0,)
    ]
