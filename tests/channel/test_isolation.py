"""What the hub lets tenants, data planes and accounts do: each its own, and nothing else."""

import asyncio
import time
from pathlib import Path
from typing import Any

import nats.errors
import pytest
from tests.channel.conftest import closing
from tests.channel.servers import OTHER_TENANT, TENANT, Hub, Leaf, linked, until

from contracts.keys import KeyPair, Role


async def _answer_everything(hub: Hub) -> tuple[Any, list[str]]:
    """Connect as the control plane and answer whatever arrives; return the subjects that the server wrote."""
    client = await hub.connect(*hub.accounts.control_user())
    seen: list[str] = []

    async def answer(message: Any) -> None:
        seen.append(message.subject)
        if message.reply:
            await message.respond(b"taken")

    await client.subscribe("tenant.*.up.>", cb=answer)
    await client.flush()
    return client, seen


async def _ask(client: Any, subject: str, seconds: float = 10.0) -> bytes:
    end = time.monotonic() + seconds
    while True:
        try:
            reply = await client.request(subject, b"", timeout=1)
            return bytes(reply.data)
        except (nats.errors.NoRespondersError, nats.errors.TimeoutError):
            assert time.monotonic() < end, f"nobody answers {subject}"
            await asyncio.sleep(0.02)


async def test_the_server_writes_the_tenant_into_the_subject(folder: Path) -> None:
    """The control plane reads from the subject alone which tenant's account a message came from."""
    async with linked(folder) as (hub, leaf):
        control, seen = await _answer_everything(hub)
        async with closing(control), closing(await leaf.ctl_client()) as client:
            assert await _ask(client, "up.v2.local.node-1.sync") == b"taken"
            assert seen == [f"tenant.{hub.accounts.account_key(TENANT)}.up.v2.local.node-1.sync"]


async def test_another_tenants_subjects_cannot_be_reached(folder: Path) -> None:
    """Neither by naming the other's account, nor by the other's documents, nor from another data plane."""
    async with linked(folder) as (hub, _):
        await hub.push(hub.accounts.tenant_jwt(OTHER_TENANT, {}))
        other = Leaf(folder / "other", hub.leaf_url, credentials=None)
        other.write_credentials(hub.accounts.leaf_credentials(OTHER_TENANT, "local", other.key.public))
        other.start()
        try:
            control, seen = await _answer_everything(hub)
            async with closing(control), closing(await other.ctl_client()) as client:
                await _ask(client, "up.v2.local.node-1.sync")
                theirs = await client.subscribe("desired.v2.local.>")
                await client.flush()
                account, other_account = hub.accounts.account_key(TENANT), hub.accounts.account_key(OTHER_TENANT)
                while not theirs.pending_msgs:  # the leaf tells the hub of the subscription in its own time
                    await control.publish(f"tenant.{account}.desired.v2.local.index", b"for the first")
                    await control.publish(f"tenant.{other_account}.desired.v2.local.index", b"for the other")
                    await asyncio.sleep(0.02)
                assert (await theirs.next_msg(5)).data == b"for the other"
                with pytest.raises(nats.errors.TimeoutError):
                    await client.request(f"tenant.{account}.up.v2.local.node-1.sync", b"", timeout=0.3)
                assert not [subject for subject in seen if account in subject]
        finally:
            other.kill()


async def test_a_leaf_speaks_for_its_own_data_plane_only(folder: Path) -> None:
    """A leaf whose configuration was changed still cannot send or receive as another data plane of its tenant."""
    async with linked(folder) as (hub, leaf):
        leaf.kill()
        leaf.file.write_text(leaf.file.read_text().replace("v2.local.>", ">").replace("_INBOX.local.>", "_INBOX.>"))
        leaf.start()
        control, seen = await _answer_everything(hub)
        async with closing(control), closing(await leaf.ctl_client()) as client:
            await _ask(client, "up.v2.local.node-1.sync")
            with pytest.raises((nats.errors.TimeoutError, nats.errors.NoRespondersError)):
                await client.request("up.v2.elsewhere.node-1.sync", b"", timeout=0.3)
            assert not [subject for subject in seen if "elsewhere" in subject]


async def test_buffered_records_cannot_cross_to_the_hub(folder: Path) -> None:
    """DATA has no remote: what a worker publishes reaches nobody above, whatever the subject."""
    async with linked(folder) as (hub, leaf):
        control, seen = await _answer_everything(hub)
        async with closing(control), closing(await leaf.ctl_client()) as agent:
            await _ask(agent, "up.v2.local.node-1.sync")
            async with closing(await leaf.data_client()) as worker:
                with pytest.raises((nats.errors.NoRespondersError, nats.errors.TimeoutError)):
                    await worker.request("up.v2.local.node-1.report", b"a row", timeout=0.3)
                with pytest.raises((nats.errors.NoRespondersError, nats.errors.TimeoutError)):
                    await worker.request("buffer.pipe.sets", b"a row", timeout=0.3)
            assert len(seen) == 1


async def test_headers_do_not_say_who_speaks_and_queues_are_no_way_around(folder: Path) -> None:
    """A leaf that forges the hub's own headers is still itself, and one in the control plane's queue group hears nothing."""
    async with linked(folder) as (hub, leaf):
        control, seen = await _answer_everything(hub)
        async with closing(control), closing(await leaf.ctl_client()) as client:
            await _ask(client, "up.v2.local.node-1.sync")
            other = hub.accounts.account_key(OTHER_TENANT)
            forged = {"Nats-Request-Info": f'{{"acc":"{other}"}}', "Nats-Service-Account": other}
            reply = await client.request("up.v2.local.node-1.sync", b"", timeout=5, headers=forged)
            assert reply.data == b"taken"
            assert {subject.split(".")[1] for subject in seen} == {hub.accounts.account_key(TENANT)}
            leaf.kill()
        leaf.file.write_text(leaf.file.read_text().replace('"desired.v2.local.>"', '">"'))
        leaf.start()
        heard: list[str] = []

        async def hear(message: Any) -> None:
            heard.append(message.subject)

        control, seen = await _answer_everything(hub)
        async with closing(control), closing(await leaf.ctl_client()) as client:
            for subject in ("tenant.>", "$SYS.>", "desired.v2.elsewhere.>"):
                await client.subscribe(subject, queue="control-plane", cb=hear)
            await client.flush()
            account = hub.accounts.account_key(TENANT)
            for _ in range(5):
                await _ask(client, "up.v2.local.node-1.sync")
                await control.publish(f"tenant.{account}.desired.v2.elsewhere.index", b"not for this plane")
            await control.flush()
            assert len(seen) >= 5, "each went up to the control plane"
            assert heard == []


async def test_a_tenants_users_cannot_connect_to_the_hub_directly(folder: Path) -> None:
    """A leaf's credentials open the listener for leaves and no other."""
    async with linked(folder) as (hub, leaf):
        token = hub.accounts.leaf_credentials(TENANT, "local", leaf.key.public)
        with pytest.raises(nats.errors.Error):
            await hub.connect(token, leaf.key)


async def test_a_leaf_starts_and_serves_with_the_hub_absent(folder: Path) -> None:
    """No hub, no credentials: local JetStream serves at once; credentials that appear later link within seconds."""
    hub = Hub(folder)
    leaf = Leaf(folder / "leaf", hub.leaf_url, credentials=None)
    started = time.monotonic()
    leaf.start()
    try:
        async with closing(await leaf.ctl_client()) as client:
            bucket = await client.jetstream().create_key_value(bucket="documents")
            await bucket.put("key", b"value")
            assert time.monotonic() - started < 5
            hub.start()
            await hub.push(hub.accounts.tenant_jwt(TENANT, {}))
            leaf.write_credentials(hub.accounts.leaf_credentials(TENANT, "local", leaf.key.public))
            control, _ = await _answer_everything(hub)
            async with closing(control):
                assert await _ask(client, "up.v2.local.node-1.sync") == b"taken"
    finally:
        leaf.kill()
        hub.kill()


async def test_claims_work_within_milliseconds_and_revocation_cuts_a_live_leaf(folder: Path) -> None:
    """A pushed account is usable at once; a revoked leaf is cut while it is linked, and another never is."""
    async with linked(folder) as (hub, leaf):
        took = []
        for _ in range(5):
            start = time.perf_counter()
            (answer,) = await hub.push(hub.accounts.tenant_jwt(OTHER_TENANT, {}))
            took.append(time.perf_counter() - start)
            assert b'"code":200' in answer
        assert min(took) < 0.2
        control, seen = await _answer_everything(hub)
        async with closing(await leaf.ctl_client()) as client:
            await _ask(client, "up.v2.local.node-1.sync")
        cuts = leaf.log.count("Leafnode connection closed")
        await hub.push(hub.accounts.tenant_jwt(TENANT, {KeyPair.generate(Role.USER).public: int(time.time())}))
        async with closing(await leaf.ctl_client()) as client:
            await _ask(client, "up.v2.local.node-1.sync")
        assert leaf.log.count("Leafnode connection closed") == cuts, "claims that revoke another cut this leaf"
        async with closing(control), closing(await leaf.ctl_client()) as client:
            await _ask(client, "up.v2.local.node-1.sync")
            await hub.push(hub.accounts.tenant_jwt(TENANT, {leaf.key.public: int(time.time()) + 1}))
            await until(lambda: "Leafnode connection closed" in leaf.log or "Authorization" in leaf.log)
            count = len(seen)
            with pytest.raises((nats.errors.NoRespondersError, nats.errors.TimeoutError)):
                await client.request("up.v2.local.node-1.sync", b"", timeout=0.5)
            assert len(seen) == count
