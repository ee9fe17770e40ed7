"""A change of a pipeline reaches every node of its data plane, by subscription or by sync alone, in the node's version."""

import asyncio
import time
from typing import Any

from tests.channel.conftest import ControlPlane
from tests.channel.servers import until

from contracts import v2


async def test_a_node_holds_what_its_data_plane_must_hold(control: ControlPlane, make_node: Any) -> None:
    """Pipelines arrive with the connections that they use, and connections that nobody uses do not."""
    control.put_connection("unused")
    control.put_pipeline("orders")
    node = await make_node()
    await until(lambda: node.generations() == {"orders": 1})
    assert set(node.store.connections()) == {"shop", "warehouse"}
    assert node.store.connections()["shop"].secrets == {"password": "file:shop_password"}


async def test_a_change_arrives_by_subscription(control: ControlPlane, make_node: Any) -> None:
    """A node that is linked gets a change within milliseconds, long before its next sync."""
    control.put_pipeline("orders")
    node = await make_node()
    await until(lambda: node.generations() == {"orders": 1})
    node.link.changed.clear()
    start = time.monotonic()
    control.pause("orders")
    await asyncio.wait_for(node.link.changed.wait(), 5)
    assert time.monotonic() - start < 2
    assert node.store.pipelines()["orders"].document.run is v2.RunState.PAUSED
