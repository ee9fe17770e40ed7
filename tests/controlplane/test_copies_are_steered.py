"""Copies of single tables: some of their rows again, and a copy that is paused, as counters and lists that nodes obey."""

import json
from typing import Any

import pytest
from tests.controlplane.conftest import Served, Tenant, pipeline, problem

from contracts.backfilling import Comparison, Condition
from controlplane.conditions import parse
from controlplane.refusals import Refused

RESYNC, PAUSE, RESUME = (f"/v1/pipelines/orders/{verb}" for verb in ("resync", "pause", "resume"))
ORDERS, CUSTOMERS = "public.orders", "public.customers"
CANARY = "hunter2-canary"


@pytest.mark.parametrize(
    ("text", "column", "comparison", "values"),
    [
        ("id = 5", "id", "=", ("5",)),
        ("id<>5", "id", "!=", ("5",)),
        ("id>=-5", "id", ">=", ("-5",)),
        ("  Created_At  <  2026-01-02 03:04:05+01 ", "Created_At", "<", ("2026-01-02 03:04:05+01",)),
        ("note = it's", "note", "=", ("it's",)),
        ("note = 'it''s'", "note", "=", ("it's",)),
        ("note = ''", "note", "=", ("",)),
        ("note = 'null'", "note", "=", ("null",)),
        ("note != '; DROP TABLE x --'", "note", "!=", ("; DROP TABLE x --",)),
        ("state in (new, 'on, (hold)' , old)", "state", "in", ("new", "on, (hold)", "old")),
        ("state IN ('a')", "state", "in", ("a",)),
        ("id between 1 and 9", "id", "between", ("1", "9")),
        ("name BETWEEN 'salt and pepper' AND 'tea'", "name", "between", ("salt and pepper", "tea")),
        ("note is  NOT null", "note", "is not null", ()),
        ("note IS NULL", "note", "is null", ()),
    ],
)
def test_a_condition_reads_as_it_is_written(text: str, column: str, comparison: str, values: tuple[str, ...]) -> None:
    """A column, a word and literals: nothing else of the text is left."""
    assert parse([text]) == (Condition(column=column, comparison=Comparison(comparison), values=values),)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "id",
        "id =",
        "= 5",
        "id == 5",
        "id <= > 5",
        "id ~ 5",
        "id like 5%",
        "id not in (1)",
        "id = null",
        "id in 5",
        "id in ()",
        "id in (1,,2)",
        "id in (1, 2",
        "id in ('a' 'b')",
        "id in (f(1))",
        "id between 1",
        "id between 1 and",
        "id is null or true",
        "note = 'open",
        "note = 'a' or 'b'",
        'a"b = 5',
        "lower(note) = a",
        "public.orders.id = 5",
        f"{'c' * 64} = 5",
        f"note = {'v' * 201}",
        "note = a\x01b",
        f"id in ({','.join(map(str, range(101)))})",
    ],
)
def test_what_is_no_condition_is_refused_without_being_repeated(text: str) -> None:
    """The refusal points at the condition; its text may be anything, so it is never quoted."""
    with pytest.raises(Refused) as refused:
        parse(["id = 1", text])
    assert refused.value.code == "invalid_condition"
    (error,) = refused.value.errors
    assert error.pointer == "/where/1"
    assert len(text) < 4 or text not in str(refused.value)


def asked(shop: Tenant, *where: str, table: str = ORDERS, **parameters: str) -> dict[str, Any]:
    response = shop.api.post(RESYNC, json={"tables": [table], "where": list(where)}, params=parameters)
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


def test_a_part_of_a_table_is_counted_like_a_resync(shop: Tenant) -> None:
    """The newest request of each table counts; nobody writes it, a table that leaves loses it, and numbers never come again."""
    would = asked(shop, "id >= 5", dry_run="true")
    assert (would["backfills"][ORDERS]["number"], would["generation"]) == (1, 2)
    first = asked(shop, "id >= 5", "note is null")
    where = [
        {"column": "id", "comparison": ">=", "values": ["5"]},
        {"column": "note", "comparison": "is null", "values": []},
    ]
    assert first["backfills"] == {ORDERS: {"number": 1, "where": where}}
    assert (first["generation"], first["resyncs"]) == (2, {})
    second = asked(shop, "id = 1", table=CUSTOMERS)
    assert {table: each["number"] for table, each in second["backfills"].items()} == {ORDERS: 1, CUSTOMERS: 2}
    fewer = pipeline(source={"connection": "shop", "tables": [CUSTOMERS]})
    left = shop.put("/v1/pipelines/orders", {**fewer, "backfills": {}}).json()
    assert list(left["backfills"]) == [CUSTOMERS]
    shop.api.delete("/v1/pipelines/orders").raise_for_status()
    assert shop.put("/v1/pipelines/orders", pipeline()).json()["backfills"] == {}
    assert asked(shop, "id = 1")["backfills"][ORDERS]["number"] == 3
    events = shop.api.get("/v1/pipelines/orders/events").json()["items"]
    assert next(each["data"]["backfills"][ORDERS]["where"] for each in events if "Backfill" in each["type"]) == where


@pytest.mark.parametrize(
    ("body", "code", "pointer"),
    [
        ({"where": ["id = 1"]}, "invalid_document", "/tables"),
        ({"tables": [ORDERS, CUSTOMERS], "where": ["id = 1"]}, "invalid_document", "/tables"),
        ({"tables": ["public.none"], "where": ["id = 1"]}, "unknown_table", "/tables/0"),
        ({"tables": [ORDERS], "where": []}, "invalid_document", "/where"),
        ({"tables": [ORDERS], "where": "id = 1"}, "invalid_document", "/where"),
        ({"tables": [ORDERS], "where": [f"id = 1; {CANARY}", f"{CANARY}"]}, "invalid_condition", "/where/1"),
        ({"tables": [ORDERS], "where": [{"column": "id"}]}, "invalid_document", "/where/0"),
    ],
)
def test_a_part_that_makes_no_sense_is_refused(shop: Tenant, body: dict[str, Any], code: str, pointer: str) -> None:
    """The refusal points at what is wrong, does not repeat it, and changes nothing."""
    response = shop.api.post(RESYNC, json=body)
    assert problem(response, 422, code)["errors"][0]["pointer"] == pointer
    assert CANARY not in response.text
    assert shop.api.get("/v1/pipelines/orders").json()["generation"] == 1


def test_what_a_node_has_told_of_the_columns_is_held_to(served: Served, shop: Tenant) -> None:
    """Unknown columns and numbers that are none are refused, and the answer says whether rows are deleted."""
    assert "only if" in asked(shop, "id = 1", "note = x", dry_run="true")["warnings"][1]
    columns = [
        {"name": "id", "type": "bigint", "key": True, "nullable": False},
        {"name": "at", "type": "timestamp_with_time_zone", "key": True, "nullable": False},
        {"name": "code", "type": "text", "key": True, "nullable": False},
        {"name": "note", "type": "text", "key": False, "nullable": True},
    ]
    with served.administrator() as connection:
        connection.execute(
            "INSERT INTO schemas_seen (tenant, pipeline, \"table\", node, columns) VALUES (%s, 'orders', %s, 'node-1', %s)",
            [shop.id, ORDERS, json.dumps(columns)],
        )
    for where, code in (
        ("nothing = 1", "unknown_column"),
        ("id = one", "invalid_condition"),
        ("id in (1, 1.5)", "invalid_condition"),
        (f"id = {1 << 63}", "invalid_condition"),
    ):
        response = shop.api.post(RESYNC, json={"tables": [ORDERS], "where": ["note is null", where]})
        assert problem(response, 422, code)["errors"][0]["pointer"] == "/where/1"
    for conditions, word in (
        (["id between 1 and 9", "at < 2026-01-01"], "are deleted, because"),
        (["id = 1", "code = x"], "Nothing is deleted"),
        (["note = x"], "Nothing is deleted"),
    ):
        assert word in asked(shop, *conditions, dry_run="true")["warnings"][1]


def test_a_request_that_takes_the_place_of_another_or_waits_says_so(shop: Tenant) -> None:
    """Only the newest of a table counts, and nothing is copied of a table whose copying is paused."""
    assert len(asked(shop, "id = 1")["warnings"]) == 2
    shop.api.post(PAUSE, json={"tables": [ORDERS]}).raise_for_status()
    again = asked(shop, "id = 2")["warnings"]
    assert "given up" in again[2]
    assert "paused" in again[3]
    assert any("paused" in each for each in shop.api.post(RESYNC, json={"tables": [ORDERS]}).json()["warnings"])


def test_the_copying_of_single_tables_is_paused_and_resumed(shop: Tenant) -> None:
    """The pipeline runs on; asking for what is so already changes nothing, and a table that leaves is not paused any more."""
    seen = [
        shop.api.post(path, json={"tables": tables}).json()
        for path, tables in (
            (PAUSE, [ORDERS]),
            (PAUSE, [ORDERS]),
            (PAUSE, [CUSTOMERS, ORDERS]),
            (RESUME, [ORDERS]),
            (RESUME, [ORDERS]),
        )
    ]
    assert [(each["generation"], each["snapshots_paused"], each["run"]) for each in seen] == [
        (2, [ORDERS], "running"),
        (2, [ORDERS], "running"),
        (3, [CUSTOMERS, ORDERS], "running"),
        (4, [CUSTOMERS], "running"),
        (4, [CUSTOMERS], "running"),
    ]
    assert "chunk" in seen[0]["warnings"][0]
    assert shop.api.post(RESUME).json()["snapshots_paused"] == [CUSTOMERS]
    fewer = pipeline(source={"connection": "shop", "tables": [ORDERS]})
    assert shop.put("/v1/pipelines/orders", fewer).json()["snapshots_paused"] == []
    for path in (PAUSE, RESUME):
        problem(shop.api.post(path, json={"tables": ["public.none"]}), 422, "unknown_table")
        problem(shop.api.post(path, json={"tables": []}), 422, "invalid_document")
        problem(shop.api.post(path, json={"table": ORDERS}), 422, "unknown_field")
