"""A pipeline with workers of its own, a load that never rests, and the process that compares both ends beside them."""

import asyncio
import threading
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from random import Random

import psycopg
from msgspec import structs
from tests.dataplane.buffers.leaf import Leaf
from tests.dataplane.worker.processes import SECONDS_MAX, Worker
from tests.dataplane.worker.test_process import Pipeline

from contracts import v2
from contracts.reconciling import Reconcile, ReconcileState
from dataplane.policy import MaskRule
from dataplane.worker.protocol import Assignment, Half, ReconcileLine

ORDERS, WORDS, PARTS = "public.orders", "public.words", "public.parts"
TABLES = [ORDERS, PARTS, WORDS]
ROWS = 4_000
BEHIND_BYTES_MAX = 512 << 10
BUSY = 3_000
"""The load changes orders up to this one, and nothing beyond."""

SOURCE = f"""
CREATE TABLE orders (id bigint PRIMARY KEY, email text, amount numeric, note text, doc text, tags text[], at timestamptz);
ALTER TABLE orders ALTER doc SET STORAGE EXTERNAL;
INSERT INTO orders SELECT n, n || '@example.com', n + 0.50, CASE n % 3 WHEN 0 THEN NULL WHEN 1 THEN '' ELSE 'a\tb' END,
    CASE WHEN n % 100 = 0 THEN repeat(md5(n::text), 100) END, ARRAY[n::text, NULL], now() FROM generate_series(1, {ROWS}) n;
CREATE TABLE words (word text PRIMARY KEY, meaning text);
INSERT INTO words SELECT w, w FROM unnest(ARRAY['a', 'A', 'b', 'B', 'ä', 'z', 'Z', '_', '-a', 'a b', 'ab', 'é', 'e', '']) w;
CREATE TABLE parts (region int, "Part No" varchar(20), size_mm real, PRIMARY KEY ("Part No", region));
ALTER TABLE parts RENAME "Part No" TO part_no;
INSERT INTO parts SELECT n % 7, 'P' || n, n / 3.0 FROM generate_series(1, 700) n;
"""
DESTINATION = """
CREATE FUNCTION backwards(text, text) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT bttextcmp($2, $1)';
CREATE OPERATOR CLASS backwards FOR TYPE text USING btree AS
    OPERATOR 1 >, OPERATOR 2 >=, OPERATOR 3 =, OPERATOR 4 <=, OPERATOR 5 <, FUNCTION 1 backwards(text, text);
CREATE TABLE words (word text NOT NULL, meaning text, only_here int DEFAULT 5);
CREATE UNIQUE INDEX ON words (word backwards);
"""
"""The destination sorts words the other way round, as another collation might."""

MASK: list[v2.Transform] = [v2.MaskTransform(table=ORDERS, columns=["email"])]


class Comparer(Worker):
    """The process that compares, as the agent runs it."""

    module = "dataplane.reconcile"
    masks: Sequence[MaskRule] = ()
    """The customer's rules for columns."""

    def assignment(self, pipeline: v2.PipelineDocument, contract: int = 2) -> Assignment:
        return structs.replace(super().assignment(pipeline, contract), masks=list(self.masks))

    async def until_over(self, number: int, tables: Iterable[str] = TABLES) -> dict[str, ReconcileLine]:
        def over(status) -> bool:  # type: ignore[no-untyped-def]
            lines = {line.table: line for line in status.reconciles}
            return all(
                table in lines and lines[table].number == number and lines[table].state is not ReconcileState.RUNNING
                for table in tables
            )

        status = await self.until(over)
        return {line.table: line for line in status.reconciles}


class Load:
    """Inserts, updates and deletes as fast as the pipeline carries them, several a transaction; hot rows among them."""

    def __init__(self, conninfo: str, destination: str) -> None:
        self._conninfo = conninfo
        self._destination = destination
        self._stop = threading.Event()
        self._go = threading.Event()
        self._threads = [threading.Thread(target=self._work, args=(seed,)) for seed in range(2)]
        self._threads.append(threading.Thread(target=self._hold_back))
        self.transactions = 0

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()

    def _hold_back(self) -> None:
        """Keep the pipeline always behind, and never by more than it makes good in a moment."""
        with (
            psycopg.connect(self._conninfo, autocommit=True) as source,
            psycopg.connect(self._destination, autocommit=True) as destination,
        ):
            while not self._stop.wait(0.02):
                ((end,),) = source.execute("SELECT pg_current_wal_lsn() - '0/0'")
                ((position,),) = destination.execute(
                    "SELECT greatest(position_lsn, confirmed_through) FROM pointsman.checkpoints"
                )
                (self._go.set if end - position < BEHIND_BYTES_MAX else self._go.clear)()
        self._go.set()

    def _work(self, seed: int) -> None:
        random = Random(seed)
        low, high = 1 + seed * BUSY // 2, (seed + 1) * BUSY // 2
        with psycopg.connect(self._conninfo, autocommit=True) as connection:
            while not self._stop.is_set():
                self._go.wait()
                with connection.transaction():
                    for _ in range(random.randint(1, 5)):
                        self._change(connection, random, low, high)
                self.transactions += 1

    def _change(self, connection, random: Random, low: int, high: int) -> None:  # type: ignore[no-untyped-def]
        number = random.choice((random.randint(low, high), low + random.randint(0, 3)))
        match random.randint(0, 9):
            case 0:
                connection.execute("DELETE FROM orders WHERE id = %s", (number,))
            case 1:
                # Moves a row to a key beside it, if that is free.
                connection.execute(
                    "UPDATE orders SET id = %(to)s WHERE id = %(from)s"
                    " AND NOT EXISTS (SELECT FROM orders WHERE id = %(to)s)",
                    {"from": number, "to": min(high, number + 1)},
                )
            case 2:
                connection.execute(
                    "INSERT INTO orders SELECT %s, 'x', %s, 'new', repeat(md5(%s::text), 80)"
                    " ON CONFLICT (id) DO UPDATE SET amount = excluded.amount, doc = excluded.doc",
                    (number, random.random(), random.random()),
                )
            case 5:
                connection.execute("SELECT FROM orders WHERE id = %s FOR KEY SHARE", (number,))
            case _:
                connection.execute("UPDATE orders SET amount = amount + 1 WHERE id = %s", (number,))


class Scene:
    """The pipeline, its workers and the process that compares."""

    def __init__(self, folder: Path, make_database, leaf: Leaf | None) -> None:  # type: ignore[no-untyped-def]
        self.pipeline = pipeline = Pipeline(folder, make_database, leaf)
        self.shop, self.warehouse = pipeline.shop, pipeline.warehouse
        worker = pipeline.workers[0]
        self.comparer = Comparer(folder, Half.RECONCILE, worker._source, worker._sink, pipeline_id=worker._pipeline_id)
        self.number = 0
        self.load = Load(self.shop.conninfo, self.warehouse.conninfo)

    async def start(self) -> None:
        self.shop.execute(SOURCE)
        self.warehouse.execute(DESTINATION)
        await self.pipeline.start(tables=TABLES, transforms=MASK)
        await self.pipeline.until(v2.Phase.STREAMING)

    async def stop(self) -> None:
        await self.comparer.stop()
        await self.pipeline.stop()

    def ask(self, *, repair: bool = False, tables: list[str] = TABLES) -> v2.PipelineDocument:
        self.number += 1
        asked = Reconcile(number=self.number, repair=repair)
        return self.pipeline.document(tables=TABLES, transforms=MASK, reconciles=dict.fromkeys(tables, asked))

    async def compare(self, *, repair: bool = False, tables: list[str] = TABLES) -> dict[str, ReconcileLine]:
        """Ask the process, which may have to be started, and wait for its answer."""
        asked = self.ask(repair=repair, tables=tables)
        if self.comparer.process is None:
            await self.comparer.start(asked)
        else:
            await self.comparer.send(asked)
        return await self.comparer.until_over(self.number, tables)

    def keys(self) -> set[tuple[object, ...]]:
        return set(
            self.warehouse.execute("SELECT table_name, kind, array_to_string(key, ',') FROM pointsman.reconcile_rows")
        )

    async def settle(self) -> None:
        """Wait until the destination has the last thing that was written at the source."""
        self.shop.execute(
            "INSERT INTO words VALUES ('~', now()::text) ON CONFLICT (word) DO UPDATE SET meaning = excluded.meaning"
        )
        wanted = self.shop.execute("SELECT meaning FROM words WHERE word = '~'")
        await asyncio.to_thread(self._until, wanted)

    def _until(self, wanted: list[tuple[object, ...]]) -> None:
        end = time.monotonic() + SECONDS_MAX
        while self.warehouse.execute("SELECT meaning FROM words WHERE word = '~'") != wanted:
            assert time.monotonic() < end
            time.sleep(0.01)

    def both(self) -> tuple[list[list[tuple[object, ...]]], ...]:
        """Return what each end holds, with the mask on the source's side."""
        queries = [
            "SELECT id, {}, amount::text, note, doc, tags, at FROM orders ORDER BY id",
            'SELECT word, meaning FROM words ORDER BY word COLLATE "C"',
            "SELECT region, part_no, size_mm FROM parts ORDER BY 1, 2",
        ]
        source = [
            self.shop.execute(query.format("CASE WHEN email IS NULL THEN NULL ELSE '***' END")) for query in queries
        ]
        return source, [self.warehouse.execute(query.format("email")) for query in queries]
