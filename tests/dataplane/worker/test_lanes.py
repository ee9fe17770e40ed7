"""Rows over several connections through whole workers, and one database divided over two pipelines."""

import asyncio
import time
from collections.abc import Callable

import pytest
from msgspec import structs
from tests.dataplane.worker.processes import Worker, connection, document, new_pipeline_id

from contracts import v2
from contracts.v2 import Phase
from dataplane.worker.protocol import Half

pytestmark = pytest.mark.system

SECONDS_MAX = 60.0
ROWS = 2_000
LANES = v2.PipelineSink(connection="warehouse", consistency=v2.Consistency.KEY, parallelism=3)
FORWARD_ONLY = """CREATE FUNCTION forward() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        IF NEW.value <= OLD.value THEN RAISE 'went back from % to %', OLD.value, NEW.value; END IF; RETURN NEW; END $$;
    CREATE TRIGGER forward BEFORE UPDATE ON public.counters FOR EACH ROW EXECUTE FUNCTION forward()"""


def worker(folder, shop, warehouse) -> Worker:  # type: ignore[no-untyped-def]
    ends = [
        connection(name, host="127.0.0.1", port=database.port, database=database.name)
        for name, database in (("shop", shop), ("warehouse", warehouse))
    ]
    return Worker(folder, Half.WHOLE, *ends, pipeline_id=new_pipeline_id())


async def eventually(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + SECONDS_MAX
    while not condition():  # another process changes it
        assert time.monotonic() < end, "it never came to be"
        await asyncio.sleep(0.02)


async def test_a_killed_worker_with_lanes_takes_no_key_back(folder, make_database) -> None:  # type: ignore[no-untyped-def]
    """A key that went back, or was counted twice, would be refused by a trigger; in the end both ends are equal.

    The killed worker's place is taken by one with other lanes, and then by one without any.
    """
    shop, warehouse = make_database("shop"), make_database("warehouse")
    shop.execute("CREATE TABLE counters (id int PRIMARY KEY, value int NOT NULL)")
    shop.execute(f"INSERT INTO counters SELECT id, 0 FROM generate_series(1, {ROWS}) AS id")
    carrier = worker(folder, shop, warehouse)
    plain = document(["public.counters"])
    await carrier.start(structs.replace(plain, sink=LANES))
    await carrier.until_phase(Phase.STREAMING)
    warehouse.execute(FORWARD_ONLY)
    total = "SELECT sum(value) FROM counters"
    lanes = "SELECT count(*) FROM pointsman.lanes"
    try:
        for number, sink in enumerate((LANES, structs.replace(LANES, parallelism=2), plain.sink)):
            for _ in range(8):
                shop.execute("UPDATE counters SET value = value + 1")
            if not number:
                await eventually(lambda: warehouse.execute(lanes) == [(3,)])
            await carrier.kill()
            await carrier.start(structs.replace(plain, sink=sink))
        await eventually(lambda: warehouse.execute(total) == shop.execute(total))
        await carrier.until_phase(Phase.STREAMING)
        assert warehouse.execute("SELECT min(value), max(value), count(*) FROM counters") == [(24, 24, ROWS)]
    finally:
        await carrier.stop()


async def test_two_pipelines_share_the_tables_of_one_database(folder, make_database) -> None:  # type: ignore[no-untyped-def]
    """Each has a slot and a checkpoint of its own; both run at once, and one goes on while the other is down."""
    shop, warehouse = make_database("shop"), make_database("warehouse")
    tables = ("orders", "visits")
    carriers = []
    for name in tables:
        shop.execute(f"CREATE TABLE {name} (id int PRIMARY KEY)")
        (folder / name).mkdir()
        carriers.append(worker(folder / name, shop, warehouse))
    both = "INSERT INTO orders VALUES ({0}); INSERT INTO visits VALUES ({0})"
    try:
        for carrier, name in zip(carriers, tables, strict=True):
            await carrier.start(structs.replace(document([f"public.{name}"]), name=name))
        for carrier in carriers:
            await carrier.until_phase(Phase.STREAMING)
        active = "SELECT count(*) FROM pg_replication_slots WHERE database = current_database() AND active"
        await eventually(lambda: shop.execute(active) == [(2,)])
        shop.execute(both.format(1))
        for name in tables:
            await eventually(lambda name=name: warehouse.execute(f"SELECT id FROM {name}") == [(1,)])
        await carriers[0].kill()
        shop.execute(both.format(2))
        await eventually(lambda: warehouse.execute("SELECT count(*) FROM visits") == [(2,)])
        assert warehouse.execute("SELECT count(*) FROM orders") == [(1,)]
        await carriers[0].start()
        await eventually(lambda: warehouse.execute("SELECT count(*) FROM orders") == [(2,)])
        assert warehouse.execute("SELECT count(*) FROM pointsman.checkpoints") == [(2,)]
    finally:
        for carrier in carriers:
            await carrier.stop()
