"""Time travel: the configuration of any moment, folded from the audit log alone."""

from datetime import UTC, datetime
from typing import Any

from tests.controlplane.conftest import Served, Tenant

from contracts import v2

PLURALS = {"connections": "connections", "pipelines": "pipelines", "data_planes": "data-planes", "nodes": "nodes"}


def _now_and_live(tenant: Tenant) -> tuple[str, dict[str, Any]]:
    """Return a moment and what the API shows at it, but for what is composed when it is read."""
    latest = tenant.served.control_plane.log.latest()
    live = {}
    for plural, path in PLURALS.items():
        items = tenant.api.get(f"/v1/{path}", params={"at_least": latest}).json()["items"]
        live[plural] = [{name: value for name, value in item.items() if name != "status"} for item in items]
    return datetime.now(UTC).isoformat(), live


def _replayed(tenant: Tenant, at: str) -> dict[str, Any]:
    latest = tenant.served.control_plane.log.latest()
    answer = tenant.api.get("/v1/audit/replay", params={"at": at, "at_least": latest})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def test_every_moment_is_as_it_was_shown_then(shop: Tenant) -> None:
    """What was configured is shown as the API showed it, whatever has happened since."""
    moments = [_now_and_live(shop)]
    for path in ("pause", "resume", "restart"):
        shop.api.post(f"/v1/pipelines/orders/{path}").raise_for_status()
        moments.append(_now_and_live(shop))
    shop.api.delete("/v1/pipelines/orders").raise_for_status()
    moments.append(_now_and_live(shop))
    for at, live in moments:
        found = _replayed(shop, at)
        shown = {plural: found[plural] for plural in PLURALS}
        for pipeline in shown["pipelines"]:
            pipeline.pop("acknowledged")
        assert shown == live
    assert [len(live["pipelines"]) for _, live in moments] == [1, 1, 1, 1, 0]


def test_the_entry_is_the_one_that_a_checkpoint_vouches_for(shop: Tenant) -> None:
    """The answer names its newest entry and its hash, so it leads back to the proof."""
    at, _ = _now_and_live(shop)
    entry = _replayed(shop, at)["entry"]
    entries = shop.api.get("/v1/audit/entries", params={"limit": 200}).json()["items"]
    assert (entry["sequence"], entry["hash"]) == (entries[-1]["sequence"], entries[-1]["hash"])


def test_what_nodes_had_acknowledged_is_shown(served: Served, shop: Tenant) -> None:
    """Desired and acknowledged stand side by side: a generation that no node had reached yet is visible."""
    status = v2.PipelineStatus(
        pipeline="orders", epoch=1, observed_generation=1, phase=v2.Phase.STREAMING, since=datetime.now(UTC)
    )
    served.control_plane.reports.report(shop.id, "local", "node-1", [status])
    shop.api.post("/v1/pipelines/orders/pause").raise_for_status()
    at, _ = _now_and_live(shop)
    (pipeline,) = _replayed(shop, at)["pipelines"]
    assert pipeline["generation"] == 2
    assert [(told["node"], told["observed_generation"]) for told in pipeline["acknowledged"]] == [("node-1", 1)]


def test_a_moment_before_everything_and_a_moment_without_zone_are_refused(shop: Tenant) -> None:
    """404 for the first, 400 for the second and for none at all."""
    codes = [
        shop.api.get("/v1/audit/replay", params={"at": at} if at else {}).json()["code"]
        for at in ("2001-01-01T00:00:00Z", "2026-01-01T00:00:00", "yesterday", "")
    ]
    assert codes == ["not_found", "invalid_parameter", "invalid_parameter", "invalid_parameter"]
