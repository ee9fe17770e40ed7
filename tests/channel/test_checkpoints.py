"""Heads of the audit log, kept by nodes: a history that was cut off or written anew does not go on from them."""

import asyncio
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs
from tests.channel.conftest import ControlPlane
from tests.channel.servers import until

from contracts.audit import GENESIS, AuditEntry, Checkpoint, Finding, Verified, entry_hash, verify
from contracts.envelope import EnvelopeError, Purpose, sign
from contracts.keys import KeyPair, Role
from controlplane.audit.chain import AuditChain
from controlplane.projection import ProjectionRunner
from dataplane.link.checkpoints import FILE_NAME, Checkpoints, WentBack, read
from dataplane.link.ledger import entries

TENANT, OTHER = "3f2504e0-4f89-11d3-9a0c-0305e82c3301", "3f2504e0-4f89-11d3-9a0c-0305e82c3302"
KEY, STRANGER = KeyPair.generate(Role.ACCOUNT), KeyPair.generate(Role.ACCOUNT)
TRUSTED = frozenset({KEY.public})
AT = datetime(2026, 3, 4, tzinfo=UTC)


def _chain(length: int, actor: str = "key:a") -> list[AuditEntry]:
    entries: list[AuditEntry] = []
    for number in range(1, length + 1):
        entry = AuditEntry(
            sequence=number,
            event_id=number,
            at="2026-03-04T00:00:00Z",
            kind="Pipeline",
            name="orders",
            type="PipelinePaused",
            actor=actor,
            payload="{}",
            previous=entries[-1].hash if entries else GENESIS,
        )
        entries.append(structs.replace(entry, hash=entry_hash(TENANT, entry)))
    return entries


def _head(entries: list[AuditEntry], key: KeyPair = KEY, tenant: str = TENANT) -> str:
    body = Checkpoint(tenant=tenant, sequence=len(entries), hash=entries[-1].hash, at=AT)
    return sign(body, key, contract=2, purpose=Purpose.CHECKPOINT).decode()


def test_only_what_is_new_and_signed_is_kept(folder: Path) -> None:
    """The same head is written once; a stranger's and another tenant's are refused."""
    kept, chain = Checkpoints(folder), _chain(5)
    assert kept.take(_head(chain[:3]), tenant=TENANT, keys=TRUSTED)
    assert not kept.take(_head(chain[:3]), tenant=TENANT, keys=TRUSTED)
    for head in (_head(chain, STRANGER), _head(chain, tenant=OTHER), "{}"):
        with pytest.raises(EnvelopeError):
            kept.take(head, tenant=TENANT, keys=TRUSTED)
    assert Checkpoints(folder).take(_head(chain), tenant=TENANT, keys=TRUSTED)
    assert [each.checkpoint.sequence for each in read(folder / FILE_NAME)] == [3, 5]


@pytest.mark.parametrize(
    "history",
    [_chain(4), _chain(8, "key:b"), [*_chain(5), *_chain(8, "key:b")[5:]]],
    ids=["a cut tail", "a new history", "the same length"],
)
def test_a_history_of_the_keys_owner_that_does_not_go_on_is_found(folder: Path, history: list[AuditEntry]) -> None:
    """Signed with the true key, hashed anew, and still caught by the heads that a node kept."""
    true = _chain(6)
    kept = Checkpoints(folder)
    for length in (2, 6):
        kept.take(_head(true[:length]), tenant=TENANT, keys=TRUSTED)
    rewritten: list[AuditEntry] = []
    for entry in history:
        linked = structs.replace(entry, previous=rewritten[-1].hash if rewritten else GENESIS)
        rewritten.append(structs.replace(linked, hash=entry_hash(TENANT, linked)))
    heads = [each.sealed for each in read(folder / FILE_NAME)]
    assert isinstance(verify(rewritten, _head(rewritten), KEY.public), Verified)
    found = verify(rewritten, _head(rewritten), KEY.public, kept=heads)
    assert isinstance(found, list)
    assert all(isinstance(each, Finding) for each in found)
    assert isinstance(verify(true, _head(true), KEY.public, kept=heads), Verified)


def test_a_head_that_goes_back_is_kept_and_told(folder: Path) -> None:
    """A lower entry, or another hash for the same one, is evidence: it stays in the file, and once only it is an alarm."""
    kept, chain = Checkpoints(folder), _chain(5)
    kept.take(_head(chain), tenant=TENANT, keys=TRUSTED)
    for other in (_chain(5, "key:b"), _chain(3)):
        with pytest.raises(WentBack):
            kept.take(_head(other), tenant=TENANT, keys=TRUSTED)
        assert not kept.take(_head(other), tenant=TENANT, keys=TRUSTED)
    assert len(read(folder / FILE_NAME)) == 3


def test_the_file_is_bounded_and_still_vouches_for_the_beginning(folder: Path) -> None:
    """When it is full it becomes thinner, never shorter at its end; a torn line swallows nothing."""
    kept, chain = Checkpoints(folder, kept_max=10), _chain(60)
    for length in range(1, 61):
        kept.take(_head(chain[:length]), tenant=TENANT, keys=TRUSTED)
    numbers = [each.checkpoint.sequence for each in read(folder / FILE_NAME)]
    assert len(numbers) <= 10
    assert numbers == sorted(numbers)
    assert numbers[-1] == 60
    assert numbers[0] < 50
    with (folder / FILE_NAME).open("a") as file:
        file.write('{"contract":2,"torn')
    again = Checkpoints(folder, kept_max=10)
    longer = _chain(61)
    assert again.take(_head(longer), tenant=TENANT, keys=TRUSTED)
    assert read(folder / FILE_NAME)[-1].checkpoint.sequence == 61


async def test_a_real_node_is_given_the_heads_and_keeps_them(make_node: Any, control: ControlPlane) -> None:
    """Without anybody asking for them, by its own syncs; what it keeps is what the audit log says, and shows what went back."""
    runner = ProjectionRunner(control.log, control.pool, AuditChain())
    runner.start()
    try:
        assert await asyncio.to_thread(runner.wait_for, control.log.latest(), 10)
        node = await make_node()
        path = node.folder / "link" / FILE_NAME
        await until(lambda: read(path))
        kept = read(path)[-1].checkpoint
        # What the node itself reports lengthens the log meanwhile.
        entry = "SELECT hash FROM audit_entries WHERE tenant = %s AND sequence = %s"
        assert control.rows(entry, node.config.tenant, kept.sequence) == [(kept.hash,)]
    finally:
        runner.stop()
    await node.stop()
    with control.pool.connection() as connection:
        connection.execute("UPDATE audit_heads SET sequence = 1, hash = repeat('0', 64)")
    await node.start()
    await until(
        lambda: any(b"audit_went_back" in bytes(each.sealed) for each in entries(node.folder / "link" / "ledger"))
    )
    assert [each.checkpoint.sequence for each in read(path)][-1] == 1
