"""The doctor through the API: a node's findings come back as words, and nothing of it is stored."""

from typing import Any

import httpx
import msgspec
import pytest
from tests.controlplane.conftest import Served, Tenant, problem, user_key
from tests.controlplane.test_reports_become_status import Node

from contracts import v2
from contracts.checks import Check, Outcome
from contracts.codes import Code
from controlplane.api import schemas
from controlplane.channel.service import NodeSilent

PATH = "/v1/connections/shop/doctor"
Asked = list[tuple[Any, ...]]


@pytest.fixture
def connected(served: Served, shop: Tenant) -> Tenant:
    """A tenant whose node was heard of just now."""
    token = shop.api.post("/v1/data-planes/local/join-tokens").json()["token"]
    joining = {"token": token, "node": "node-1", "node_key": user_key(), "contract": 2}
    httpx.post(f"{served.url}/v1/enrol", json=joining).raise_for_status()
    Node(served, shop).heartbeat()
    shop.api.get("/v1/nodes/node-1", params={"at_least": served.control_plane.log.latest()}).raise_for_status()
    return shop


def answering(served: Served, patch: pytest.MonkeyPatch, answer: v2.Answer | v2.Diagnosis | Exception) -> Asked:
    """Let nodes answer every question with `answer`; return what they are asked."""
    asked: Asked = []

    async def ask(*question: Any) -> v2.Answer | v2.Diagnosis:
        asked.append(question)
        if isinstance(answer, Exception):
            raise answer
        return answer

    patch.setattr(served.control_plane.services, "ask", ask)
    return asked


def test_findings_come_as_words_with_the_sql_that_mends_them(
    served: Served, connected: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The statement names the connection's own user; the answer has the form that is described, and is no event."""
    finding = v2.Finding(check=Check.TABLE_READABLE, outcome=Outcome.PROBLEM, table="public.orders")
    diagnosis = v2.Diagnosis(id="0" * 32, ok=False, server_version=180003, findings=[finding], left_off=2)
    asked = answering(served, monkeypatch, diagnosis)
    events = connected.api.get("/v1/events", params={"limit": 200}).json()
    body = connected.as_role("operator").post(PATH, json={"timeout_seconds": 7}).json()
    msgspec.convert(body, schemas.ConnectionDiagnosis, strict=True)
    assert (body["ok"], body["complete"], body["node"], body["left_off"]) == (False, True, "node-1", 2)
    (found,) = body["findings"]
    assert (found["check"], found["outcome"], found["table"]) == ("table_readable", "problem", "public.orders")
    assert found["sql"][1] == 'GRANT SELECT ON TABLE "public"."orders" TO "pointsman"'
    assert asked == [(connected.id, "local", "node-1", v2.QuestionTopic.DOCTOR, "shop", 7.0)]
    after = connected.api.get("/v1/events", params={"limit": 200}).json()["items"]
    assert [each["type"] for each in after[len(events["items"]) :]] == ["ApiKeyIssued"]


def test_a_node_of_contract_1_answers_with_a_test_and_it_is_said(
    served: Served, connected: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one finding is whether it connects."""
    answering(served, monkeypatch, v2.Answer(id="0" * 32, ok=False, code=Code.SOURCE_AUTH_FAILED, sql_state="28P01"))
    body = connected.api.post(PATH, json={}).json()
    assert (body["ok"], body["complete"], body["sql_state"]) == (False, False, "28P01")
    assert [(each["check"], each["outcome"], each["code"]) for each in body["findings"]] == [
        ("connects", "problem", "source_auth_failed")
    ]


def test_what_cannot_be_examined_is_refused(served: Served, connected: Tenant, monkeypatch: pytest.MonkeyPatch) -> None:
    """No such connection, no such node, a node that is silent, a time that is too long, a viewer."""
    answering(served, monkeypatch, NodeSilent("node-1"))
    problem(connected.api.post(PATH, json={}), 504, "node_silent")
    problem(connected.api.post(PATH, json={"node": "node-9"}), 409, "no_node")
    problem(connected.api.post("/v1/connections/none/doctor", json={}), 404, "not_found")
    problem(connected.api.post(PATH, json={"timeout_seconds": 3600}), 422, "invalid_document")
    problem(connected.as_role("viewer").post(PATH, json={}), 403, "forbidden")
