"""A user's source is failed over, and a paused pipeline's slot grows: seen through the command line, with all parts running."""

import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from tests.conftest import Database
from tests.dataplane.sources.standbys import Pair
from tests.system.stack import Stack, eventually

pytestmark = pytest.mark.system

CONNECTION = "kind: Connection\nname: {name}\ntype: postgres\nconfig: {{host: 127.0.0.1, port: {port}, database: {database}, user: postgres}}"
PIPELINE = (
    "kind: Pipeline\nname: {name}\ndata_plane: local\nsource: {{connection: {source}, tables: [public.{table}]{more}}}\n"
    "sink: {{connection: {sink}}}\nbuffer: {{type: {buffer}}}"
)


@pytest.fixture
def pair() -> Iterator[Pair]:
    """A primary and its standby."""
    folder = Path(tempfile.mkdtemp(prefix="pm-ha-"))
    pair = Pair(folder)
    yield pair
    pair.stop()
    shutil.rmtree(folder, ignore_errors=True)


class Writer:
    """Inserts rows into the primary until it dies; only committed ones count."""

    def __init__(self, pair: Pair) -> None:
        self._pair = pair
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            with psycopg.connect(self._pair.primary.conninfo(), autocommit=True) as connection:
                for number in range(1, 1_000_000):
                    connection.execute("INSERT INTO public.followed VALUES (%s, repeat('x', 200))", [number])
                    connection.execute("SELECT pg_sleep(0.002)")
        except psycopg.Error:
            return

    def join(self) -> None:
        self._thread.join()


def rows(conninfo: str, table: str) -> list[tuple[object, ...]]:
    with psycopg.connect(conninfo, autocommit=True) as connection:
        return connection.execute(f"SELECT * FROM public.{table} ORDER BY id").fetchall()  # type: ignore[arg-type]


def test_a_pipeline_goes_on_at_the_promoted_standby_and_another_says_why_it_cannot(
    stack: Stack, pair: Pair, make_database: Callable[[str], Database]
) -> None:
    """Rows are written until the primary dies, through a buffer: none is lost, none comes twice, none is invented."""
    sink = make_database("warehouse")
    for table in ("followed", "forsaken"):
        pair.run(f"CREATE TABLE public.{table} (id integer PRIMARY KEY, note text)")
    pair.run("INSERT INTO public.forsaken VALUES (1, 'a')")

    def connect(port: int) -> None:
        stack.apply(CONNECTION.format(name="ha", port=port, database="postgres"))

    connect(pair.primary.port)
    stack.apply(CONNECTION.format(name="ha-sink", port=sink.port, database=sink.name))
    for name, more, buffer in (("followed", ", failover: true", "jetstream"), ("forsaken", "", "direct")):
        stack.apply(PIPELINE.format(name=name, table=name, source="ha", sink="ha-sink", more=more, buffer=buffer))
    stack.wait("followed")
    stack.wait("forsaken")
    writer = Writer(pair)

    def synced() -> bool:
        pair.run("SELECT pg_log_standby_snapshot()")
        pair.run("SELECT pg_reload_conf()", on=pair.standby)
        return bool(pair.run("SELECT 1 FROM pg_replication_slots WHERE synced AND NOT temporary", on=pair.standby))

    eventually(synced, within=60, what="the slot's copy on the standby", every=0.5)
    pair.primary.stop(immediate=True)
    writer.join()
    pair.promote()
    connect(pair.standby.port)
    pair.run("INSERT INTO public.followed VALUES (2000000, 'after')", on=pair.standby)

    eventually(
        lambda: rows(pair.standby.conninfo(), "followed") == rows(sink.conninfo, "followed"),
        within=60,
        what="equal rows on both sides",
    )
    stack.wait("followed")
    stack.wait("forsaken", "phase=gap")
    status = stack.pipeline("forsaken")["status"]
    assert status["code"] == "gap_slot_not_synced"
    page = stack.cli("describe", "pipeline", "forsaken").out
    assert "did not follow" in page
    assert "resync" in page
    stack.cli("resync", "pipeline", "forsaken")
    stack.wait("forsaken")
    for name in ("followed", "forsaken"):
        stack.cli("delete", "pipeline", name, "--cleanup")
        stack.wait(name, "deleted")


def test_a_paused_pipelines_slot_is_shown_while_it_grows(
    stack: Stack, make_database: Callable[[str], Database]
) -> None:
    """`pause` says what it costs; `describe` shows what is kept and how fast it grows, though no row flows."""
    source, sink = make_database("shop"), make_database("warehouse")
    source.execute("CREATE TABLE public.items (id integer PRIMARY KEY, note text)")
    for name, database in (("shop", source), ("warehouse", sink)):
        stack.apply(CONNECTION.format(name=name, port=database.port, database=database.name))
    more = ", log: {retain_bytes_max: 1000000000, on_full: keep}"
    stack.apply(
        PIPELINE.format(name="items", table="items", source="shop", sink="warehouse", more=more, buffer="direct")
    )
    stack.wait("items")
    eventually(
        lambda: (stack.pipeline("items")["status"]["telemetry"] or {}).get("slot"), within=30, what="the slot's numbers"
    )
    paused = stack.cli("pause", "pipeline", "items").err
    assert "It keeps" in paused
    stack.wait("items", "phase=paused")

    def grows() -> bool:
        source.execute("SELECT pg_logical_emit_message(false, 'noise', repeat('x', 3000000))")
        slot = stack.pipeline("items")["status"]["telemetry"]["slot"]
        return slot.get("growth_bytes_per_second", 0) > 1000 and slot["seconds_left"] > 0 and not slot.get("active")

    eventually(grows, within=90, what="growth of a slot that nobody reads", every=1.0)
    page = stack.cli("describe", "pipeline", "items").out
    assert "Slot at the source" in page
    assert "Time left" in page
    stack.cli("delete", "pipeline", "items", "--cleanup")
    stack.wait("items", "deleted")
