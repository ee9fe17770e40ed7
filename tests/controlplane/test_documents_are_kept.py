"""Documents: written whole, read back as they were written, each change a generation."""

from typing import Any

import pytest
from tests.controlplane.conftest import Tenant, connection, pipeline, problem


def test_what_was_written_can_be_read_edited_and_written_again(shop: Tenant) -> None:
    """A resource as it is read is a document that can be put back: read-only fields are passed over."""
    for path in ("/v1/connections/shop", "/v1/pipelines/orders", "/v1/data-planes/local"):
        read = shop.api.get(path).json()
        again = shop.put(path, read)
        assert (again.status_code, again.json()["generation"]) == (200, 1), again.text
        assert {**again.json(), "warnings": None} == {**read, "warnings": None}


def test_a_pipeline_may_ask_for_lanes(shop: Tenant) -> None:
    """Several connections, where the order of each key is enough; without a word there is one."""
    assert shop.api.get("/v1/pipelines/orders").json()["sink"] == {"connection": "warehouse"}
    sink = {"connection": "warehouse", "consistency": "key", "parallelism": 4}
    written = shop.put("/v1/pipelines/orders", pipeline(sink=sink))
    assert written.status_code == 200, written.text
    read = shop.api.get("/v1/pipelines/orders", params={"at_least": written.json()["revision"]}).json()["sink"]
    assert (read["consistency"], read["parallelism"]) == ("key", 4)


def test_a_change_raises_the_generation_and_no_change_does_not(shop: Tenant) -> None:
    """The ETag is the generation, and it grows only when something is different."""
    first = shop.api.get("/v1/connections/shop")
    assert first.headers["etag"] == '"1"'
    changed = shop.put("/v1/connections/shop", connection("shop", port=6543))
    assert (changed.headers["etag"], changed.json()["config"]["port"]) == ('"2"', 6543)
    same = shop.put("/v1/connections/shop", connection("shop", port=6543))
    assert (same.headers["etag"], same.json()["revision"]) == ('"2"', changed.json()["revision"])
    assert len(shop.api.get("/v1/connections/shop/events").json()["items"]) == 2


def test_a_write_is_visible_to_a_read_that_names_its_revision(shop: Tenant) -> None:
    """`at_least` waits for the read model."""
    for port in range(6000, 6010):
        written = shop.put("/v1/connections/shop", connection("shop", port=port)).json()
        read = shop.api.get("/v1/connections/shop", params={"at_least": written["revision"]}).json()
        assert read["config"]["port"] == port


def test_a_revision_that_nobody_wrote_is_not_waited_for_for_ever(shop: Tenant) -> None:
    """After two seconds the answer says that the read model is behind."""
    late = shop.api.get("/v1/connections/shop", params={"at_least": 2**60})
    problem(late, 503, "projection_behind")


def test_a_dry_run_checks_everything_and_changes_nothing(shop: Tenant) -> None:
    """It answers what would be, or the refusal that would come."""
    would = shop.api.put("/v1/connections/shop", params={"dry_run": "true"}, json=connection("elsewhere"))
    assert (would.status_code, would.json()["generation"]) == (200, 2)
    refused = shop.api.put("/v1/pipelines/x", params={"dry_run": "true"}, json=pipeline(data_plane="none"))
    problem(refused, 422, "unknown_data_plane")
    shop.api.delete("/v1/pipelines/orders", params={"dry_run": "true"}).raise_for_status()
    key = shop.api.post("/v1/api-keys", params={"dry_run": "true"}, json={"name": "k", "role": "viewer"}).json()
    token = shop.api.post("/v1/data-planes/local/join-tokens", params={"dry_run": "true"}).json()
    assert (key["api_key"], token["token"]) == (None, None)
    assert shop.api.get("/v1/connections/shop").json()["generation"] == 1
    assert shop.api.get("/v1/pipelines/orders").status_code == 200
    assert len(shop.api.get("/v1/api-keys").json()["items"]) == 1


def test_a_deleted_name_goes_on_with_a_higher_generation(shop: Tenant) -> None:
    """Nodes can tell the new resource of an old name from the old one."""
    shop.api.delete("/v1/pipelines/orders").raise_for_status()
    problem(shop.api.get("/v1/pipelines/orders"), 404, "not_found")
    again = shop.put("/v1/pipelines/orders", pipeline())
    assert (again.status_code, again.json()["generation"]) == (201, 3)


def test_pause_resume_and_restart_are_changes_that_nodes_can_acknowledge(shop: Tenant) -> None:
    """Each raises the generation once; asking for what is so already changes nothing."""
    answers = [
        shop.api.post(f"/v1/pipelines/orders/{verb}").json()
        for verb in ("pause", "pause", "resume", "resume", "restart")
    ]
    assert [(each["generation"], each["run"], each["restarts"]) for each in answers] == [
        (2, "paused", 0),
        (2, "paused", 0),
        (3, "running", 0),
        (3, "running", 0),
        (4, "running", 1),
    ]


def test_a_resync_counts_for_each_table_and_never_goes_back(shop: Tenant) -> None:
    """All tables or some; a table that leaves the pipeline loses its counter, and the next one is higher than any before."""
    both, fewer = pipeline(), pipeline(source={"connection": "shop", "tables": ["public.customers"]})
    everything = shop.api.post("/v1/pipelines/orders/resync").json()
    assert everything["resyncs"] == {"public.customers": 1, "public.orders": 1}
    one = shop.api.post("/v1/pipelines/orders/resync", json={"tables": ["public.orders"]}).json()
    assert (one["resyncs"], one["generation"]) == ({"public.customers": 1, "public.orders": 2}, 3)
    shop.put("/v1/pipelines/orders", fewer).raise_for_status()
    back = shop.put("/v1/pipelines/orders", {**both, "resyncs": {"public.orders": 99}}).json()
    assert back["resyncs"] == {"public.customers": 1}
    shop.api.delete("/v1/pipelines/orders").raise_for_status()
    assert shop.put("/v1/pipelines/orders", both).json()["resyncs"] == {}
    again = shop.api.post("/v1/pipelines/orders/resync", json={"tables": ["public.orders"]}).json()
    assert again["resyncs"] == {"public.orders": 3}


def test_a_comparison_is_counted_like_a_resync_and_remembers_whether_it_mends(shop: Tenant) -> None:
    """The newest request of each table counts; nobody writes it, and a table that leaves loses it."""
    path = "/v1/pipelines/orders/reconcile"
    plain, mended = {"number": 1, "repair": False}, {"number": 2, "repair": True}
    everything = shop.api.post(path).json()
    assert everything["reconciles"] == {"public.customers": plain, "public.orders": plain}
    one = shop.api.post(path, json={"tables": ["public.orders"], "repair": True}).json()
    assert (one["reconciles"], one["generation"]) == ({"public.customers": plain, "public.orders": mended}, 3)
    assert [(each["table"], each["state"]) for each in one["status"]["reconciles"]] == [
        ("public.customers", "waiting"),
        ("public.orders", "waiting"),
    ]
    fewer = pipeline(source={"connection": "shop", "tables": ["public.customers"]})
    assert shop.put("/v1/pipelines/orders", {**fewer, "reconciles": {}}).json()["reconciles"] == {
        "public.customers": plain
    }
    shop.api.post("/v1/pipelines/orders/pause").raise_for_status()
    assert "resumed" in shop.api.post(path).json()["warnings"][0]
    events = shop.api.get("/v1/pipelines/orders/events").json()["items"]
    asked = [each["data"]["reconciles"] for each in events if each["type"] == "PipelineReconcileRequested"]
    assert asked[1] == {"public.customers": plain, "public.orders": mended}


@pytest.mark.parametrize(
    ("body", "code", "pointer"),
    [
        ({"tables": ["public.none"]}, "unknown_table", "/tables/0"),
        ({"tables": ["public.orders", "public.orders"]}, "invalid_document", "/tables/1"),
        ({"repair": "yes"}, "invalid_document", "/repair"),
        ({"mend": True}, "unknown_field", "/mend"),
    ],
)
def test_a_comparison_that_makes_no_sense_is_refused(
    shop: Tenant, body: dict[str, Any], code: str, pointer: str
) -> None:
    """The refusal points at what is wrong and changes nothing."""
    refused = problem(shop.api.post("/v1/pipelines/orders/reconcile", json=body), 422, code)
    assert refused["errors"][0]["pointer"] == pointer
    assert shop.api.get("/v1/pipelines/orders").json()["generation"] == 1


def test_a_resync_obeys_what_every_write_obeys(shop: Tenant) -> None:
    """A dry run changes nothing, a stale ETag is refused, and an Idempotency-Key asks once however often it is sent."""
    path = "/v1/pipelines/orders/resync"
    both = {"public.customers": 1, "public.orders": 1}
    would = shop.api.post(path, params={"dry_run": "true"}).json()
    assert (would["resyncs"], shop.api.get("/v1/pipelines/orders").json()["resyncs"]) == (both, {})
    problem(shop.api.post(path, headers={"If-Match": '"7"'}), 412, "stale_generation")
    answers = [shop.api.post(path, headers={"Idempotency-Key": "once"}).json() for _ in range(2)]
    assert [each["resyncs"] for each in answers] == [both] * 2
    problem(
        shop.api.post(path, json={"tables": ["public.orders"]}, headers={"Idempotency-Key": "once"}),
        422,
        "idempotency_key_reused",
    )
    events = shop.api.get("/v1/pipelines/orders/events").json()["items"]
    assert [(each["type"], each["data"].get("resyncs")) for each in events][1:] == [("PipelineResyncRequested", both)]
    shop.api.delete("/v1/pipelines/orders", params={"cleanup": "true"}).raise_for_status()
    problem(shop.api.post(path), 409, "being_removed")


@pytest.mark.parametrize(
    ("body", "code", "pointer"),
    [
        ({"tables": ["public.none"]}, "unknown_table", "/tables/0"),
        ({"tables": ["public.orders", "public.none"]}, "unknown_table", "/tables/1"),
        ({"tables": ["public.orders", "public.orders"]}, "invalid_document", "/tables/1"),
        ({"tables": []}, "invalid_document", "/tables"),
        ({"tables": "public.orders"}, "invalid_document", "/tables"),
        ({"tables": ["orders"]}, "invalid_document", "/tables/0"),
        ({"table": ["public.orders"]}, "unknown_field", "/table"),
    ],
)
def test_a_resync_of_other_tables_is_refused(shop: Tenant, body: dict[str, Any], code: str, pointer: str) -> None:
    """Only what the pipeline captures can be copied again; the refusal points at what is wrong and changes nothing."""
    refused = problem(shop.api.post("/v1/pipelines/orders/resync", json=body), 422, code)
    assert refused["errors"][0]["pointer"] == pointer
    assert shop.api.get("/v1/pipelines/orders").json()["generation"] == 1


def test_a_paused_pipeline_stays_paused_when_its_document_changes(shop: Tenant) -> None:
    """A new document says what flows, not whether it flows."""
    shop.api.post("/v1/pipelines/orders/pause").raise_for_status()
    changed = shop.put("/v1/pipelines/orders", pipeline(buffer={"type": "jetstream"}))
    assert (changed.json()["run"], changed.json()["buffer"]["type"]) == ("paused", "jetstream")


def test_a_deletion_says_that_the_source_keeps_its_log(shop: Tenant) -> None:
    """Without cleanup the replication slot stays, which fills the source's disk one day."""
    assert "slot" in shop.api.delete("/v1/pipelines/orders").json()["warnings"][0]


def test_a_removal_with_cleanup_waits_for_the_node(shop: Tenant) -> None:
    """It is accepted, and the pipeline is still there until its node has cleaned up; it cannot be changed meanwhile."""
    accepted = shop.api.delete("/v1/pipelines/orders", params={"cleanup": "true"})
    assert (accepted.status_code, accepted.json()["run"]) == (202, "removed")
    for response in (
        shop.put("/v1/pipelines/orders", pipeline()),
        shop.api.post("/v1/pipelines/orders/resume"),
    ):
        problem(response, 409, "being_removed")
    assert shop.api.delete("/v1/pipelines/orders").status_code == 200


def test_what_is_in_use_cannot_be_deleted(shop: Tenant) -> None:
    """A connection that a pipeline names and a data plane that one runs on stay."""
    for path in ("/v1/connections/shop", "/v1/connections/warehouse", "/v1/data-planes/local"):
        assert "orders" in problem(shop.api.delete(path), 409, "in_use")["detail"]
    shop.api.delete("/v1/pipelines/orders").raise_for_status()
    for path in ("/v1/connections/shop", "/v1/connections/warehouse", "/v1/data-planes/local"):
        assert shop.api.delete(path).status_code == 200


@pytest.mark.parametrize("limit", [1, 2, 3, 200])
def test_a_list_is_read_page_by_page_without_a_gap(tenant: Tenant, limit: int) -> None:
    """Cursors lead through all resources in the order of their names."""
    names = ["a", "a-1", "b0", "ba", "z"]
    for name in names:
        tenant.put(f"/v1/connections/{name}", connection("shop")).raise_for_status()
    read: list[str] = []
    cursor: str | None = None
    for _ in range(len(names) + 1):
        parameters: dict[str, Any] = {"limit": limit, **({"cursor": cursor} if cursor else {})}
        page = tenant.api.get("/v1/connections", params=parameters).json()
        read += [each["name"] for each in page["items"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert read == sorted(names)


def test_a_cursor_works_only_for_the_list_that_made_it(shop: Tenant) -> None:
    """It is signed: neither another list nor a changed cursor is followed."""
    cursor = shop.api.get("/v1/connections", params={"limit": 1}).json()["next_cursor"]
    for path, given in (("/v1/pipelines", cursor), ("/v1/connections", cursor[:-2] + "AA"), ("/v1/connections", "x")):
        problem(shop.api.get(path, params={"cursor": given}), 400, "invalid_parameter")


def test_events_of_a_resource_outlive_it(shop: Tenant) -> None:
    """What happened stays readable, in order, with who asked for it."""
    shop.api.post("/v1/pipelines/orders/restart").raise_for_status()
    revision = shop.api.delete("/v1/pipelines/orders").json()["revision"]
    events = shop.api.get("/v1/pipelines/orders/events", params={"at_least": revision}).json()["items"]
    assert [each["type"] for each in events] == ["PipelineConfigured", "PipelineRestartRequested", "PipelineDeleted"]
    assert {each["actor"].partition(":")[0] for each in events} == {"key"}
    rest = shop.api.get("/v1/events", params={"after": events[0]["id"], "kind": "Pipeline"}).json()["items"]
    assert [each["id"] for each in rest] == [each["id"] for each in events[1:]]
