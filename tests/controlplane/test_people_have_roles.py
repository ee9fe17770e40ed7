"""Members, their keys, and the vendor's operators: who may do what, what is known of them, and what is forgotten."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import msgspec
import pytest
from tests.controlplane.conftest import OPERATOR_KEY, Served, Tenant, bearer, connection, problem

from contracts.audit import GENESIS, AuditEntry, entry_hash
from controlplane.access.limits import (
    ATTEMPTS_MAX,
    REFILL_SECONDS,
    REQUESTS_BURST_MAX,
    REQUESTS_PER_SECOND_MAX,
    FailureLimit,
    RequestLimit,
)
from controlplane.api import schemas_of_access as schemas
from controlplane.refusals import Refused

CANARY = "Quetzalcoatlus"


def add(tenant: Tenant, role: str = "viewer", name: str = "Ada", client: httpx.Client | None = None) -> Any:
    """Add a member and return the answer."""
    person = {"display_name": name, "email": f"{name.lower()}@example.com", "role": role}
    return (client or tenant.api).post("/v1/members", json=person)


def key_of(tenant: Tenant, member: str, role: str) -> httpx.Client:
    """A client with a key of a member's own."""
    return tenant.as_role(role, member=member)


def everywhere(served: Served, text: str) -> list[str]:
    """The tables of the control plane's database that hold `text` anywhere."""
    with served.administrator() as connected:
        tables = connected.execute(
            "SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = 2200"
        ).fetchall()
        found = []
        for (table,) in tables:
            query = f"SELECT count(*) FROM \"{table}\" t WHERE position(%s in t::text || coalesce(to_jsonb(t)::text, '')) > 0"
            if connected.execute(query.encode(), [text]).fetchone() != (0,):
                found.append(table)
            if table == "stored_events":
                row = connected.execute(
                    "SELECT count(*) FROM stored_events WHERE position(%s::bytea in state) > 0", [text.encode()]
                ).fetchone()
                found += ["stored_events"] if row != (0,) else []
        return found


def test_a_member_is_known_by_an_id_and_shown_with_a_name(tenant: Tenant) -> None:
    """The id says nothing of the person, and events carry the id only."""
    made = add(tenant).json()
    assert made["status"] == {
        "phase": "active",
        "ready": True,
        "display_name": "Ada",
        "email": "ada@example.com",
    }
    newest = {"at_least": made["revision"]}
    assert tenant.api.get("/v1/members", params=newest).json()["items"][0]["name"] == made["name"]
    events = tenant.api.get("/v1/events", params={"kind": "Member", **newest}).json()["items"]
    assert [(each["type"], each["name"], each["data"]) for each in events] == [
        ("MemberAdded", made["name"], {"role": "viewer"})
    ]


def test_a_members_key_is_good_for_what_the_member_may_do_now(shop: Tenant) -> None:
    """A role that is lowered, or a membership that ends, counts from the next request on, whatever the key says."""
    member = add(shop, "admin").json()["name"]
    client = key_of(shop, member, "admin")
    assert client.put("/v1/connections/shop", json=connection("shop", port=1)).status_code == 200
    shop.put(f"/v1/members/{member}", {"role": "viewer"}).raise_for_status()
    problem(client.put("/v1/connections/shop", json=connection("shop", port=2)), 403, "forbidden")
    assert client.get("/v1/connections/shop").json()["config"]["port"] == 1
    shop.api.delete(f"/v1/members/{member}").raise_for_status()
    problem(client.get("/v1/connections/shop"), 401, "unauthenticated")


def test_a_removed_members_key_is_refused_even_where_the_read_model_has_stopped(
    served: Served, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The member's own events are asked, not the table that has stopped."""
    member = add(tenant).json()["name"]
    client = key_of(tenant, member, "viewer")
    monkeypatch.setattr(served.control_plane.services.resources, "quarantined", frozenset({tenant.id}))
    problem(client.get("/v1/pipelines"), 503, "read_model_unavailable")
    tenant.api.delete(f"/v1/members/{member}").raise_for_status()
    problem(client.get("/v1/pipelines"), 401, "unauthenticated")


def test_a_key_never_grants_more_than_its_member_has(tenant: Tenant) -> None:
    """Nor does it belong to somebody who is none."""
    member = add(tenant, "operator").json()["name"]
    for document in (
        {"name": "k", "role": "admin", "member": member},
        {"name": "k", "role": "viewer", "member": "0" * 16},
    ):
        problem(tenant.api.post("/v1/api-keys", json=document), 422, "invalid_document")


def test_only_an_owner_handles_owners(tenant: Tenant) -> None:
    """An administrator neither makes one, nor becomes one, nor removes or forgets one."""
    owner = add(tenant, "owner").json()["name"]
    viewer = add(tenant, "viewer", "Bob").json()["name"]
    admin = tenant.as_role("admin")
    problem(add(tenant, "owner", "Eve", admin), 403, "forbidden")
    problem(admin.put(f"/v1/members/{viewer}", json={"role": "owner"}), 403, "forbidden")
    problem(admin.put(f"/v1/members/{owner}", json={"role": "viewer"}), 403, "forbidden")
    problem(admin.delete(f"/v1/members/{owner}"), 403, "forbidden")
    problem(admin.post(f"/v1/members/{owner}/erase"), 403, "forbidden")


def test_a_read_only_key_changes_nothing(shop: Tenant) -> None:
    """Whatever its role."""
    client = shop.as_role("owner", read_only=True)
    assert client.get("/v1/pipelines/orders").status_code == 200
    problem(client.post("/v1/pipelines/orders/pause"), 403, "forbidden")
    problem(client.post("/v1/api-keys", json={"name": "k", "role": "viewer"}), 403, "forbidden")


def test_a_key_says_when_it_was_used_last(tenant: Tenant) -> None:
    """Null until it is used; telemetry and no event."""
    answer = tenant.api.post("/v1/api-keys", json={"name": "k", "role": "viewer"})
    tenant.seen(answer)
    made = answer.json()

    def last_used() -> Any:
        items = tenant.api.get("/v1/api-keys").json()["items"]
        return next(each["status"]["last_used_at"] for each in items if each["id"] == made["id"])

    assert last_used() is None
    tenant.client(made["api_key"]).get("/v1/pipelines").raise_for_status()
    end = datetime.now(UTC) + timedelta(seconds=20)
    while last_used() is None:
        assert datetime.now(UTC) < end
    assert abs(datetime.now(UTC) - datetime.fromisoformat(last_used())) < timedelta(minutes=1)
    assert len(tenant.api.get("/v1/events", params={"kind": "ApiKey"}).json()["items"]) == 2


def test_a_person_can_be_forgotten_and_the_audit_log_still_verifies(served: Served, tenant: Tenant) -> None:
    """Before, the name stands in one table and in no other; after, nowhere; and not one entry of the log has changed."""
    headers = {"Idempotency-Key": "add-once"}
    person = {"display_name": CANARY, "email": f"{CANARY}@example.com", "role": "viewer"}
    added = tenant.api.post("/v1/members", json=person, headers=headers).json()
    member = added["name"]
    assert everywhere(served, CANARY) == ["personal_data"]
    before = tenant.api.get("/v1/audit/entries", params={"at_least": added["revision"]}).json()["items"]
    erased = tenant.api.post(f"/v1/members/{member}/erase").json()
    assert (erased["status"]["phase"], erased["status"]["display_name"]) == ("erased", None)
    assert everywhere(served, CANARY) == []
    newest = {"at_least": erased["revision"]}
    after = tenant.api.get("/v1/audit/entries", params=newest).json()["items"]
    assert after[: len(before)] == before
    assert [each["type"] for each in after[len(before) :]] == ["MemberRemoved", "MemberErased"]
    previous = GENESIS
    for each in after:
        entry = AuditEntry(**each)
        assert (entry.previous, entry_hash(tenant.id, entry)) == (previous, entry.hash)
        previous = entry.hash
    problem(tenant.api.get(f"/v1/members/{member}", params=newest), 404, "not_found")


def test_a_former_member_can_be_forgotten(tenant: Tenant) -> None:
    """The wish to be forgotten often comes after the membership has ended."""
    member = add(tenant).json()["name"]
    tenant.api.delete(f"/v1/members/{member}").raise_for_status()
    assert tenant.api.post(f"/v1/members/{member}/erase").json()["status"]["email"] is None
    problem(tenant.api.post(f"/v1/members/{'0' * 16}/erase"), 404, "not_found")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("email", "no address"),
        ("email", "a@b\n"),
        ("display_name", ""),
        ("display_name", "a\x1b[31m"),
        ("role", "vendor"),
    ],
)
def test_a_person_that_cannot_be_is_refused_without_being_quoted(tenant: Tenant, field: str, value: str) -> None:
    """No refusal repeats what was sent, because refusals are logged."""
    person = {"display_name": CANARY, "email": "a@example.com", "role": "viewer", field: value}
    answer = tenant.api.post("/v1/members", json=person)
    problem(answer, 422, "invalid_document")
    assert CANARY not in answer.text


# ---- The vendor's operators -----------------------------------------------------------------------------------------


def under(tenant: Tenant, grant: str) -> httpx.Client:
    """The vendor's operator, who says under which grant."""
    client = tenant.client(OPERATOR_KEY)
    client.headers["Pointsman-Grant"] = f"{tenant.id}/{grant}"
    return client


def test_the_operator_reads_what_a_tenant_opened_and_each_read_is_an_event(served: Served, shop: Tenant) -> None:
    """What was read, by whom and when, stands in the tenant's own log, before it is shown."""
    operator = under(shop, "support")
    problem(operator.get("/v1/pipelines/orders"), 403, "forbidden")
    shop.put("/v1/access-grants/support", {"hours": 1}).raise_for_status()
    assert operator.get("/v1/pipelines/orders").json()["name"] == "orders"
    assert operator.get("/v1/connections").status_code == 200
    problem(operator.get("/v1/pipelines/none"), 404, "not_found")
    newest = {"at_least": served.control_plane.log.latest()}
    events = shop.api.get("/v1/access-grants/support/events", params=newest).json()["items"]
    assert [
        (each["type"], each["actor"], each["data"].get("operation"), each["data"].get("subject")) for each in events[1:]
    ] == [
        ("AccessUsed", "operator", "GetPipeline", "orders"),
        ("AccessUsed", "operator", "ListConnections", ""),
        ("AccessUsed", "operator", "GetPipeline", "none"),
    ]
    assert shop.api.get("/v1/access-grants/support", params=newest).json()["uses"] == 3


def test_a_tenant_sees_which_of_the_vendors_operators_read(
    served: Served, shop: Tenant, operator: httpx.Client
) -> None:
    """Each has a key of its own that expires and can be revoked, and none but the first makes others."""
    made = operator.post("/v1/operators", json={"name": "grace"})
    shop.seen(made)
    key = made.json()
    assert key["expires_at"] is not None
    grace = shop.client(key["api_key"])
    problem(grace.post("/v1/operators", json={"name": "eve"}), 403, "forbidden")
    problem(grace.get("/v1/pipelines"), 403, "forbidden")
    assert grace.get("/v1/fleet").status_code == 200
    shop.put("/v1/access-grants/support", {}).raise_for_status()
    grace.headers["Pointsman-Grant"] = f"{shop.id}/support"
    assert grace.get("/v1/pipelines/orders").status_code == 200
    newest = {"at_least": served.control_plane.log.latest()}
    events = shop.api.get("/v1/access-grants/support/events", params=newest).json()["items"]
    assert [each["actor"] for each in events if each["type"] == "AccessUsed"] == [f"operator:{key['id']}"]
    revoked = operator.delete(f"/v1/operators/{key['id']}")
    shop.seen(revoked)
    problem(grace.get("/v1/pipelines/orders"), 401, "unauthenticated")
    with served.administrator() as connected:
        aside = connected.execute("SELECT projection FROM projection_quarantines WHERE tenant = 'operator'").fetchall()
    assert aside == [], "what happens to operators' keys is projected like everything else"


def test_no_tenant_makes_a_key_of_the_vendor(tenant: Tenant) -> None:
    """The role is not one of a tenant's, and an operator's key is not the tenant's to revoke."""
    problem(tenant.api.post("/v1/api-keys", json={"name": "k", "role": "vendor"}), 422, "invalid_document")
    problem(tenant.api.delete("/v1/operators/0123456789abcdef"), 403, "forbidden")


def test_a_grant_opens_neither_people_nor_keys_nor_any_change(shop: Tenant) -> None:
    """It is for looking at pipelines."""
    shop.put("/v1/access-grants/support", {}).raise_for_status()
    operator = under(shop, "support")
    for method, path in (
        ("GET", "/v1/members"),
        ("GET", "/v1/api-keys"),
        ("GET", "/v1/audit/entries"),
        ("POST", "/v1/pipelines/orders/pause"),
        ("DELETE", "/v1/pipelines/orders"),
        ("PUT", "/v1/access-grants/support"),
        ("GET", "/v1/tenants"),
    ):
        problem(operator.request(method, path, json={}), 403, "forbidden")


def test_a_grant_ends_when_it_is_revoked_or_its_time_is_over(
    served: Served, shop: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The very next read is refused."""
    shop.put("/v1/access-grants/support", {"hours": 1}).raise_for_status()
    operator = under(shop, "support")
    assert operator.get("/v1/pipelines").status_code == 200
    shop.api.delete("/v1/access-grants/support").raise_for_status()
    problem(operator.get("/v1/pipelines"), 403, "forbidden")
    shop.put("/v1/access-grants/support", {"hours": 1}).raise_for_status()
    later = datetime.now(UTC) + timedelta(hours=1, seconds=1)
    monkeypatch.setattr(served.control_plane.write_path, "_clock", lambda: later)
    problem(operator.get("/v1/pipelines"), 403, "forbidden")


def test_a_grant_is_of_one_tenant_and_of_the_operator_only(shop: Tenant, make_tenant: Callable[[], Tenant]) -> None:
    """Nobody else comes in with it, and it opens no other tenant."""
    shop.put("/v1/access-grants/support", {}).raise_for_status()
    other = make_tenant()
    problem(under(other, "support").get("/v1/pipelines"), 403, "forbidden")
    other.api.headers["Pointsman-Grant"] = f"{shop.id}/support"
    assert other.api.get("/v1/pipelines").json()["items"] == []
    for odd in ("support", f"{shop.id}/", f"{shop.id.upper()}/support", f"operator/{'x' * 64}"):
        client = other.client(OPERATOR_KEY)
        client.headers["Pointsman-Grant"] = odd
        problem(client.get("/v1/pipelines"), 400, "invalid_header")


def test_the_fleet_shows_health_and_no_configuration(served: Served, shop: Tenant, operator: httpx.Client) -> None:
    """Nodes and counts of phases; no pipeline, connection, table or host by name."""
    with served.administrator() as connected:
        connected.execute(
            "INSERT INTO telemetry_nodes (tenant, data_plane, node, key, sequence, at, started_at, agent_version, contract)"
            " VALUES (%s, 'local', 'n1', 'U', 1, now(), now(), '0.1.0', 2)",
            [shop.id],
        )
    cursor, found, text = None, None, ""
    while found is None:
        answer = operator.get("/v1/fleet", params={"limit": 200, **({"cursor": cursor} if cursor else {})})
        found = next((each for each in answer.json()["items"] if each["tenant"] == shop.id), None)
        cursor, text = answer.json()["next_cursor"], answer.text
        assert found is not None or cursor is not None
    assert [(node["node"], node["connected"]) for node in found["nodes"]] == [("n1", True)]
    for private in ("public.orders", "warehouse", "db.internal", "password"):
        assert private not in text


# ---- Guessing -------------------------------------------------------------------------------------------------------


def test_whoever_fails_too_often_is_refused_until_time_has_passed() -> None:
    """By address; a key that was good before passes from there, and other addresses notice nothing."""
    now = [0.0]
    limit = FailureLimit(lambda: now[0])
    limit.succeeded("good")
    for _ in range(ATTEMPTS_MAX):
        limit.check("here", "guess")
        limit.failed("here")
    with pytest.raises(Refused) as refused:
        limit.check("here", "guess")
    assert refused.value.code == "too_many_requests"
    limit.check("here", "good")
    limit.check("there", "guess")
    now[0] += REFILL_SECONDS
    limit.check("here", "guess")


def test_a_tenant_that_floods_is_slowed_down_and_no_other(
    served: Served, tenant: Tenant, make_tenant: Callable[[], Tenant], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A burst passes, then as many a second as are allowed; other tenants notice nothing."""
    now = [0.0]
    limit = RequestLimit(lambda: now[0])
    for _ in range(REQUESTS_BURST_MAX):
        limit.take(tenant.id)
    monkeypatch.setattr(served.control_plane.services, "requests", limit)
    limited = tenant.api.get("/v1/pipelines")
    problem(limited, 429, "too_many_requests")
    assert limited.headers["retry-after"]
    assert make_tenant().api.get("/v1/pipelines").status_code == 200
    now[0] += 1 / REQUESTS_PER_SECOND_MAX
    assert tenant.api.get("/v1/pipelines").status_code == 200


def test_guessing_is_limited_at_the_api_and_for_join_tokens(
    served: Served, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer says when to come back; a tenant that works from the same address goes on."""
    tenant.api.get("/v1/pipelines").raise_for_status()
    limit = FailureLimit(lambda: 0.0)
    monkeypatch.setattr(served.control_plane.services, "failures", limit)
    tenant.api.get("/v1/pipelines").raise_for_status()
    token = {"token": "pmj_" + "0" * 32 + "_x_" + "x" * 43, "node": "n", "node_key": "U" + "A" * 55, "contract": 2}
    guess = bearer(f"pm_0123456789abcdef_{'x' * 43}")
    with httpx.Client(base_url=served.url, verify=False) as nobody:
        asks = (lambda: nobody.post("/v1/enrol", json=token), lambda: nobody.get("/v1/pipelines", headers=guess))
        codes = {asks[number % 2]().json()["code"] for number in range(ATTEMPTS_MAX)}
        assert codes == {"unauthenticated", "invalid_token"}
        for ask in asks:
            limited = ask()
            problem(limited, 429, "too_many_requests")
            assert limited.headers["retry-after"]
    assert tenant.api.get("/v1/pipelines").status_code == 200


def test_answers_have_the_form_that_is_described(tenant: Tenant, operator: httpx.Client) -> None:
    """Without a field too many or too few."""
    member = add(tenant).json()
    tenant.seen(tenant.put("/v1/access-grants/support", {}))
    for client, path, form in (
        (tenant.api, "/v1/members", schemas.Members),
        (tenant.api, f"/v1/members/{member['name']}", schemas.MemberResource),
        (tenant.api, "/v1/access-grants", schemas.AccessGrants),
        (tenant.api, "/v1/access-grants/support", schemas.AccessGrantResource),
        (operator, "/v1/fleet", schemas.Fleet),
    ):
        strict = msgspec.defstruct(form.__name__, [], bases=(form,), forbid_unknown_fields=True, kw_only=True)
        msgspec.convert(client.get(path).json(), strict)
