"""A change of a pipeline reaches every node of its data plane, by subscription or by sync alone, in the node's version."""

import asyncio
import time
from pathlib import Path
from typing import Any

from tests.channel.conftest import ControlPlane
from tests.channel.servers import Leaf, until

from contracts import v1, v2
from controlplane.channel.epoch import raise_epoch
from controlplane.channel.keys import rotate_signing
from controlplane.projection import rebuild
from dataplane.link.store import DocumentStore

MASK = v2.MaskTransform(table="public.orders", columns=["email"])
DROP = v2.DropTransform(table="public.orders", columns=["notes"])


async def test_a_node_holds_what_its_data_plane_must_hold(control: ControlPlane, make_node: Any) -> None:
    """Pipelines arrive with the connections that they use, and connections that nobody uses do not."""
    control.put_connection("unused")
    control.put_pipeline("orders")
    node = await make_node()
    await until(lambda: node.generations() == {"orders": 1})
    assert set(node.store.connections()) == {"shop", "warehouse"}
    assert node.store.connections()["shop"].secrets == {"password": "file:shop_password"}
    control.put_pipeline("orders", ["public.orders", "public.items"])
    control.put_pipeline("customers")
    await until(lambda: node.generations() == {"orders": 2, "customers": 1})
    control.delete_pipeline("orders")
    await until(lambda: node.generations() == {"customers": 1})


async def test_a_change_arrives_by_subscription(control: ControlPlane, make_node: Any) -> None:
    """A linked node gets a change within milliseconds, long before its next sync, and answers it with a status."""
    control.put_pipeline("orders")
    node = await make_node()
    await until(lambda: node.generations() == {"orders": 1})
    took = []
    for number in range(2, 8):
        node.link.changed.clear()
        start = time.monotonic()
        control.put_pipeline("orders", [f"public.orders_{number}"])
        await asyncio.wait_for(node.link.changed.wait(), 5)
        assert node.generations() == {"orders": number}
        node.statuses = [node.status("orders", number)]
        node.link.beat()
        await until(lambda number=number: number in {each.observed_generation for _, _, each in control.statuses})
        took.append(time.monotonic() - start)
    assert min(took) < 0.5


async def test_documents_arrive_by_sync_alone(control: ControlPlane, make_node: Any) -> None:
    """A node that hears no publication still gets everything when it asks, over as many replies as it takes."""
    for number in range(40):
        control.put_pipeline(f"pipe-{number}", [f"public.table_{number}_{column}" for column in range(100)])
    control.channel._publisher._send = lambda subject, data: None
    node = await make_node()
    await until(lambda: len(node.generations()) == 40)
    await control.projected(control.pause("pipe-7"))
    node.link._look_again.set()
    await until(lambda: node.generations()["pipe-7"] == 2)


async def test_an_older_node_gets_what_its_version_can_say(control: ControlPlane, make_node: Any) -> None:
    """A node pinned to version 1 runs version 1's document, and keeps it when a newer one needs version 2."""
    control.put_pipeline("orders", transforms=[MASK])
    node = await make_node(contract=1)
    await until(lambda: node.generations() == {"orders": 1})
    stored = node.store.pipelines()["orders"]
    assert isinstance(stored.document, v1.PipelineDocument)
    assert stored.document.transform == MASK
    control.put_pipeline("orders", transforms=[MASK, DROP])
    await until(lambda: "orders" in node.store.needs_upgrade())
    assert node.store.needs_upgrade()["orders"].contract == 2
    assert node.store.pipelines()["orders"] == stored
    assert DocumentStore(node.folder / "documents").pipelines()["orders"] == stored
    node.statuses = [node.status("orders", 1)]
    node.link.beat()
    await until(lambda: any(isinstance(status, v2.PipelineStatus) for _, _, status in control.statuses))


async def test_a_new_node_boots_from_the_leaf_with_the_hub_away(
    control: ControlPlane, make_node: Any, leaf: Leaf
) -> None:
    """What one node has accepted lies in the leaf, and another takes it from there after checking it."""
    control.put_pipeline("orders")
    first = await make_node()
    await until(lambda: first.generations() == {"orders": 1})
    client = first.link.leaf
    await until_async(lambda: _has_key(client, "v2.index.index"))
    control.hub.kill()
    second = await make_node("node-2")
    await until(lambda: second.generations() == {"orders": 1})
    control.hub.start()


async def test_the_leafs_copy_is_made_again_when_it_is_deleted(control: ControlPlane, make_node: Any) -> None:
    """Deleting the bucket while the node runs costs nothing: it is there again with the next sync."""
    control.put_pipeline("orders")
    node = await make_node()
    await until(lambda: node.generations() == {"orders": 1})
    await until_async(lambda: _has_key(node.link.leaf, "v2.index.index"))
    await node.link.leaf.jetstream().delete_key_value("documents")
    node.link._look_again.set()
    await until_async(lambda: _has_key(node.link.leaf, "v2.pipeline.orders"))


async def test_a_rebuild_and_a_new_signing_key_change_no_digest(
    control: ControlPlane, make_node: Any, folder: Path
) -> None:
    """Documents follow from the log alone, whatever signs them; nodes accept the new key because the root vouches."""
    control.put_pipeline("orders", transforms=[MASK])
    control.put_pipeline("items")
    control.pause("orders")
    node = await make_node()
    await until(lambda: node.generations() == {"orders": 2, "items": 1})
    sql = "SELECT contract, kind, name, generation, digest, body FROM channel_documents ORDER BY 1, 2, 3"
    before = control.rows(sql)
    await control.stop()
    await asyncio.to_thread(rebuild, control.log, control.pool, control.channel.projections())
    assert control.rows(sql) == before
    rotate_signing(control.hub.keys_folder)
    await control.start()
    after = control.rows(sql)
    same = [row for row in before if row[1] not in ("trust", "index")]
    assert [row for row in after if row[1] not in ("trust", "index")] == same
    await until(lambda: node.store.trust() is not None and node.store.trust().generation == 2)
    control.put_pipeline("items", ["public.more"])
    await until(lambda: node.generations() == {"orders": 2, "items": 2})


async def test_a_restored_control_plane_sees_that_nodes_are_ahead(control: ControlPlane, make_node: Any) -> None:
    """Without a new epoch it can change nothing and says so; with one it issues everything again, and nodes obey."""
    control.put_pipeline("orders")
    control.put_pipeline("orders", ["public.orders", "public.items"])
    node = await make_node()
    await until(lambda: node.generations() == {"orders": 2})
    await control.stop()
    for table in ("stored_events", "snapshots", "catalogue", "catalogue_guards"):
        condition = {
            "stored_events": "notification_id > (SELECT min(notification_id) FROM stored_events WHERE topic LIKE"
            " 'PipelineConfigured%')",
        }.get(table, "true")
        control.rows(f"DELETE FROM {table} WHERE {condition} RETURNING 1")
    control.rows("UPDATE projection_positions SET position = 0 RETURNING 1")
    for table in control.channel._publisher.tables:
        control.rows(f"DELETE FROM {table} RETURNING 1")
    control.enrol_node("node-1", node.key.public)
    await control.start()
    node.link._look_again.set()
    await until(lambda: control.channel.notes())
    assert "raise" in control.channel.notes()[0] or "epoch" in control.channel.notes()[0]
    assert node.generations() == {"orders": 2}
    await control.stop()
    with control.pool.connection() as connection:
        assert raise_epoch(connection) == 2
    await control.start()
    await until(lambda: node.generations() == {"orders": 1})
    index = node.store.index()
    assert index is not None
    assert index.epoch == 2
    await until(lambda: not control.channel.notes())


async def _has_key(client: Any, key: str) -> bool:
    from nats.js.errors import Error

    try:
        bucket = await client.jetstream().key_value("documents")
        return bool((await bucket.get(key)).value)
    except Error:
        return False


async def until_async(condition: Any, seconds: float = 15.0) -> None:
    end = time.monotonic() + seconds
    while not await condition():
        assert time.monotonic() < end, "the state that the test waits for did not come"
        await asyncio.sleep(0.02)
