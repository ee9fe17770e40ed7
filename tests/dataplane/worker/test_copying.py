"""The copy of tables through whole workers that are killed at any chunk, direct and through a buffer, under writes."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from random import Random

import psycopg
import pytest
from msgspec import structs
from tests.dataplane.buffers.leaf import Leaf
from tests.dataplane.worker.test_process import Pipeline

from contracts.v2 import Phase, PipelineDocument, SnapshotSettings

WIDE = "public.wide"
ROWS = 20_000
CHUNK_ROWS = 1000
LONG = "repeat(md5(n::text), 80)"

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def leaf(tmp_path_factory) -> Iterator[Leaf]:  # type: ignore[no-untyped-def]
    leaf = Leaf(tmp_path_factory.mktemp("leaf"))
    leaf.start()
    yield leaf
    leaf.stop()


class Copied(Pipeline):
    """A pipeline that copies in small chunks."""

    def document(self, **changes) -> PipelineDocument:  # type: ignore[no-untyped-def]
        made = super().document(**{"tables": [WIDE], **changes})
        settings = SnapshotSettings(parallelism=2, chunk_rows=CHUNK_ROWS)
        return structs.replace(made, source=structs.replace(made.source, snapshot=settings))

    def rows(self, database: object) -> list[tuple[object, ...]]:
        return database.execute("SELECT id, name, md5(long) FROM wide ORDER BY id")  # type: ignore[attr-defined, no-any-return]

    def cursor(self) -> dict[str, object]:
        with contextlib.suppress(psycopg.errors.UndefinedTable, psycopg.errors.UndefinedColumn):
            found = self.warehouse.execute("SELECT cursors -> %s FROM pointsman.checkpoints", WIDE)
            return found[0][0] or {} if found else {}  # type: ignore[return-value]
        return {}


@pytest.fixture(params=["direct", "jetstream"])
async def pipeline(request, folder, make_database) -> AsyncIterator[Copied]:  # type: ignore[no-untyped-def]
    """A table with values out of line, 20 chunks long."""
    leaf = request.getfixturevalue("leaf") if request.param == "jetstream" else None
    pipeline = Copied(folder, make_database, leaf)
    pipeline.shop.execute("CREATE TABLE wide (id int PRIMARY KEY, name text, long text)")
    pipeline.shop.execute("ALTER TABLE wide ALTER COLUMN long SET STORAGE EXTERNAL")
    pipeline.shop.execute(f"INSERT INTO wide SELECT n, 'n', {LONG} FROM generate_series(1, {ROWS}) n")
    yield pipeline
    await pipeline.stop()


async def test_a_copy_that_is_killed_again_and_again_goes_on_and_ends_equal(pipeline: Copied) -> None:
    """kill -9 of each half in turn, while keys change, rows come and go, and long values stay as they are."""
    random = Random(5)
    writing = True

    async def write() -> None:
        while writing:
            key, other = random.randint(1, ROWS + 100), random.randint(1, ROWS + 100)
            for statement in (
                f"UPDATE wide SET name = name || '+' WHERE id BETWEEN {key} AND {key + 3}",
                f"DELETE FROM wide WHERE id = {other}",
                f"UPDATE wide SET id = {other} WHERE id = {key}",
                f"INSERT INTO wide SELECT n, 'new', {LONG} FROM generate_series({key}, {key}) n ON CONFLICT DO NOTHING",
            ):
                await asyncio.to_thread(pipeline.shop.execute, statement)

    writer = asyncio.create_task(write())
    await pipeline.start()
    chunks = 0
    for number in range(8):
        async with asyncio.timeout(30):
            while int(str(pipeline.cursor().get("chunks", 0))) <= chunks and not pipeline.cursor().get("read"):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        reached = int(str(pipeline.cursor()["chunks"]))
        assert reached >= chunks, "a copy started over"
        chunks = reached
        victim = pipeline.workers[number % len(pipeline.workers)]
        await victim.kill()
        await victim.start()
    await pipeline.until(Phase.STREAMING)
    writing = False
    await writer
    assert pipeline.cursor()["copy"] == 1
    async with asyncio.timeout(60):
        while pipeline.rows(pipeline.shop) != pipeline.rows(pipeline.warehouse):  # noqa: ASYNC110 - no server tells
            await asyncio.sleep(0.1)
