"""The leaf's two local accounts, opened with the keys that lie beside it, as its owner could."""

import json
from pathlib import Path

import nats
from nats.js.errors import NotFoundError
from tests.system.stack import Stack


def _way_in(stack: Stack, account: str, node: str) -> tuple[str, str]:
    config = json.loads((stack.folder / "nodes" / node / "node.json").read_bytes())
    return config["leaf_url"], Path(config[f"{account.lower()}_seed_file"]).read_text().strip()


async def connect(stack: Stack, account: str, node: str = "node-1") -> nats.NATS:
    """Connect to the leaf as the local user of `account`, CTL or DATA."""
    url, seed = _way_in(stack, account, node)
    # CTL's user hears answers below its data plane's own prefix only.
    inbox = f"_INBOX.{stack.state['data_plane']}" if account == "CTL" else "_INBOX"
    return await nats.connect(url, nkeys_seed_str=seed, inbox_prefix=inbox, connect_timeout=5, allow_reconnect=False)


async def delete_everything(stack: Stack, account: str) -> list[str]:
    """Delete every stream of `account`, and with them its buckets. Return their names."""
    client = await connect(stack, account)
    try:
        manager = client.jsm()
        names = [info.config.name for info in await manager.streams_info()]
        for name in names:
            try:
                await manager.delete_stream(name)
            except NotFoundError:
                continue
        return [name for name in names if name]
    finally:
        await client.close()


async def messages_held(stack: Stack, account: str) -> int:
    """Return how many messages the streams of `account` hold."""
    client = await connect(stack, account)
    try:
        return sum(info.state.messages for info in await client.jsm().streams_info())
    finally:
        await client.close()
