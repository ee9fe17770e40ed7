"""OpenAPI, health and metrics: what the API says of itself is what it does."""

import re
from typing import Any

import httpx
import msgspec
import pytest
from tests.controlplane.conftest import OPERATOR_KEY, Served, Tenant, bearer, connection
from tests.controlplane.test_tenants_are_apart import routes

from controlplane.api import schemas
from controlplane.api.problems import Problem
from controlplane.refusals import CODES


@pytest.fixture(scope="module")
def document(served: Served) -> Any:
    return httpx.get(f"{served.url}/schema/openapi.json").json()


def test_every_route_is_described_and_nothing_else(served: Served, document: Any) -> None:
    """Each with an id, a summary, its answers and the problems that it may give."""
    assert document["openapi"] == "3.1.0"
    described = {
        (method.upper(), path): operation
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }
    real = {(method, re.sub(r":str}", "}", path)) for method, path, _ in routes(served)}
    assert set(described) == real
    ids = [operation["operationId"] for operation in described.values()]
    assert len(set(ids)) == len(ids)
    for operation in described.values():
        assert operation["summary"]
        assert any(status.startswith("2") for status in operation["responses"])


def test_every_reference_of_the_document_leads_somewhere(document: Any) -> None:
    """A generator of clients can read it."""
    references = set(re.findall(r'"\$ref":"#/components/schemas/([^"]+)"', msgspec.json.encode(document).decode()))
    assert references
    assert references <= set(document["components"]["schemas"])


def test_every_write_declares_how_to_repeat_and_to_rehearse_it(document: Any) -> None:
    """Idempotency-Key and dry_run are on every write but joining and questions, which are idempotent or write nothing."""
    others = ("EnrolNode", "RenewLeafCertificate", "TestConnection", "ExamineConnection")
    for methods in document["paths"].values():
        for method, operation in methods.items():
            names = {each["name"] for each in operation["parameters"]}
            if method != "get" and operation["operationId"] not in others:
                assert {"dry_run", "Idempotency-Key"} <= names, operation["operationId"]


def test_answers_have_the_form_that_is_described(served: Served, shop: Tenant) -> None:
    """Real answers are held against the types that the document is made from, without a field too many or too few."""
    token = shop.api.post("/v1/data-planes/local/join-tokens").json()
    httpx.post(
        f"{served.url}/v1/enrol",
        json={"token": token["token"], "node": "n", "node_key": "U" + "A" * 55, "contract": 2},
    ).raise_for_status()
    for path, form in (
        ("/v1/connections/shop", schemas.PostgresConnectionResource),
        ("/v1/connections", schemas.Connections),
        ("/v1/pipelines/orders", schemas.PipelineResource),
        ("/v1/pipelines", schemas.Pipelines),
        ("/v1/data-planes/local", schemas.DataPlaneResource),
        ("/v1/data-planes", schemas.DataPlanes),
        ("/v1/nodes/n", schemas.NodeResource),
        ("/v1/nodes", schemas.Nodes),
        ("/v1/api-keys", schemas.ApiKeys),
        ("/v1/events", schemas.Events),
        ("/v1/audit/entries", schemas.AuditEntries),
        ("/v1/audit/checkpoint", schemas.AuditCheckpoint),
        ("/v1/audit/key", schemas.AuditKey),
        ("/readyz", schemas.Health),
    ):
        body = shop.api.get(path).json()
        msgspec.convert(body, form)
        strict = msgspec.defstruct(form.__name__, [], bases=(form,), forbid_unknown_fields=True, kw_only=True)
        msgspec.convert(body, strict)
    written = shop.put("/v1/connections/x", connection("x")).json()
    msgspec.convert(written, schemas.ConnectionResource)
    made = shop.api.post("/v1/api-keys", json={"name": "k", "role": "viewer"}).json()
    msgspec.convert(made, schemas.ApiKeyResource)
    msgspec.convert(token, schemas.JoinToken)
    msgspec.convert(shop.api.get("/v1/connections/none").json(), Problem)
    tenants = httpx.get(f"{served.url}/v1/tenants", headers=bearer(OPERATOR_KEY)).json()
    msgspec.convert(tenants, schemas.Tenants)


def test_every_code_has_a_title_a_status_and_a_way_out() -> None:
    """A hint tells the next step."""
    for code, meaning in CODES.items():
        assert re.fullmatch(r"[a-z_]+", code)
        assert 400 <= meaning.status < 600
        assert meaning.title
        assert meaning.hint.endswith((".", "}", "*")), code


def test_the_process_is_ready_without_the_hub_and_says_so(served: Served) -> None:
    """Configuration is taken while the hub is away; nodes get it later."""
    assert httpx.get(f"{served.url}/livez").status_code == 200
    ready = httpx.get(f"{served.url}/readyz")
    assert (ready.status_code, ready.json()["checks"]) == (
        200,
        {"database": "ok", "projections": "ok", "hub": "unreachable"},
    )


def test_metrics_count_requests_by_route_and_name_nobody(served: Served, shop: Tenant) -> None:
    """Labels are route templates, methods, statuses and codes: no tenant, no resource, no path that somebody made up."""
    shop.api.get("/v1/made-up-by-me/../../x")
    shop.api.get("/v1/connections/shop")
    text = httpx.get(f"{served.url}/metrics").text
    assert 'route="/v1/connections/{name}",status="200"' in text
    assert 'pointsman_commands_total{outcome="changed"}' in text
    assert 'pointsman_projection_lag_events{projection="resources"} 0.0' in text
    assert 'pointsman_projection_quarantined_tenants{projection="audit"}' in text
    assert "pointsman_connected_nodes" in text
    for private in (shop.id, shop.name, "made-up-by-me", '"shop"'):
        assert private not in text
