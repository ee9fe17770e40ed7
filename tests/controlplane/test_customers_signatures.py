"""The customer's own signature: passed on as it is, and refused where a node would refuse it."""

from typing import Any

import msgspec
from tests.controlplane.conftest import Tenant, connection, pipeline, problem

from contracts.countersigning import of_document
from contracts.keys import KeyPair, Role
from contracts.v2 import ConnectionDocument, CustomerSignature, PipelineDocument

KEY = KeyPair.generate(Role.USER)


def _signed(tenant: Tenant, name: str, document: dict[str, Any], number: int) -> dict[str, Any]:
    address = {"tenant": tenant.id, "name": name, "epoch": 1, "generation": 1}
    if document["kind"] == "Pipeline":
        form: Any = PipelineDocument
        fields = {**document, **address, "kind": "pipeline", "run": "running"}
    else:
        form = ConnectionDocument
        config = {**document["config"], "type": document["type"]}
        fields = {**document, **address, "kind": "connection", "data_plane": "local", "config": config}
    signature = of_document(msgspec.convert(fields, form)).sign(KEY, number)
    return {**document, "signature": msgspec.to_builtins(signature)}


def test_a_signature_reaches_the_nodes_document_and_the_log(shop: Tenant) -> None:
    """It stands in the resource, in the event and in the document that the data plane gets, and holds there."""
    signed = _signed(shop, "orders", pipeline(), 5)
    answer = shop.put("/v1/pipelines/orders", signed)
    assert answer.status_code == 200, answer.text
    assert answer.json()["signature"] == signed["signature"]
    assert shop.put("/v1/connections/shop", _signed(shop, "shop", connection("shop"), 6)).status_code == 200
    revision = shop.api.get("/v1/connections/shop").json()["revision"]
    entries = shop.api.get("/v1/audit/entries", params={"limit": 200, "at_least": revision}).json()["items"]
    assert f'"number":{signed["signature"]["number"]}' in "".join(each["payload"] for each in entries)
    documents = _documents(shop, revision)
    for kind in (PipelineDocument, ConnectionDocument):
        found = next(each for each in documents if isinstance(each, kind) and each.name in ("orders", "shop"))
        assert isinstance(found.signature, CustomerSignature)
        assert of_document(found).is_signed_by(found.signature)


def test_a_signature_that_does_not_hold_is_refused(shop: Tenant) -> None:
    """Under another document, another name, or with a number that is not higher, nothing is changed."""
    signed = _signed(shop, "orders", pipeline(), 5)
    other = {**signed, "buffer": {"type": "jetstream"}}
    problem(shop.put("/v1/pipelines/orders", other), 422, "signature_invalid")
    elsewhere = _signed(shop, "other", pipeline(), 5)
    problem(shop.put("/v1/pipelines/orders", elsewhere), 422, "signature_invalid")
    assert shop.put("/v1/pipelines/orders", signed).status_code == 200
    older = _signed(shop, "orders", pipeline(buffer={"type": "jetstream"}), 4)
    problem(shop.put("/v1/pipelines/orders", older), 422, "signature_invalid")
    assert shop.put("/v1/pipelines/orders", signed).json()["generation"] == 2


def test_taking_the_signature_away_is_a_change_and_said(shop: Tenant) -> None:
    """Whoever applies without the key is told what nodes may make of it."""
    shop.put("/v1/pipelines/orders", _signed(shop, "orders", pipeline(), 5))
    answer = shop.put("/v1/pipelines/orders", pipeline()).json()
    assert answer["generation"] == 3
    assert "signature" not in answer
    assert any("--sign" in warning for warning in answer["warnings"])


def _documents(tenant: Tenant, revision: int) -> list[Any]:
    control_plane = tenant.served.control_plane
    assert all(runner.wait_for(revision, 10) for runner in control_plane.runners)
    found: list[Any] = []
    with control_plane.database.projector.connection() as connection_:
        rows = connection_.execute(
            "SELECT kind, body FROM channel_documents WHERE tenant = %s AND contract = 2", [tenant.id]
        ).fetchall()
    for kind, body in rows:
        if kind in ("pipeline", "connection"):
            found.append(msgspec.json.decode(body, type=PipelineDocument | ConnectionDocument))
    return found
