"""Evidence of residency: what the audit log says of where a pipeline's rows were, signed, and checked without asking anybody."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from tests.controlplane.conftest import Served, Tenant, connection, problem, user_key

from contracts import v2
from contracts.codes import Code
from contracts.envelope import EnvelopeError
from contracts.keys import KeyPair, Role
from contracts.residency import Residency, open_report

AT = datetime(2026, 3, 4, tzinfo=UTC)


def _status(phase: v2.Phase, seconds: int, policy: str, code: Code | None = None) -> v2.PipelineStatus:
    return v2.PipelineStatus(
        pipeline="orders",
        epoch=1,
        observed_generation=1,
        phase=phase,
        since=AT + timedelta(seconds=seconds),
        code=code,
        policy=policy,
    )


def _join(shop: Tenant, node: str) -> str:
    token = shop.api.post("/v1/data-planes/local/join-tokens", json={}).json()["token"]
    key = user_key()
    shop.api.post(
        "/v1/enrol", json={"token": token, "node": node, "node_key": key, "leaf_key": user_key(), "contract": 2}
    ).raise_for_status()
    return key


def _report(shop: Tenant, served: Served) -> tuple[Residency, str, str]:
    params = {"at_least": served.control_plane.log.latest()}
    sealed = shop.api.get("/v1/audit/residency/orders", params=params).json()["report"]
    key = shop.api.get("/v1/audit/key").json()["key"]
    return open_report(sealed, frozenset({key}))[0], sealed, key


def test_the_report_says_who_carried_it_where_and_under_which_policy(shop: Tenant, served: Served) -> None:
    """Nodes with their keys and regions, each policy apart, each route from its day on, and what was reported."""
    assert shop.put("/v1/data-planes/local", {"region": "eu-central-1"}).status_code == 200
    keys = {node: _join(shop, node) for node in ("node-1", "node-2")}
    reports: list[tuple[str, v2.PipelineStatus]] = [
        ("node-1", _status(v2.Phase.SNAPSHOTTING, 1, "a" * 64)),
        ("node-1", _status(v2.Phase.STREAMING, 2, "a" * 64)),
        ("node-1", _status(v2.Phase.STREAMING, 3, "b" * 64)),
        ("node-2", _status(v2.Phase.DEGRADED, 4, "b" * 64, Code.POLICY_SOURCE_REFUSED)),
    ]
    for node, status in reports:
        served.control_plane.reports.report(shop.id, "local", node, [status])
    shop.put("/v1/connections/warehouse", connection("elsewhere"))
    report, _, _ = _report(shop, served)
    assert [(each.node, each.key, each.region, each.policy, each.reports) for each in report.carriers] == [
        ("node-1", keys["node-1"], "eu-central-1", "a" * 64, 2),
        ("node-1", keys["node-1"], "eu-central-1", "b" * 64, 1),
        ("node-2", keys["node-2"], "eu-central-1", "b" * 64, 1),
    ]
    assert [each.destination for each in report.routes] == [
        "warehouse: db.internal:5432/warehouse",
        "warehouse: db.internal:5432/elsewhere",
    ]
    assert report.routes[0].until == report.routes[1].since
    assert report.routes[1].until is None
    assert report.crossed == {"PlacementReported": 4}


def test_a_report_that_was_changed_or_signed_by_somebody_else_does_not_open(shop: Tenant, served: Served) -> None:
    """Nothing in it can be edited, and the checkpoint in it must be of the same key and tenant."""
    report, sealed, key = _report(shop, served)
    assert (report.tenant, report.pipeline) == (shop.id, "orders")
    forged: tuple[tuple[str, Any], ...] = (
        (sealed.replace("db.internal", "db.external"), key),
        (sealed.replace("shop: db", "shop2: db"), key),
        (sealed, KeyPair.generate(Role.ACCOUNT).public),
        ("{}", key),
    )
    for text, by in forged:
        with pytest.raises(EnvelopeError):
            open_report(text, frozenset({by}))


def test_a_pipeline_that_is_gone_still_has_its_evidence(shop: Tenant, served: Served) -> None:
    """What was carried stays on record after deletion; a pipeline that never was has none."""
    shop.api.delete("/v1/pipelines/orders").raise_for_status()
    report, _, _ = _report(shop, served)
    assert len(report.routes) == 1
    assert report.routes[0].until is not None
    for name in ("never", "not a name"):
        problem(shop.api.get(f"/v1/audit/residency/{name}"), 404, "not_found")
    problem(shop.as_role("viewer").get("/v1/audit/residency/orders"), 403, "forbidden")
