"""Nothing of one tenant is visible to another, and every role may do what it is for and nothing else."""

from collections.abc import Callable
from typing import Any

import httpx
import pytest
from litestar.routes import HTTPRoute
from tests.controlplane.conftest import Served, Tenant, connection, pipeline, problem

from controlplane.access.roles import GRANTED, TENANT_ROLES, Permission, Role
from controlplane.api.application import Observed
from controlplane.api.operations import Operation, operation_of

NAMED = [
    ("GET", "/v1/connections/shop"),
    ("PUT", "/v1/pipelines/orders"),
    ("GET", "/v1/pipelines/orders"),
    ("POST", "/v1/pipelines/orders/pause"),
    ("POST", "/v1/pipelines/orders/resume"),
    ("POST", "/v1/pipelines/orders/restart"),
    ("POST", "/v1/pipelines/orders/resync"),
    ("POST", "/v1/pipelines/orders/reconcile"),
    ("DELETE", "/v1/pipelines/orders"),
    ("DELETE", "/v1/connections/shop"),
    ("GET", "/v1/data-planes/local"),
    ("POST", "/v1/data-planes/local/join-tokens"),
    ("DELETE", "/v1/data-planes/local"),
    ("GET", "/v1/nodes/node-1"),
    ("DELETE", "/v1/nodes/node-1"),
]
LISTS = [
    "/v1/connections",
    "/v1/pipelines",
    "/v1/data-planes",
    "/v1/nodes",
    "/v1/pipelines/orders/events",
    "/v1/connections/shop/events",
    "/v1/data-planes/local/events",
    "/v1/nodes/node-1/events",
]


def routes(served: Served) -> list[tuple[str, str, Operation]]:
    """Every route of the API: method, path and declaration."""
    app = served.control_plane.asgi
    assert isinstance(app, Observed)
    found = []
    for route in app.app.routes:
        assert isinstance(route, HTTPRoute)
        for handler in route.route_handlers:
            found += [
                (method, route.path, operation_of(handler)) for method in handler.http_methods if method != "OPTIONS"
            ]
    return found


def test_another_tenants_resources_do_not_exist(shop: Tenant, make_tenant: Callable[[], Tenant]) -> None:
    """Every route that takes a name answers as if there were nothing, and nothing changes."""
    before = shop.api.get("/v1/events", params={"limit": 200}).json()
    other = make_tenant()
    for method, path in NAMED:
        response = other.api.request(method, path, json=pipeline() if method == "PUT" else None)
        expected = (422, "unknown_data_plane") if method == "PUT" else (404, "not_found")
        problem(response, *expected)
    for path in LISTS:
        assert other.api.get(path).json()["items"] == []
    key_id = shop.key.split("_")[1]
    problem(other.api.delete(f"/v1/api-keys/{key_id}"), 404, "not_found")
    assert shop.api.get("/v1/events", params={"limit": 200}).json() == before


def test_the_same_names_in_two_tenants_are_two_resources(shop: Tenant, make_tenant: Callable[[], Tenant]) -> None:
    """Neither the rules about tables nor the generations of one tenant touch the other."""
    other = make_tenant()
    other.make_documents()
    other.put("/v1/connections/shop", connection("shop", port=1)).raise_for_status()
    assert shop.api.get("/v1/connections/shop").json()["generation"] == 1


def test_events_and_audit_are_of_ones_own_tenant(shop: Tenant, make_tenant: Callable[[], Tenant]) -> None:
    """A tenant's log begins with its own creation and holds nobody else's names."""
    other = make_tenant()
    other.put("/v1/connections/only-mine", connection("x")).raise_for_status()
    assert "only-mine" not in shop.api.get("/v1/events", params={"limit": 200}).text
    entries = other.api.get("/v1/audit/entries").json()["items"]
    assert [each["type"] for each in entries] == ["TenantCreated", "ApiKeyIssued", "ConnectionConfigured"]


def test_a_cursor_of_another_tenant_is_not_followed(shop: Tenant, make_tenant: Callable[[], Tenant]) -> None:
    """Cursors are signed for one tenant's list."""
    cursor = shop.api.get("/v1/connections", params={"limit": 1}).json()["next_cursor"]
    problem(make_tenant().api.get("/v1/connections", params={"cursor": cursor}), 400, "invalid_parameter")


def test_the_operator_sees_tenants_and_nothing_inside_them(operator: httpx.Client, shop: Tenant) -> None:
    """The vendor's key opens the list of tenants only."""
    listed = operator.get("/v1/tenants", params={"limit": 200}).json()["items"]
    assert shop.id in {each["tenant"] for each in listed}
    for method, path in [*NAMED, *(("GET", path) for path in LISTS), ("GET", "/v1/audit/entries")]:
        problem(operator.request(method, path, json={}), 403, "forbidden")


def test_a_tenant_does_not_see_the_list_of_tenants(tenant: Tenant) -> None:
    """Not even its owner."""
    problem(tenant.api.get("/v1/tenants"), 403, "forbidden")
    problem(tenant.api.post("/v1/tenants", json={"name": "mine"}), 403, "forbidden")


@pytest.mark.parametrize("role", TENANT_ROLES, ids=lambda role: role.value)
def test_a_role_reaches_the_routes_that_it_is_granted_and_no_other(
    served: Served, standing: Tenant, role: Role
) -> None:
    """Each route is asked with a parameter that it does not know: it is either forbidden or gets that far."""
    client = standing.as_role(role.value)
    walked = 0
    for method, path, operation in routes(served):
        if operation.permission is None:
            continue
        walked += 1
        address = path.replace("{name:str}", "orders").replace("{key_id:str}", "0" * 16)
        body: Any = {"PutPipeline": pipeline()}.get(operation.id)
        response = client.request(method, address, params={"not_a_parameter": "1"}, json=body)
        granted = operation.permission in GRANTED[role]
        assert (response.json()["code"] != "forbidden") is granted, (method, path, response.text)
    assert walked > 25


def test_every_route_declares_a_permission_or_is_meant_to_be_open(served: Served) -> None:
    """What needs no key is a short list; who enrols has a token, and who renews a certificate signs with the node's key."""
    free = {path for _, path, operation in routes(served) if operation.permission is None}
    enrolment = {"/v1/enrol", "/v1/enrol/certificate"}
    assert free == {"/livez", "/readyz", "/metrics", "/schema/openapi.json"} | enrolment


def test_only_an_owner_handles_owners_keys(tenant: Tenant) -> None:
    """An administrator cannot make itself an owner, nor shut the owner out."""
    admin = tenant.as_role("admin")
    problem(admin.post("/v1/api-keys", json={"name": "k", "role": "owner"}), 403, "forbidden")
    problem(admin.delete(f"/v1/api-keys/{tenant.key.split('_')[1]}"), 403, "forbidden")
    assert admin.post("/v1/api-keys", json={"name": "k", "role": "admin"}).status_code == 201


def test_a_tenant_whose_read_model_has_stopped_is_not_shown_old_state(
    served: Served, shop: Tenant, make_tenant: Callable[[], Tenant], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reads are refused, writes go on, a revoked key stays revoked, and other tenants notice nothing."""
    viewer = shop.as_role("viewer")
    key_id = viewer.headers["authorization"].split("_")[1]
    runner = served.control_plane.services.resources
    monkeypatch.setattr(runner, "quarantined", frozenset({shop.id}))
    problem(shop.api.get("/v1/pipelines/orders"), 503, "read_model_unavailable")
    problem(viewer.get("/v1/pipelines"), 503, "read_model_unavailable")
    assert shop.put("/v1/connections/shop", connection("shop", port=1)).json()["generation"] == 2
    shop.api.delete(f"/v1/api-keys/{key_id}").raise_for_status()
    problem(viewer.get("/v1/pipelines"), 401, "unauthenticated")
    other = make_tenant()
    assert other.api.get("/v1/pipelines").status_code == 200


def test_no_role_of_a_tenant_is_granted_what_the_operator_is() -> None:
    """The two realms have no permission in common."""
    for role in TENANT_ROLES:
        assert not GRANTED[role] & GRANTED[Role.VENDOR]
    assert GRANTED[Role.VENDOR] == {Permission.TENANTS, Permission.FLEET, Permission.OPERATORS}
