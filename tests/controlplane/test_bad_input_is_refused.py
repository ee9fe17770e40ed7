"""Whatever is wrong with a request gets a problem with a stable code and a hint, and changes nothing."""

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from tests.controlplane.conftest import Tenant, connection, pipeline, problem

from controlplane.api.application import BODY_BYTES_MAX

CANARY = "hunter2-canary"

WRITES: list[tuple[str, str]] = [
    ("PUT", "/v1/connections/{}"),
    ("DELETE", "/v1/connections/{}"),
    ("PUT", "/v1/pipelines/{}"),
    ("DELETE", "/v1/pipelines/{}"),
    ("POST", "/v1/pipelines/{}/pause"),
    ("POST", "/v1/pipelines/{}/resume"),
    ("POST", "/v1/pipelines/{}/restart"),
    ("POST", "/v1/pipelines/{}/resync"),
    ("POST", "/v1/pipelines/{}/reconcile"),
    ("PUT", "/v1/data-planes/{}"),
    ("DELETE", "/v1/data-planes/{}"),
    ("POST", "/v1/data-planes/{}/join-tokens"),
    ("DELETE", "/v1/nodes/{}"),
    ("DELETE", "/v1/api-keys/{}"),
    ("POST", "/v1/api-keys"),
    ("POST", "/v1/enrol"),
]
WITH_BODY = [each for each in WRITES if each[0] != "DELETE"]


def _events(tenant: Tenant) -> list[Any]:
    items: list[Any] = tenant.api.get("/v1/events", params={"limit": 200}).json()["items"]
    return items


@pytest.mark.parametrize(("method", "path"), WITH_BODY)
@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b'{"kind": ', "malformed_json"),
        (b"\xff\xfe", "malformed_json"),
        (b"kind: Connection", "malformed_json"),
        (b"[1, 2]", "invalid_document"),
        (b'"text"', "invalid_document"),
        (b'{"a":' * 40 + b"1" + b"}" * 40, "invalid_document"),
        (json.dumps({"x": "\0"}).encode(), "invalid_document"),
    ],
)
def test_a_body_that_is_no_document_is_refused_everywhere(
    standing: Tenant, method: str, path: str, body: bytes, code: str
) -> None:
    """Every route that takes a body refuses what is not a JSON object."""
    before = _events(standing)
    response = standing.api.request(method, path.format("orders" if "pipelines" in path else "local"), content=body)
    problem(response, 400 if code == "malformed_json" else 422, code)
    assert _events(standing) == before


@pytest.mark.parametrize(("method", "path"), WITH_BODY)
def test_a_body_over_the_limit_is_refused_everywhere(standing: Tenant, method: str, path: str) -> None:
    """1 MiB is the limit, whether the length is declared or not."""
    address = path.format("local")
    declared = standing.api.request(method, address, content=b" " * (BODY_BYTES_MAX + 1))
    problem(declared, 413, "body_too_large")
    chunked = standing.api.request(method, address, content=iter([b" " * 65_536] * 40))
    problem(chunked, 413, "body_too_large")


@pytest.mark.parametrize(("method", "path"), [each for each in WRITES if "{}" in each[1]])
@pytest.mark.parametrize(
    "name", ["Upper", "under_score", "-dash", "dash-", "a" * 64, "sp ace", "%00", "ünï", "a.b", "*"]
)
def test_a_name_with_odd_characters_is_refused_everywhere(standing: Tenant, method: str, path: str, name: str) -> None:
    """Names are subjects, file names and log fields elsewhere, so they have a small alphabet."""
    body = (
        {"/v1/connections/{}": connection("x"), "/v1/pipelines/{}": pipeline()}.get(path) if method == "PUT" else None
    )
    quoted = name if name.startswith("%") else httpx.URL(path="/" + name).raw_path.decode()[1:]
    response = (
        standing.api.request(method, path.format(quoted), json=body)
        if body
        else standing.api.request(method, path.format(quoted))
    )
    expected = (404, "not_found") if "api-keys" in path else (422, "invalid_name")
    problem(response, *expected)


@pytest.mark.parametrize("path", ["/v1/connections/{}", "/v1/pipelines/{}", "/v1/data-planes/{}", "/v1/nodes/{}"])
@pytest.mark.parametrize("name", ["Upper", "%00", "none", "a" * 300])
def test_reading_what_cannot_exist_says_that_it_does_not(standing: Tenant, path: str, name: str) -> None:
    """A read of an impossible name is answered like that of a missing one."""
    problem(standing.api.get(path.format(name)), 404, "not_found")


def _changed(document: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    changed: dict[str, Any] = json.loads(json.dumps(document))
    *parents, last = path.split("/")
    target: Any = changed
    for parent in parents:
        target = target.setdefault(parent, {})
    target[last] = value
    return changed


@pytest.mark.parametrize(
    ("path", "value", "code", "pointer"),
    [
        ("type", "oracle", "unknown_type", "/type"),
        ("type", None, "invalid_document", "/type"),
        ("kind", "Pipeline", "invalid_document", "/kind"),
        ("name", "other", "invalid_document", "/name"),
        ("surprise", 1, "unknown_field", "/surprise"),
        ("config/surprise", 1, "unknown_field", "/config/surprise"),
        ("config/type", "postgres", "unknown_field", "/config/type"),
        ("config/port", "5432", "invalid_document", "/config/port"),
        ("config/port", 70_000, "invalid_document", "/config/port"),
        ("config/host", "", "invalid_document", "/config/host"),
        ("config/host", "a b", "invalid_document", "/config/host"),
        ("config/database", "shop\n", "invalid_document", "/config/database"),
        ("config/ssl_mode", "maybe", "invalid_document", "/config/ssl_mode"),
        ("config", [], "invalid_document", "/config"),
        ("secrets", "file:x", "invalid_document", "/secrets"),
        ("secrets/password", 7, "invalid_document", "/secrets/password"),
        ("secrets/password", "file:../up", "invalid_document", "/secrets/password"),
        ("secrets/password", "env:lower", "invalid_document", "/secrets/password"),
    ],
)
def test_a_connection_with_a_fault_is_refused(standing: Tenant, path: str, value: Any, code: str, pointer: str) -> None:
    """The problem points at the field."""
    response = standing.put("/v1/connections/shop", _changed(connection("shop"), path, value))
    assert problem(response, 422, code)["errors"][0]["pointer"] == pointer
    assert standing.api.get("/v1/connections/shop").json()["generation"] == 1


@pytest.mark.parametrize(
    "path",
    [
        "secrets/password",
        "config/password",
        "config/ssl_password",
        "config/api_key",
        "password",
        "token",
    ],
)
def test_a_secret_in_plain_text_is_refused_and_not_repeated(standing: Tenant, path: str) -> None:
    """Wherever it was written: the code says so, and neither answer nor log nor event holds the value."""
    response = standing.put("/v1/connections/shop", _changed(connection("shop"), path, CANARY))
    assert CANARY not in response.text
    assert "file:" in problem(response, 422, "secret_in_plain_text")["hint"]
    assert CANARY not in standing.api.get("/v1/events").text


@pytest.mark.parametrize("host", [f"postgres://pointsman:{CANARY}@db", f"db password={CANARY}"])
def test_a_password_inside_an_address_is_refused(standing: Tenant, host: str) -> None:
    """A connection string in place of a host holds the secret, too."""
    response = standing.put("/v1/connections/shop", connection("shop", host=host))
    assert CANARY not in response.text
    problem(response, 422, "secret_in_plain_text")


@pytest.mark.parametrize(
    ("path", "value", "code", "pointer"),
    [
        ("data_plane", "nowhere", "unknown_data_plane", "/data_plane"),
        ("data_plane", None, "invalid_document", "/data_plane"),
        ("source/connection", "nothing", "unknown_connection", "/source/connection"),
        ("sink/connection", "nothing", "unknown_connection", "/sink/connection"),
        ("sink/parallelism", 2, "invalid_document", "/sink/parallelism"),
        ("sink/parallelism", 9, "invalid_document", "/sink/parallelism"),
        ("sink/consistency", "table", "invalid_document", "/sink/consistency"),
        ("source/tables", [], "invalid_document", "/source/tables"),
        ("source/log", {"on_full": "stop"}, "invalid_document", "/source/log/retain_bytes_max"),
        ("source/log", {"retain_bytes_max": 1000}, "invalid_document", "/source/log/retain_bytes_max"),
        ("source/log", {"on_full": "drop"}, "invalid_document", "/source/log/on_full"),
        ("source/failover", "yes", "invalid_document", "/source/failover"),
        ("source/tables", ["orders"], "invalid_document", "/source/tables/0"),
        ("source/tables", ["public.a", "public.a"], "invalid_document", "/source/tables/1"),
        ("source/tables", ['public."odd"'], "invalid_document", "/source/tables/0"),
        ("source/tables", ["s.t\n"], "invalid_document", "/source/tables/0"),
        ("source/tabels", [], "unknown_field", "/source/tabels"),
        ("source", "shop", "invalid_document", "/source"),
        ("buffer", {"type": "kafka"}, "unknown_type", "/buffer/type"),
        ("buffer", {"type": "jetstream", "size_bytes_max": 1}, "invalid_document", "/buffer/size_bytes_max"),
        ("buffer", {"type": "jetstream", "retention": 1}, "unknown_field", "/buffer/retention"),
        ("buffer", {"type": "direct", "confirm": "buffer"}, "invalid_document", "/buffer/confirm"),
        (
            "buffer",
            {"type": "jetstream", "confirm": "buffer", "size_bytes_max": 1 << 20},
            "invalid_document",
            "/buffer/size_bytes_max",
        ),
        ("transforms", [{"type": "encrypt"}], "unknown_type", "/transforms/0/type"),
        ("transforms", [{"type": "drop", "table": "public.orders"}], "invalid_document", "/transforms/0/columns"),
        (
            "transforms",
            [{"type": "drop", "table": "public.other", "columns": ["a"]}],
            "invalid_document",
            "/transforms/0/table",
        ),
        (
            "transforms",
            [{"type": "mask", "table": "public.orders", "columns": ["a"], "method": "hash"}],
            "invalid_document",
            "/transforms/0/secret",
        ),
        (
            "transforms",
            [{"type": "mask", "table": "public.orders", "columns": ["a"], "method": "hash", "secret": CANARY}],
            "secret_in_plain_text",
            "/transforms/0/secret",
        ),
    ],
)
def test_a_pipeline_with_a_fault_is_refused(standing: Tenant, path: str, value: Any, code: str, pointer: str) -> None:
    """The problem points at the field."""
    response = standing.put("/v1/pipelines/new", _changed(pipeline(), path, value))
    assert problem(response, 422, code)["errors"][0]["pointer"] == pointer
    assert CANARY not in response.text
    problem(standing.api.get("/v1/pipelines/new"), 404, "not_found")


def test_a_buffer_that_is_data_is_not_given_up(shop: Tenant) -> None:
    """It may hold the only copy of changes; that it is data is said when it becomes so, and not again."""
    kept = pipeline(buffer={"type": "jetstream", "confirm": "buffer"})
    assert "leaf's disk" in str(shop.put("/v1/pipelines/orders", kept).raise_for_status().json()["warnings"])
    larger = pipeline(buffer={"type": "jetstream", "confirm": "buffer", "size_bytes_max": 1 << 31})
    assert shop.put("/v1/pipelines/orders", larger).raise_for_status().json()["warnings"] == []
    for buffer in ({"type": "direct"}, {"type": "jetstream"}):
        refused = problem(shop.put("/v1/pipelines/orders", pipeline(buffer=buffer)), 422, "immutable_field")
        assert refused["errors"][0]["pointer"] == "/buffer/confirm"


def test_a_table_that_would_be_copied_onto_itself_is_refused(shop: Tenant) -> None:
    """Whether through one connection, through two that lead to the same database, or round through other pipelines."""
    same = shop.put("/v1/pipelines/x", pipeline(sink={"connection": "shop"}))
    problem(same, 422, "same_table_cycle")
    shop.put("/v1/connections/alias", connection("shop", host="DB.internal.")).raise_for_status()
    problem(shop.put("/v1/pipelines/x", pipeline(sink={"connection": "alias"})), 422, "same_table_cycle")
    back = pipeline(source={"connection": "warehouse", "tables": ["public.orders"]}, sink={"connection": "shop"})
    problem(shop.put("/v1/pipelines/back", back), 422, "same_table_cycle")


def test_two_pipelines_cannot_write_the_same_table(shop: Tenant) -> None:
    """Not even when the connections have different names."""
    shop.put("/v1/connections/alias", connection("warehouse")).raise_for_status()
    other = pipeline(source={"connection": "other", "tables": ["public.orders"]}, sink={"connection": "alias"})
    shop.put("/v1/connections/other", connection("other")).raise_for_status()
    assert "orders" in problem(shop.put("/v1/pipelines/x", other), 409, "table_taken")["detail"]


def test_a_change_of_a_connection_cannot_break_a_pipeline(shop: Tenant) -> None:
    """A destination that is pointed at the source's database would close a circle."""
    problem(shop.put("/v1/connections/warehouse", connection("shop")), 422, "same_table_cycle")


def test_a_pipeline_stays_on_its_data_plane(shop: Tenant) -> None:
    """Two data planes would run it at the same moment."""
    shop.put("/v1/data-planes/other", {}).raise_for_status()
    problem(shop.put("/v1/pipelines/orders", pipeline(data_plane="other")), 422, "immutable_field")


def test_a_document_too_large_for_a_message_is_refused(standing: Tenant) -> None:
    """A node could never receive it."""
    tables = [f"{'s' * 60}.{'t' * 55}{number:05d}" for number in range(500)]
    large = pipeline(source={"connection": "shop", "tables": tables})
    problem(standing.put("/v1/pipelines/large", large), 422, "too_large_for_the_channel")


@pytest.mark.parametrize("method", ["PUT", "DELETE"])
@pytest.mark.parametrize("path", ["/v1/connections/shop", "/v1/pipelines/orders", "/v1/data-planes/local"])
def test_a_stale_generation_is_refused(standing: Tenant, method: str, path: str) -> None:
    """If-Match protects what somebody else has changed since."""
    current = standing.api.get(path)
    stale = standing.api.request(method, path, headers={"If-Match": '"7"'}, json=current.json())
    problem(stale, 412, "stale_generation")
    for odd in ("1", 'W/"1"', '"x"', "**"):
        answer = standing.api.request(method, path, headers={"If-Match": odd}, json=current.json())
        problem(answer, 400, "invalid_header")
    assert standing.api.get(path).headers["etag"] == '"1"'


def test_if_none_match_creates_and_never_changes(shop: Tenant) -> None:
    """`*` asks that the resource does not exist."""
    response = shop.api.put("/v1/connections/shop", headers={"If-None-Match": "*"}, json=connection("other"))
    problem(response, 412, "already_exists")
    made = shop.api.put("/v1/connections/new", headers={"If-None-Match": "*"}, json=connection("new"))
    assert made.status_code == 201
    problem(
        shop.api.put("/v1/connections/gone", headers={"If-Match": "*"}, json=connection("x")), 412, "stale_generation"
    )


@pytest.mark.parametrize(("method", "path"), WRITES)
def test_an_unknown_parameter_is_refused(standing: Tenant, method: str, path: str) -> None:
    """A misspelt dry_run must not write."""
    before = _events(standing)
    bodies: dict[str, Any] = {"/v1/connections/{}": connection("x"), "/v1/pipelines/{}": pipeline()}
    body = bodies.get(path) if method == "PUT" else None
    response = standing.api.request(method, path.format("local"), params={"dryrun": "true"}, json=body)
    problem(response, 400, "invalid_parameter")
    assert _events(standing) == before


@pytest.mark.parametrize(
    "query",
    ["limit=0", "limit=201", "limit=x", "limit=1&limit=2", "at_least=-1", "at_least=1e3", "cursor=%00", "x=1"],
)
def test_a_parameter_of_another_form_is_refused(standing: Tenant, query: str) -> None:
    """No parameter is guessed at."""
    problem(standing.api.get(f"/v1/pipelines?{query}"), 400, "invalid_parameter")


@pytest.mark.parametrize("key", ["", "a b", "ü".encode().decode("latin-1"), "x" * 129])
def test_an_idempotency_key_of_another_form_is_refused(standing: Tenant, key: str) -> None:
    """It is stored, so it is bounded."""
    response = standing.api.put(
        "/v1/connections/shop", headers={b"Idempotency-Key": key.encode("latin-1")}, json=connection("shop")
    )
    problem(response, 400, "invalid_header")


@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "",
        "Bearer",
        "Bearer x",
        "Basic dXNlcjpwdw==",
        "Bearer pm_0123456789abcdef_" + "x" * 43,
        "Bearer pm__",
        "Bearer " + "x" * 9000,
    ],
)
def test_a_wrong_key_is_refused_on_every_route(served: Any, authorization: str | None) -> None:
    """Without a valid key there is nothing but health, enrolment and documentation."""
    headers = {"Authorization": authorization} if authorization is not None else {}
    with httpx.Client(base_url=served.url, verify=False) as client:
        for method, path in (("GET", "/v1/pipelines"), ("GET", "/v1/audit/entries"), ("POST", "/v1/tenants"), *WRITES):
            if path != "/v1/enrol":
                response = client.request(method, path.format("x"), headers=headers, json={})
                problem(response, 401, "unauthenticated")
                assert response.headers["www-authenticate"] == "Bearer"


def test_an_expired_or_revoked_key_opens_nothing(tenant: Tenant) -> None:
    """Both are refused like an unknown one."""
    viewer = tenant.as_role("viewer")
    key_id = viewer.headers["authorization"].split("_")[1]
    assert viewer.get("/v1/pipelines").status_code == 200
    tenant.api.delete(f"/v1/api-keys/{key_id}").raise_for_status()
    problem(viewer.get("/v1/pipelines"), 401, "unauthenticated")
    problem(tenant.api.delete(f"/v1/api-keys/{key_id}"), 404, "not_found")


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"name": "k", "role": "root"}, "invalid_document"),
        ({"name": "k", "role": "vendor"}, "invalid_document"),
        ({"name": "K K", "role": "viewer"}, "invalid_name"),
        ({"name": "k"}, "invalid_document"),
        ({"name": "k", "role": "viewer", "expires_in_days": 0}, "invalid_document"),
        ({"name": "k", "role": "viewer", "hash": "x"}, "unknown_field"),
    ],
)
def test_a_key_that_cannot_be_is_refused(standing: Tenant, body: Any, code: str) -> None:
    """Roles are a closed list, and names are names."""
    problem(standing.api.post("/v1/api-keys", json=body), 422, code)


@pytest.mark.parametrize("body", [{}, {"name": "A"}, {"name": 7}, {"name": "a", "plan": "x"}])
def test_a_tenant_that_cannot_be_is_refused(operator: httpx.Client, body: Any) -> None:
    """The operator's input is checked as anybody's."""
    assert operator.post("/v1/tenants", json=body).json()["code"] in (
        "invalid_document",
        "invalid_name",
        "unknown_field",
    )


def test_a_tenants_name_is_taken_once(operator: httpx.Client, tenant: Tenant) -> None:
    """A second tenant of the same name would be the same tenant."""
    problem(operator.post("/v1/tenants", json={"name": tenant.name}), 409, "name_taken")


@pytest.mark.parametrize("path", ["/", "/v1", "/v2/pipelines", "/v1/pipeline", "/v1/pipelines/a/b/c", "/schema"])
def test_an_address_that_is_not_there_is_a_problem(standing: Tenant, path: str) -> None:
    """Also what never reaches a controller is answered in the one form."""
    problem(standing.api.get(path), 404, "not_found")


@pytest.mark.parametrize(
    ("method", "path"), [("PATCH", "/v1/pipelines/x"), ("PUT", "/v1/pipelines"), ("POST", "/v1/connections/x")]
)
def test_a_method_that_is_not_allowed_is_a_problem(standing: Tenant, method: str, path: str) -> None:
    """The answer names the methods that are."""
    response = standing.api.request(method, path)
    problem(response, 405, "method_not_allowed")
    assert "GET" in response.headers["allow"]


def test_a_surprise_is_answered_without_its_text(
    served: Any, standing: Tenant, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What nobody foresaw leaves the process only as a request id; the log has the rest."""

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError(CANARY)

    monkeypatch.setattr("controlplane.readmodels.queries.page", fail)
    response = standing.api.get("/v1/pipelines", headers={"X-Request-Id": "given-by-the-caller"})
    body = problem(response, 500, "internal")
    assert CANARY not in response.text
    assert body["request_id"] == "given-by-the-caller"
    assert CANARY in caplog.text
    caplog.clear()


def test_no_refused_secret_reaches_the_database(served: Any, tenant: Tenant, make_query: Callable[[str], Any]) -> None:
    """Everything that was refused above left no trace: the value is in no table."""
    tenant.put("/v1/connections/shop", _changed(connection("shop"), "secrets/password", CANARY))
    tenant.api.put(
        "/v1/connections/shop",
        headers={"Idempotency-Key": "k"},
        json=_changed(connection("shop"), "config/password", CANARY),
    )
    for table in ("stored_events", "resources", "catalogue", "idempotency_records", "audit_entries"):
        assert make_query(f"SELECT count(*) FROM {table} t WHERE t::text LIKE '%{CANARY}%'") == [(0,)]


@pytest.fixture
def make_query(served: Any) -> Callable[[str], Any]:
    def query(sql: str) -> Any:
        with served.administrator() as connected:
            return connected.execute(sql).fetchall()

    return query
