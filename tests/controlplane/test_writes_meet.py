"""Writes at the same moment: one wins, the others are told, and nothing is written twice."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
from tests.controlplane.conftest import Served, Tenant, connection, pipeline, problem


def _at_once(tenant: Tenant, number: int, request: Any) -> list[httpx.Response]:
    """Send `request(client, i)` from `number` clients at the same moment."""
    clients = [tenant.client(tenant.key) for _ in range(number)]
    for client in clients:
        client.get("/v1/pipelines").raise_for_status()  # connected before the race begins
    with ThreadPoolExecutor(number) as pool:
        return list(pool.map(lambda pair: request(pair[1], pair[0]), enumerate(clients)))


def test_of_many_that_change_what_they_have_read_one_succeeds(shop: Tenant) -> None:
    """All send the same If-Match."""
    answers = _at_once(
        shop,
        8,
        lambda client, number: client.put(
            "/v1/connections/shop", json=connection("shop", port=7000 + number), headers={"If-Match": '"1"'}
        ),
    )
    assert sorted(each.status_code for each in answers) == [200] + [412] * 7
    assert shop.api.get("/v1/connections/shop").json()["generation"] == 2


def test_many_that_change_one_resource_without_a_condition_all_succeed_in_turn(shop: Tenant) -> None:
    """A conflict between writers is decided again, not handed to them."""
    answers = _at_once(
        shop,
        8,
        lambda client, number: client.put("/v1/connections/shop", json=connection("shop", port=7000 + number)),
    )
    assert {each.status_code for each in answers} == {200}
    assert sorted(each.json()["generation"] for each in answers) == list(range(2, 10))


def test_a_request_repeated_at_the_same_moment_is_carried_out_once(shop: Tenant) -> None:
    """All send the same Idempotency-Key and get the same answer."""
    answers = _at_once(
        shop,
        8,
        lambda client, _: client.post("/v1/pipelines/orders/restart", headers={"Idempotency-Key": "restart-1"}),
    )
    assert {each.status_code for each in answers} == {200}
    assert {each.json()["restarts"] for each in answers} == {1}
    assert len({each.json()["revision"] for each in answers}) == 1
    assert sum("idempotency-replayed" in each.headers for each in answers) == 7


def test_a_key_of_a_request_that_differs_is_refused(shop: Tenant) -> None:
    """Another body, another address or another parameter is another request."""
    headers = {"Idempotency-Key": "one"}
    first = shop.put("/v1/connections/shop", connection("shop", port=1), **headers)
    assert (
        shop.put("/v1/connections/shop", connection("shop", port=1), **headers).json()["revision"]
        == (first.json()["revision"])
    )
    for path, document in (
        ("/v1/connections/shop", connection("shop", port=2)),
        ("/v1/connections/other", connection("shop", port=1)),
    ):
        problem(shop.put(path, document, **headers), 422, "idempotency_key_reused")


def test_keys_of_two_tenants_are_apart(shop: Tenant, make_tenant: Any) -> None:
    """The same Idempotency-Key in another tenant is another key."""
    other = make_tenant()
    headers = {"Idempotency-Key": "the-same"}
    shop.put("/v1/connections/shop", connection("shop", port=1), **headers).raise_for_status()
    assert other.put("/v1/connections/shop", connection("mine"), **headers).json()["config"]["database"] == "mine"


def test_a_refused_request_does_not_use_its_key_up(shop: Tenant) -> None:
    """Only what was carried out is remembered."""
    headers = {"Idempotency-Key": "again"}
    problem(shop.put("/v1/pipelines/x", pipeline(data_plane="none"), **headers), 422, "unknown_data_plane")
    corrected = pipeline(source={"connection": "shop", "tables": ["public.x"]})
    assert shop.put("/v1/pipelines/x", corrected, **headers).status_code == 201


def test_a_key_made_twice_under_one_idempotency_key_is_the_same_key(tenant: Tenant) -> None:
    """The secret comes out the same again, and only one key exists."""
    headers = {"Idempotency-Key": "one-key"}
    body = {"name": "ci", "role": "viewer"}
    first, again = (tenant.api.post("/v1/api-keys", json=body, headers=headers).json() for _ in range(2))
    assert first["api_key"] == again["api_key"]
    assert len(tenant.api.get("/v1/api-keys").json()["items"]) == 2


def test_two_pipelines_that_race_for_a_table_do_not_both_get_it(shop: Tenant) -> None:
    """A rule about several documents holds although each is written on its own."""
    shop.put("/v1/connections/other", connection("other")).raise_for_status()
    document = pipeline(source={"connection": "other", "tables": ["public.raced"]})
    answers = _at_once(shop, 6, lambda client, number: client.put(f"/v1/pipelines/p{number}", json=document))
    assert sorted(each.status_code for each in answers) == [201] + [409] * 5
    assert {each.json()["code"] for each in answers if each.status_code == 409} == {"table_taken"}


def test_a_connection_is_not_deleted_while_a_pipeline_that_names_it_is_made(shop: Tenant) -> None:
    """Whichever comes first, no pipeline is left that names a connection which does not exist."""
    for number in range(4):
        shop.put(f"/v1/connections/c{number}", connection(f"c{number}")).raise_for_status()
        document = pipeline(source={"connection": f"c{number}", "tables": [f"public.t{number}"]})

        def race(client: httpx.Client, side: int, number: int = number, document: Any = document) -> httpx.Response:
            if side == 0:
                return client.delete(f"/v1/connections/c{number}")
            return client.put(f"/v1/pipelines/p{number}", json=document)

        deleted, made = _at_once(shop, 2, race)
        assert (deleted.status_code, made.status_code) in ((200, 422), (409, 201))


def test_the_record_of_a_key_commits_with_the_events(served: Served, shop: Tenant) -> None:
    """There is never one without the other: the record names the revision of the event."""
    written = shop.put("/v1/connections/shop", connection("shop", port=9), **{"Idempotency-Key": "k9"})
    with served.administrator() as connected:
        row = connected.execute(
            "SELECT revision FROM idempotency_records WHERE tenant = %s AND key = 'k9'", [shop.id]
        ).fetchone()
    assert row == (written.json()["revision"],)
