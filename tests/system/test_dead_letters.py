"""The whole way of a refused row, as a stranger walks it: under load and kills, through both buffers and the real CLI."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.system.databases import Pair
from tests.system.stack import Stack, eventually

pytestmark = [pytest.mark.system, pytest.mark.timeout(180)]

POISON = "canary-of-a-dead-letter-4be1"
KEYS = 40
PAUSE_SECONDS = 0.01
"""Between two transactions of the load: it is there to be in the way, and not to be the fastest."""
POISONED = (7, 8)


@contextmanager
def load(pair: Pair) -> Iterator[None]:
    """Change every other key again and again, in small transactions, and write a line for each."""
    ended = threading.Event()

    def work() -> None:
        version = 1
        with pair.source.connect(autocommit=True) as connection:
            while not ended.is_set():
                version += 1
                time.sleep(PAUSE_SECONDS)
                if version % KEYS + 1 in POISONED:
                    continue
                with connection.transaction():
                    key = version % KEYS + 1
                    connection.execute("UPDATE state SET note = 'ok', version = %s WHERE id = %s", (version, key))
                    connection.execute("INSERT INTO lines (key, version) VALUES (%s, %s)", (key, version))

    worker = threading.Thread(target=work)
    worker.start()
    try:
        yield
    finally:
        ended.set()
        worker.join()


def others(pair: Pair) -> bool:
    """Say whether everything but the poisoned keys is equal."""
    query = f"SELECT id, note, version FROM state WHERE id NOT IN {POISONED} ORDER BY id"
    return pair.source.execute(query) == pair.sink.execute(query) and pair.equal("lines")


@pytest.mark.parametrize("buffer", ["direct", "jetstream"])
def test_a_poison_row_under_load_and_kills_comes_right_in_the_end(
    stack: Stack, make_pair: Callable[[str], Pair], buffer: str
) -> None:
    """Others go on, the key's changes wait in order, a replay ends equal, and no value of the row goes up."""
    pair = make_pair(f"letters-{buffer}")
    pair.source.execute("CREATE TABLE state (id int PRIMARY KEY, note text, version int)")
    pair.source.execute("CREATE TABLE lines (id bigserial PRIMARY KEY, key int, version int)")
    pair.source.execute(f"INSERT INTO state SELECT n, 'first', 0 FROM generate_series(1, {KEYS}) n")
    manifest = pair.manifest("public.state", "public.lines", buffer=buffer)
    stack.apply(manifest.replace(f"{pair.name}-sink}}\n", f"{pair.name}-sink, on_refused: dead_letter}}\n"))
    stack.wait(pair.name)
    pair.sink.execute(f"ALTER TABLE state ADD CONSTRAINT taste CHECK (note NOT LIKE '{POISON}%')")
    folder = str(next(Path(stack.folder).rglob("node.json")).parent)
    desk = ("--folder", folder)
    with load(pair):
        for key in POISONED:
            pair.source.execute("UPDATE state SET note = %s WHERE id = %s", f"{POISON}-{key}", key)
            stack.kill_worker(pair.name)
            time.sleep(0.5)
        eventually(
            lambda: pair.sink.execute("SELECT count(*) FROM pointsman.dead_letters") == [(2,)],
            within=60,
            what="letters",
        )
        for version in (1, 2):
            pair.source.execute(
                "UPDATE state SET note = 'ok', version = %s WHERE id = ANY(%s)", version, list(POISONED)
            )
        eventually(
            lambda: pair.sink.execute("SELECT count(*) FROM pointsman.dead_letters") == [(6,)], within=60, what="behind"
        )
        stack.kill_worker(pair.name)
        # What was said before the worker was killed may be read first: it passes through `worker_exited` to the last.
        eventually(
            lambda: (
                (found := stack.pipeline(pair.name)["status"])["code"] == "dead_letters"
                and (found["phase"], found["ready"]) == ("streaming", True)
            ),
            within=60,
            what="streaming with the code dead_letters",
        )
        eventually(lambda: "dead_letters" in stack.cli("get", "pipelines").out, within=60, what="the code in the table")
    eventually(lambda: others(pair), within=60, what="everything but the poisoned keys equal")
    items = stack.cli("node", "dlq", "list", pair.name, *desk, "--limit", "10000", "-o", "json").json["items"]
    refused = [each for each in items if each["cause"]["code"] == "sink_constraint"]
    assert [each["key"]["id"] for each in refused] == [str(key) for key in POISONED]
    for key in POISONED:
        places = [
            (each["position"]["lsn"], each["position"]["ordinal"]) for each in items if each["key"]["id"] == str(key)
        ]
        assert places == sorted(set(places))
        assert len(places) == 3
    told = stack.cli("node", "dlq", "show", pair.name, str(refused[0]["id"]), *desk).out
    assert POISON in told
    assert "23514" in told
    again = stack.cli("node", "dlq", "replay", pair.name, *desk, "-o", "json").json
    assert again["refused"] == len(POISONED)
    assert again["applied"] == 0
    assert "--yes" in stack.cli("node", "dlq", "drop", pair.name, *desk, expect=64).err
    assert stack.cli("node", "dlq", "list", "nothing", *desk, expect=3).err
    pair.sink.execute("ALTER TABLE state DROP CONSTRAINT taste")
    assert stack.cli("node", "dlq", "replay", pair.name, *desk, "-o", "json").json["refused"] == 0
    pair.source.execute("UPDATE state SET version = -1 WHERE id = ANY(%s)", list(POISONED))
    eventually(lambda: pair.equal("state", "lines"), within=60, what="all equal")
    eventually(lambda: stack.pipeline(pair.name)["status"]["code"] is None, within=60, what="no code any more")
    left = stack.cli("node", "ledger", "list", *desk, "--limit", "10000", "-o", "json").out
    assert "dead_letters" in left
    assert POISON not in left
    assert POISON not in str(stack.pipeline(pair.name)) + str(stack.events())
    stack.cli("pause", "pipeline", pair.name)
