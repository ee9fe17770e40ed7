"""A control plane gone bad: with all of its own keys in hand it gets nothing that the customer did not allow.

A real agent, a real leaf, real databases; the hand that publishes holds the root key and the signing key. Everything is
refused, and everything is reported: what goes up is read from the node's own ledger of what left it.
"""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec import structs
from tests.dataplane.node.documents import TENANT, connection, pipeline
from tests.dataplane.node.plane import PLANE, Node, Plane, eventually, rows
from tests.dataplane.node.shop import QUERY, Shop, worker_logs

from contracts import subjects, v1, v2
from contracts.codes import Code
from contracts.countersigning import of_document
from contracts.envelope import Purpose, sign, sign_bytes
from contracts.keys import KeyPair, Role
from dataplane import policy
from dataplane.link.ledger import entries

CUSTOMER = KeyPair.generate(Role.USER)
MASK = v2.MaskTransform(table="public.orders", columns=["note"])
POLICY = """
[[source]]
hosts = ["127.0.0.1"]
databases = ["{source}"]
tables = ["public.*"]
[[destination]]
hosts = ["127.0.0.1"]
databases = ["{sink}"]
[[mask]]
columns = ["note"]
[secrets]
allowed = ["file:shop_*"]
"""


@pytest.fixture
def node(plane: Plane, shop: Shop) -> Node:
    """A node whose customer allows one way through, with one column masked, and none of the acts that need leave."""
    made = plane.node()
    text = POLICY.format(source=shop.source.name, sink=shop.sink.name)
    (made.folder / policy.FILE_NAME).write_text(text)
    made.start()
    return made


def _masked(generation: int, **changes: Any) -> v2.PipelineDocument:
    return structs.replace(pipeline(generation=generation), transforms=[MASK], **changes)


def _said(node: Node) -> list[dict[str, Any]]:
    """Return every message that has left the node, as it left."""
    folder: Path = node.folder / "link" / "ledger"
    return [msgspec.json.decode(bytes(each.sealed))["body"]["message"] for each in entries(folder)]


def _told(node: Node, generation: int, code: Code) -> bool:
    """Say whether the node has told that it does not run this generation, and why."""
    return any(
        (each["type"], each.get("observed_generation"), each.get("code")) == ("pipeline-status", generation, code.value)
        for each in _said(node)
    )


def _refused_documents(node: Node) -> int:
    """Return how many documents the node has told to have refused."""
    told = [each for each in _said(node) if each["type"] == "error" and each["code"] == Code.DOCUMENT_REFUSED.value]
    return sum(int(each["count"]) for each in told)


async def test_nothing_beyond_the_policy_is_read_written_or_revealed(plane: Plane, shop: Shop, node: Node) -> None:
    """Another table, host or database, a secret out of scope, acts without leave: each comes back as a code, none runs."""
    shop.source.execute("CREATE SCHEMA hr")
    shop.source.execute("CREATE TABLE hr.salaries (id int PRIMARY KEY, amount int)")
    shop.source.execute("INSERT INTO hr.salaries VALUES (1, 1000000)")
    own = {each.name: each for each in shop.connections}
    shopping, warehouse = own["shop"], own["warehouse"]

    def at(document: v2.ConnectionDocument, **config: Any) -> v2.ConnectionDocument:
        return structs.replace(document, config=structs.replace(document.config, **config))

    def with_secret(reference: str) -> v2.ConnectionDocument:
        return structs.replace(shopping, secrets={"password": reference})

    salaries = structs.replace(pipeline().source, tables=["public.orders", "hr.salaries"])
    hashed = v2.MaskTransform(
        table="public.orders", columns=["note"], method=v2.MaskMethod.HASH, secret="env:AWS_SECRET_ACCESS_KEY"
    )
    attacks: Sequence[tuple[Code, Sequence[v2.ConnectionDocument], dict[str, Any]]] = (
        (Code.POLICY_SOURCE_REFUSED, (), {"source": salaries}),
        (Code.POLICY_SOURCE_REFUSED, (at(shopping, database="postgres"),), {}),
        (Code.POLICY_SOURCE_REFUSED, (at(shopping, host="169.254.169.254"),), {}),
        (Code.POLICY_DESTINATION_REFUSED, (at(warehouse, host="collector.evil.example"),), {}),
        (Code.POLICY_DESTINATION_REFUSED, (at(warehouse, database=shop.source.name),), {}),
        (Code.POLICY_SECRET_REFUSED, (with_secret("env:AWS_SECRET_ACCESS_KEY"),), {}),
        (Code.POLICY_SECRET_REFUSED, (with_secret("file:bank_password"),), {}),
        (Code.POLICY_SECRET_REFUSED, (), {"transforms": [hashed]}),
        (Code.POLICY_ACTION_REFUSED, (), {"run": v2.RunState.REMOVED}),
        (Code.POLICY_ACTION_REFUSED, (), {"resyncs": {"public.orders": 1}}),
        (Code.POLICY_ACTION_REFUSED, (), {"buffer": v2.BufferSettings(type=v2.BufferType.JETSTREAM)}),
    )
    generation = 0
    for generation, (code, connections, changes) in enumerate(attacks, start=1):
        moved = {each.name: structs.replace(each, generation=2 * generation) for each in connections}
        back = {name: structs.replace(each, generation=2 * generation + 1) for name, each in own.items()}
        shop.connections = [moved.get(name, each) for name, each in back.items()]
        await shop.publish(structs.replace(_masked(generation), **changes))
        await eventually(
            lambda wanted=code, number=generation: _told(node, number, wanted),
            why=lambda wanted=code: f"{wanted} was not told: {node.log[-2000:]}",
        )
        assert node.workers() == {}
    assert shop.slots() == 0
    assert rows(shop.sink.conninfo, "SELECT * FROM hr.salaries") is None

    shop.connections = [structs.replace(each, generation=100) for each in own.values()]
    await shop.publish(_masked(generation + 1))
    await eventually(
        lambda: rows(shop.sink.conninfo, QUERY) == [(1, "***")], why=lambda: node.log[-2000:] + worker_logs(node)
    )


@pytest.mark.system
async def test_a_mask_cannot_be_taken_off(plane: Plane, shop: Shop, node: Node) -> None:
    """Without the transform that the policy asks for, no further row leaves, and the column's name goes up with the code."""
    await shop.publish(_masked(1))
    await eventually(
        lambda: rows(shop.sink.conninfo, QUERY) == [(1, "***")], why=lambda: node.log[-2000:] + worker_logs(node)
    )
    await shop.publish(pipeline(generation=2))
    shop.insert(2)
    await eventually(lambda: _told(node, 2, Code.POLICY_MASK_MISSING), why=lambda: node.log[-2000:] + worker_logs(node))
    assert rows(shop.sink.conninfo, QUERY) == [(1, "***")]


@pytest.mark.system
async def test_what_the_customer_did_not_sign_does_not_run(plane: Plane, shop: Shop, node: Node) -> None:
    """Unsigned, signed by the control plane's own keys, altered, or older than what was taken: nothing of it runs."""
    path = node.folder / policy.FILE_NAME
    path.write_text(path.read_text() + f'[documents]\nsigned_by = ["{CUSTOMER.public}"]\n')

    def signed(document: Any, number: int, key: KeyPair = CUSTOMER) -> Any:
        return structs.replace(document, signature=of_document(document).sign(key, number))

    unsigned = list(shop.connections)
    shop.connections = [signed(each, 1) for each in unsigned]
    first, second = signed(_masked(1), 10), signed(_masked(2, buffer=v2.BufferSettings(size_bytes_max=1 << 24)), 11)
    for document in (first, second):
        await shop.publish(document)
        await shop_has(node, shop, [(1, "***")])
    await eventually(lambda: node.phase("orders") == "streaming", why=lambda: node.log[-2000:])

    moved = structs.replace(second.source, tables=["public.orders", "public.other"])
    attacks: Sequence[tuple[Code, Callable[[int], v2.PipelineDocument], list[Any] | None]] = (
        (Code.POLICY_SIGNATURE_MISSING, lambda number: _masked(number), None),
        (Code.POLICY_SIGNATURE_INVALID, lambda number: signed(_masked(number), 99, plane.signer), None),
        (Code.POLICY_SIGNATURE_INVALID, lambda number: signed(_masked(number), 99, plane.root), None),
        (Code.POLICY_SIGNATURE_INVALID, lambda n: structs.replace(second, generation=n, source=moved), None),
        (Code.POLICY_SIGNATURE_INVALID, lambda n: structs.replace(second, generation=n, transforms=[]), None),
        (Code.POLICY_SIGNATURE_OLDER, lambda n: structs.replace(first, generation=n, epoch=7), None),
        (Code.POLICY_SIGNATURE_MISSING, lambda n: structs.replace(second, generation=n, epoch=7), unsigned),
    )
    generation, trusted = 2, list(shop.connections)
    for generation, (code, attack, connections) in enumerate(attacks, start=3):
        shop.connections = [structs.replace(each, generation=generation) for each in connections or trusted]
        await shop.publish(attack(generation))
        await eventually(
            lambda wanted=code, number=generation: _told(node, number, wanted),
            why=lambda wanted=code: f"{wanted} was not told: {node.log[-2000:]}",
        )
        await eventually(lambda: node.workers() == {})
    shop.insert(2)
    node.kill()
    node.start()  # and what it took outlives the agent
    shop.connections = [structs.replace(each, generation=50) for each in trusted]
    await shop.publish(structs.replace(first, generation=50, epoch=7))
    await eventually(lambda: _told(node, 50, Code.POLICY_SIGNATURE_OLDER), why=lambda: node.log[-2000:])
    assert rows(shop.sink.conninfo, QUERY) == [(1, "***")]
    await shop.publish(structs.replace(second, generation=51, epoch=7))
    await shop_has(node, shop, [(1, "***"), (2, "***")])


async def shop_has(node: Node, shop: Shop, wanted: list[tuple[Any, ...]]) -> None:
    await eventually(
        lambda: rows(shop.sink.conninfo, QUERY) == wanted, why=lambda: node.log[-2000:] + worker_logs(node)
    )


async def test_what_is_for_others_from_before_or_unknown_is_not_even_taken(
    plane: Plane, shop: Shop, node: Node
) -> None:
    """Foreign tenant and plane, the older contract, an older list of keys, SQL that reads files: refused on arrival, counted, told."""
    await shop.publish(_masked(5))
    await shop_has(node, shop, [(1, "***")])
    held = node.index()
    good = _masked(6)
    sql = {
        "type": "sql",
        "table": "public.orders",
        "sql": "SELECT * FROM read_text('/etc/passwd')",
        "columns": ["note"],
    }
    escaping = {**msgspec.to_builtins(good), "transforms": [sql]}
    index = v2.IndexDocument(
        tenant=TENANT, data_plane=PLANE, name="index", epoch=1, generation=1, revision=0, entries=[]
    )
    hers = v2.TrustDocument(
        tenant=TENANT,
        data_plane=PLANE,
        name="trust",
        epoch=1,
        generation=9,
        keys=[KeyPair.generate(Role.ACCOUNT).public],
    )
    downgraded = v1.PipelineDocument(
        **{each: getattr(good, each) for each in ("tenant", "data_plane", "name", "epoch", "generation", "run")},
        source=v1.PipelineSource(connection="shop", tables=["public.orders"]),
        sink=v1.PipelineSink(connection="warehouse"),
    )
    signer, root = plane.signer, plane.root
    hostile = [
        _sealed(structs.replace(good, tenant="00000000-0000-4000-8000-000000000002"), signer),
        _sealed(structs.replace(good, data_plane="elsewhere"), signer),
        _sealed(downgraded, signer, contract=1),
        _sealed(_masked(4), signer),
        _sealed(index, signer),
        _sealed(good, root),
        _sealed(hers, signer),
        sign_bytes(msgspec.json.encode(escaping), signer, contract=2, purpose=Purpose.DOCUMENT),
        _sealed(good, signer, purpose=Purpose.REPORT),
    ]
    client = await plane.leaf.connect()
    for envelope in hostile:
        await client.publish(subjects.desired(2, PLANE, v2.Kind.PIPELINE, "orders"), envelope)
    await client.flush()
    await client.close()
    await eventually(lambda: _refused_documents(node) >= len(hostile), why=lambda: node.log[-3000:])
    assert node.index() == held
    shop.insert(2)
    await shop_has(node, shop, [(1, "***"), (2, "***")])
    reasons = ("other_tenant", "other_data_plane", "other_contract", "older", "not_signed_by_trusted", "malformed")
    assert [reason for reason in reasons if reason not in node.log] == []


@pytest.mark.system
async def test_a_question_reaches_nothing_that_the_policy_does_not_name(plane: Plane, shop: Shop, node: Node) -> None:
    """A connection test by the control plane's own keys is answered by a code, and no server is asked."""
    await shop.publish(connection("spy", database=shop.source.name, port=shop.source.port), _masked(1))
    await shop_has(node, shop, [(1, "***")])
    asked = v2.Question(
        id="0" * 32,
        topic=v2.QuestionTopic.CONNECTION_TEST,
        name="spy",
        deadline=datetime.now(UTC) + timedelta(seconds=30),
    )
    client = await plane.leaf.connect()
    await client.publish(
        subjects.question(2, PLANE, "node-1"), sign(asked, plane.signer, contract=2, purpose=Purpose.DOCUMENT)
    )
    await client.flush()
    await client.close()

    def answered() -> bool:
        return any(
            (each["type"], each.get("code")) == ("answer", Code.POLICY_ACTION_REFUSED.value) for each in _said(node)
        )

    await eventually(answered, why=lambda: node.log[-2000:])


def _sealed(document: Any, key: KeyPair, *, contract: int = 2, purpose: Purpose = Purpose.DOCUMENT) -> bytes:
    return sign(document, key, contract=contract, purpose=purpose)
