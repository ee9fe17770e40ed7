"""Both ends of a pipeline are compared while it runs: what was planted is found and mended, and nothing else is said."""

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest
from tests.dataplane.buffers.leaf import Leaf
from tests.dataplane.reconcile.scene import ORDERS, PARTS, ROWS, TABLES, WORDS, Scene

from contracts.codes import Code
from contracts.reconciling import ReconcileState
from dataplane.policy import MaskRule, MaskWay


@pytest.fixture(scope="module")
def leaf(tmp_path_factory) -> Iterator[Leaf]:
    leaf = Leaf(tmp_path_factory.mktemp("leaf"))
    leaf.start()
    yield leaf
    leaf.stop()


@pytest.fixture(params=["direct", pytest.param("jetstream", marks=pytest.mark.system)])
async def scene(request, folder, make_database) -> AsyncIterator[Scene]:  # type: ignore[no-untyped-def]
    """A pipeline that streams three tables, one with a masked column, under no load yet."""
    scene = Scene(folder, make_database, request.getfixturevalue("leaf") if request.param == "jetstream" else None)
    await scene.start()
    yield scene
    scene.load.stop()
    await scene.stop()


def plant(scene: Scene) -> set[tuple[str, str, str]]:
    """Change the destination behind the pipeline's back; return what that makes of which rows."""
    change = scene.warehouse.execute
    change("DELETE FROM orders WHERE id IN (3100, 3101)")
    change("UPDATE orders SET note = '' WHERE id = 3102")
    change("UPDATE orders SET note = NULL WHERE id = 3103")
    change("UPDATE orders SET amount = amount * 1.0 WHERE id = 3105")
    change("UPDATE orders SET doc = overlay(doc placing 'X' from 3000) WHERE id = 3200")
    change("UPDATE orders SET tags = '{NULL}' WHERE id = 3106")
    change("UPDATE orders SET email = '****' WHERE id = 3107")
    change("INSERT INTO orders (id, email) VALUES (-5, '***'), (900000, NULL)")
    change("DELETE FROM words WHERE word IN ('ä', '')")
    change("UPDATE words SET meaning = 'b' WHERE word = 'B'")
    change("UPDATE words SET only_here = 7 WHERE word = 'z'")
    change("INSERT INTO words VALUES ('Ä', 'Ä'), ('aB', 'aB')")
    change("DELETE FROM parts WHERE part_no = 'P8'")
    change("INSERT INTO parts VALUES (99, 'P8', 1)")
    change("UPDATE parts SET size_mm = 0 WHERE part_no IN ('P9', 'P10')")
    return {
        *((ORDERS, "missing", key) for key in ("3100", "3101")),
        *((ORDERS, "different", key) for key in ("3102", "3103", "3105", "3106", "3107", "3200")),
        *((ORDERS, "extra", key) for key in ("-5", "900000")),
        *((WORDS, "missing", key) for key in ("ä", "")),
        (WORDS, "different", "B"),
        *((WORDS, "extra", key) for key in ("Ä", "aB")),
        (PARTS, "missing", "1,P8"),
        (PARTS, "extra", "99,P8"),
        *((PARTS, "different", key) for key in ("2,P9", "3,P10")),
    }


@pytest.mark.system
async def test_exactly_what_was_planted_is_found_and_mended_under_a_full_load(scene: Scene) -> None:
    """No row is called different for being on its way; a mended pipeline ends equal, value for value."""
    scene.load.start()
    lines = await scene.compare()
    assert {line.state for line in lines.values()} == {ReconcileState.DONE}, scene.comparer.log.read_text()[-4000:]
    assert scene.keys() == set(), lines
    planted = plant(scene)
    lines = await scene.compare()
    assert scene.keys() == planted
    assert {table: (line.state, line.rows_repaired) for table, line in lines.items()} == dict.fromkeys(
        TABLES, (ReconcileState.DONE, 0)
    )
    orders = lines[ORDERS]
    assert (orders.rows_missing, orders.rows_different, orders.rows_extra) == (2, 6, 2)
    lines = await scene.compare(repair=True)
    assert scene.keys() == planted
    assert sum(line.rows_repaired for line in lines.values()) == len(planted)
    scene.load.stop()
    await scene.settle()
    source, destination = scene.both()
    assert source == destination
    assert scene.load.transactions > 100


@pytest.mark.system
async def test_a_repair_that_is_killed_goes_on_and_counts_nothing_twice(scene: Scene) -> None:
    """kill -9 again and again while half of a table is missing; both halves of the pipeline are killed too."""
    scene.load.start()
    scene.warehouse.execute("DELETE FROM orders WHERE id > 3000 AND id % 2 = 0")
    scene.warehouse.execute("INSERT INTO orders (id) SELECT n FROM generate_series(10001, 11000) n")
    await scene.comparer.start(scene.ask(repair=True))
    victims = [scene.comparer, *scene.pipeline.workers]
    for number in range(4):
        await asyncio.sleep(0.15)
        victim = victims[number % len(victims)]
        await victim.kill()
        await victim.start()
    line = (await scene.comparer.until_over(scene.number))[ORDERS]
    assert (line.state, line.rows_missing, line.rows_extra, line.rows_different) == (ReconcileState.DONE, 500, 1000, 0)
    assert line.rows_repaired == 1500
    scene.load.stop()
    await scene.settle()
    source, destination = scene.both()
    assert source == destination


async def test_a_table_without_a_whole_copy_is_refused(scene: Scene) -> None:
    """The code says so, and an answer that is known is given again without another look."""
    scene.warehouse.execute("UPDATE pointsman.checkpoints SET tables_copied = array_remove(tables_copied, %s)", ORDERS)
    line = (await scene.compare(tables=[ORDERS]))[ORDERS]
    assert (line.state, line.code) == (ReconcileState.FAILED, Code.RECONCILE_NOT_COPIED)
    await scene.comparer.stop()
    await scene.comparer.start()
    again = (await scene.comparer.until_over(scene.number, [ORDERS]))[ORDERS]
    assert (again.state, again.code) == (ReconcileState.FAILED, Code.RECONCILE_NOT_COPIED)


async def test_the_customers_policy_holds_for_what_is_compared(scene: Scene) -> None:
    """A column that may only leave masked is not even staged at the destination; where it is masked, all goes on."""
    scene.comparer.masks = [MaskRule(tables=[ORDERS], columns=["note"], methods=(MaskWay.REDACT,))]
    line = (await scene.compare(tables=[ORDERS]))[ORDERS]
    assert (line.state, line.code, line.rows_compared) == (ReconcileState.FAILED, Code.POLICY_MASK_MISSING, 0)
    scene.comparer.masks = [MaskRule(tables=[ORDERS], columns=["email"], methods=(MaskWay.REDACT,))]
    line = (await scene.compare(tables=[ORDERS]))[ORDERS]
    assert (line.state, line.rows_compared) == (ReconcileState.DONE, ROWS)
