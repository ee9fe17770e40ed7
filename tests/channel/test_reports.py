"""What the control plane believes of what nodes say, and that it takes each report once."""

import asyncio
from datetime import UTC, datetime
from typing import Any

import msgspec
import nats.errors
import pytest
from tests.channel.conftest import ControlPlane, TestNode, closing
from tests.channel.servers import Leaf, until

from contracts import v2
from contracts.checks import Check, Outcome
from contracts.codes import Code
from contracts.envelope import Purpose, sign
from contracts.keys import KeyPair, Role
from controlplane.channel.service import NodeSilent


def _error(count: int = 1) -> v2.ErrorReport:
    return v2.ErrorReport(code=Code.WORKER_EXITED, at=datetime.now(UTC), count=count, pipeline="orders")


def _seal(
    node: str, key: KeyPair, message: v2.AnyUp, *, sequence: int = 1_000_000, signer: KeyPair | None = None
) -> bytes:
    report = v2.Report(node=node, key=key.public, sequence=sequence, message=message)
    return sign(report, signer or key, contract=2, purpose=Purpose.REPORT)


async def _send(client: Any, node: str, envelope: bytes, plane: str = "local") -> v2.Receipt:
    reply = await client.request(f"up.v2.{plane}.{node}.report", envelope, timeout=3)
    return msgspec.json.decode(reply.data, type=v2.Receipt)


async def test_a_report_is_taken_once_however_often_it_comes(control: ControlPlane, make_node: Any) -> None:
    """Every copy gets a receipt, and the tables hold it once."""
    node = await make_node()
    await until(lambda: node.link.synced_at is not None)
    envelope = _seal("node-1", node.key, _error(3))
    receipts = await asyncio.gather(*(_send(node.link.leaf, "node-1", envelope) for _ in range(5)))
    assert [receipt.accepted for receipt in receipts] == [True] * 5
    assert control.rows("SELECT node, code, pipeline, count FROM node_errors") == [
        ("node-1", "worker_exited", "orders", 3)
    ]


async def test_no_key_speaks_for_another_node(control: ControlPlane, make_node: Any) -> None:
    """Node B's valid signature under node A's name, subject or both is refused, and so is a stranger's."""
    node, other = await make_node(), await make_node("node-2")
    await until(lambda: node.link.synced_at is not None and other.link.synced_at is not None)
    stranger = KeyPair.generate(Role.USER)
    forged = [
        ("node-1", _seal("node-2", other.key, _error())),
        ("node-1", _seal("node-1", other.key, _error())),
        ("node-1", _seal("node-1", node.key, _error(), signer=other.key)),
        ("node-1", _seal("node-1", stranger, _error())),
        ("node-1", b'{"contract":2}'),
    ]
    for subject_node, envelope in forged:
        receipt = await _send(other.link.leaf, subject_node, envelope)
        assert not receipt.accepted
        assert receipt.code in ("bad_signature", "malformed")
    assert control.rows("SELECT 1 FROM node_errors") == []


async def test_a_node_speaks_for_its_own_data_plane_only(control: ControlPlane, make_node: Any, folder: Any) -> None:
    """A node's report that comes through another data plane's leaf is refused."""
    node = await make_node()
    control.create_plane("elsewhere")
    leaf = await control.start_leaf(folder / "elsewhere", name="elsewhere")
    try:
        async with closing(await leaf.ctl_client()) as client:
            envelope = _seal("node-1", node.key, _error())
            for _ in range(100):
                try:
                    receipt = await _send(client, "node-1", envelope, "elsewhere")
                    break
                except nats.errors.NoRespondersError:
                    await asyncio.sleep(0.05)
            assert receipt.code == "other_data_plane"
            assert control.rows("SELECT 1 FROM node_errors") == []
    finally:
        leaf.kill()


async def test_a_revoked_node_is_not_believed(control: ControlPlane, make_node: Any) -> None:
    """Neither its reports nor its syncs, from the moment of the revocation."""
    node = await make_node()
    await until(lambda: node.link.synced_at is not None)
    control.revoke_node("node-1")
    await control.projected(control.log.latest())
    receipt = await _send(node.link.leaf, "node-1", _seal("node-1", node.key, _error()))
    assert (receipt.accepted, receipt.code) == (False, "node_revoked")
    synced = node.link.synced_at
    control.put_pipeline("orders")
    request = _seal("node-1", node.key, v2.SyncRequest())
    reply = await node.link.leaf.request("up.v2.local.node-1.sync", request, timeout=3)
    assert msgspec.json.decode(reply.data, type=v2.Receipt).code == "node_revoked"
    assert node.link.synced_at == synced


async def test_statuses_become_events_and_telemetry_does_not(control: ControlPlane, make_node: Any) -> None:
    """A transition is an event once; the heartbeats around it renew tables only."""
    control.put_pipeline("orders")
    node = await make_node()
    await until(lambda: node.generations() == {"orders": 1})
    node.statuses = [node.status("orders", 1)]
    for _ in range(3):
        node.link.beat()
        await asyncio.sleep(0.06)
    await until(lambda: control.rows("SELECT 1 FROM telemetry_pipelines"))
    await node.link.send_fact(node.statuses[0])
    await until(lambda: node.link.facts_waiting == 0)
    assert control.rows("SELECT count(*) FROM stored_events WHERE topic LIKE 'PlacementReported%'") == [(1,)]
    ((numbers,),) = control.rows("SELECT numbers FROM telemetry_pipelines WHERE pipeline = 'orders'")
    assert numbers["rows_total"] == 7
    ((contract, digest),) = control.rows("SELECT contract, index_digest FROM telemetry_nodes WHERE node = 'node-1'")
    assert (contract, digest) == (2, node.store.index_digest)


async def test_a_heartbeat_played_again_renews_nothing(control: ControlPlane, make_node: Any) -> None:
    """Whoever replays a node's old heartbeat cannot make it look alive."""
    node = await make_node()
    await until(lambda: control.rows("SELECT 1 FROM telemetry_nodes"))
    await node.stop()
    replayed = _seal("node-1", node.key, node.heartbeat(), sequence=1)
    ((before,),) = control.rows("SELECT at FROM telemetry_nodes")
    async with closing(await _client_of(node)) as client:
        await client.publish("up.v2.local.node-1.heartbeat", replayed)
        await _send(client, "node-1", _seal("node-1", node.key, _error()))
    taken = control.channel._metrics.reports.labels(kind="heartbeat", result="taken")
    await until(lambda: taken._value.get() >= 1)
    assert control.rows("SELECT at FROM telemetry_nodes") == [(before,)]


async def _client_of(node: TestNode) -> Any:
    import nats

    return await nats.connect(
        node.config.leaf_url, nkeys_seed=node.config.ctl_seed_file, inbox_prefix="_INBOX.local.test"
    )


async def test_schemas_seen_are_kept_by_table(control: ControlPlane, make_node: Any) -> None:
    """The newest description of a table is what the control plane knows of it."""
    node = await make_node()
    for columns in ([("id", "bigint")], [("id", "bigint"), ("total", "numeric")]):
        seen = [v2.ColumnSeen(name=name, type=kind, key=name == "id", nullable=False) for name, kind in columns]
        await node.link.send_fact(v2.SchemaSeen(pipeline="orders", table="public.orders", columns=seen))
    await until(lambda: node.link.facts_waiting == 0)
    ((table, kept),) = control.rows('SELECT "table", columns FROM schemas_seen')
    assert table == "public.orders"
    assert [column["name"] for column in kept] == ["id", "total"]


async def test_an_older_nodes_reports_are_understood(control: ControlPlane, make_node: Any) -> None:
    """A node pinned to version 1 reports in version 1, and its statuses become the same events."""
    control.put_pipeline("orders")
    node = await make_node(contract=1)
    await until(lambda: node.generations() == {"orders": 1})
    await node.link.send_fact(node.status("orders", 1))
    await node.link.send_fact(_error())
    await until(lambda: node.link.facts_waiting == 0)
    assert control.rows("SELECT count(*) FROM stored_events WHERE topic LIKE 'PlacementReported%'") == [(1,)]
    assert control.rows("SELECT count FROM node_errors") == [(1,)]


async def test_a_question_is_answered_by_the_node_that_was_asked(
    control: ControlPlane, make_node: Any, leaf: Leaf
) -> None:
    """The answer comes back in milliseconds; a node that is not there is said to be silent."""
    node = await make_node()

    async def answer(question: v2.Question) -> v2.Answer:
        return v2.Answer(id=question.id, ok=question.name == "shop", server_version=180000)

    node.link.answer = answer
    await until(lambda: node.link.synced_at is not None)
    found = await control.channel.ask(control.tenant, "local", "node-1", v2.QuestionTopic.CONNECTION_TEST, "shop")
    assert found.ok
    assert found.server_version == 180000
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("controlplane.channel.service.ANSWER_SECONDS_MAX", 0.3)
        with pytest.raises(NodeSilent):
            await control.channel.ask(control.tenant, "local", "node-9", v2.QuestionTopic.CONNECTION_TEST, "shop")


@pytest.mark.parametrize(("contract", "topic"), [(2, v2.QuestionTopic.DOCTOR), (1, v2.QuestionTopic.CONNECTION_TEST)])
async def test_the_doctor_is_asked_for_in_the_words_of_the_nodes_version(
    control: ControlPlane, make_node: Any, contract: int, topic: v2.QuestionTopic
) -> None:
    """A node of version 2 answers with findings; one of version 1 is asked for a test, and answers with that."""
    node = await make_node(contract=contract)
    finding = v2.Finding(check=Check.OTHER_SLOTS, outcome=Outcome.WARNING, count=2, size_bytes=1 << 40)
    asked = []

    async def answer(question: v2.Question) -> v2.Answer | v2.Diagnosis:
        asked.append(question.topic)
        if question.topic is v2.QuestionTopic.DOCTOR:
            return v2.Diagnosis(id=question.id, ok=True, findings=[finding])
        return v2.Answer(id=question.id, ok=True)

    node.link.answer = answer
    await until(lambda: node.link.synced_at is not None)
    found = await control.channel.ask(control.tenant, "local", "node-1", v2.QuestionTopic.DOCTOR, "shop", 5.0)
    assert asked == [topic]
    assert found.ok
    assert getattr(found, "findings", []) == ([finding] if contract == 2 else [])
