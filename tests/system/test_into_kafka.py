"""PostgreSQL → Kafka through both planes: a consumer that reads what is committed sees every change once."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.kafka import reading
from tests.kafka.broker import Broker
from tests.system.databases import Pair
from tests.system.stack import Stack, eventually

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(300)]

ROWS = 300
WRITES = 40
MARK = "0c5f1a-never-leaves"
MASK = "{type: mask, table: public.items, columns: [email]}"


class Events:
    """One pipeline into topics of its own."""

    def __init__(self, stack: Stack, pair: Pair, broker: Broker, buffer: str) -> None:
        self.stack, self.pair, self.broker, self.buffer = stack, pair, broker, buffer

    def manifest(self, *, prefix: str | None = None, more: str = "") -> str:
        name = self.pair.name
        source = self.pair.connections().partition("\n---\n")[0]
        return (
            f"{source}\n---\nkind: Connection\nname: {name}-sink\ntype: kafka\n"
            f"config: {{brokers: ['{self.broker.address}']}}\n---\n"
            f"kind: Pipeline\nname: {name}\ndata_plane: local\n"
            f"source: {{connection: {name}-source, tables: [public.items]}}\n"
            f"sink: {{connection: {name}-sink, topics: {{prefix: {prefix or name}, partitions: 3}}{more}}}\n"
            f"buffer: {{type: {self.buffer}}}\ntransforms: [{MASK}]\n"
        )

    def records(self) -> list[reading.Record]:
        return reading.records(self.broker.address, f"{self.pair.name}.public.items")

    def changes(self) -> list[dict[str, Any]]:
        """Every envelope, without the tombstones."""
        return [json.loads(record.value) for record in self.records() if record.value is not None]

    def is_equal(self) -> bool:
        """Say whether a reader who applies every record has the source's rows, masked."""
        seen = {row["id"]: (row["version"], row["email"]) for row in reading.table(self.records()).values()}
        rows = self.pair.source.execute("SELECT id, version, '***' FROM items")
        return seen == {row[0]: row[1:] for row in rows}


@pytest.fixture(scope="module", params=["direct", "jetstream"])
def events(
    request: pytest.FixtureRequest, stack: Stack, make_pair: Callable[[str], Pair], broker: Broker
) -> Iterator[Events]:
    pair = make_pair(f"into-kafka-{request.param}")
    pair.source.execute("CREATE TABLE items (id int PRIMARY KEY, version int, email text)")
    pair.source.execute(f"INSERT INTO items SELECT n, 0, '{MARK}' FROM generate_series(1, {ROWS}) n")
    made = Events(stack, pair, broker, request.param)
    stack.apply(made.manifest())
    stack.wait(pair.name, seconds=60)
    yield made
    stack.cli("delete", "pipeline", pair.name)


def test_rows_that_were_there_are_reads_and_masked(events: Events) -> None:
    """Each once, by its key, and no value that the mask hides."""
    eventually(events.is_equal, within=60, what="all rows in the topic")
    assert [change["op"] for change in events.changes()] == ["r"] * ROWS
    assert MARK not in str(events.records())


def test_each_change_is_there_once_whatever_is_killed(events: Events) -> None:
    """Workers die while rows are written: of each key every version comes, in order and once."""
    for version in range(1, WRITES + 1):
        events.pair.source.execute("UPDATE items SET version = %s WHERE id <= 20", version)
        if version % 15 == 0:
            events.stack.kill_worker(events.pair.name)
    events.pair.source.execute("DELETE FROM items WHERE id = 20")
    eventually(events.is_equal, within=90, what="the source's rows")
    updates = [change["after"] for change in events.changes() if change["op"] == "u"]
    for key in range(1, 21):
        assert [row["version"] for row in updates if row["id"] == key] == list(range(1, WRITES + 1))
    deleted = [change["before"]["id"] for change in events.changes() if change["op"] == "d"]
    assert deleted == [20]
    assert [record.value for record in events.records() if record.key == b'{"id":20}'][-1] is None


def test_what_only_tables_can_do_is_refused_in_plain_words(events: Events) -> None:
    """Comparing, dead letters, and settings of tables: each with a code that says why."""
    name, stack = events.pair.name, events.stack
    assert "unfit_connection" in stack.cli("reconcile", "pipeline", name, expect=1).err
    folder = next(Path(stack.folder).rglob("node.json")).parent
    asked = stack.cli("node", "dlq", "list", name, "--folder", str(folder), expect=1)
    assert "connection_unfit" in asked.err
    assert "/sink/on_refused" in stack.apply(events.manifest(more=", on_refused: dead_letter"), expect=1).err


def test_the_connection_is_tested_from_the_node(events: Events) -> None:
    """The node knocks at the brokers; the answer has a code and no text of theirs."""
    done = events.stack.cli("test", "connection", f"{events.pair.name}-sink", "-o", "json")
    assert done.json["ok"] is True


def test_two_pipelines_never_write_one_topic(events: Events) -> None:
    """A second one under the same prefix is refused when it is applied."""
    taken = events.manifest(prefix=events.pair.name).replace(
        f"kind: Pipeline\nname: {events.pair.name}\n", "kind: Pipeline\nname: another\n"
    )
    assert "table_taken" in events.stack.apply(taken, expect=5).err
