"""Every change of a pipeline's document says what it does to data, before it does it."""

from enum import Enum
from typing import Any

import pytest
from msgspec import UnsetType, structs
from tests.controlplane.conftest import Served, Tenant, pipeline
from tests.controlplane.test_reports_become_status import Node, status

from contracts import v2
from contracts.codes import Code
from contracts.kafka import Format, TopicSettings
from contracts.slots import SourceLog
from contracts.v2 import Phase
from controlplane.domain.pipeline import PipelineSpec
from controlplane.effects import NEW_SESSION, WHEN_RESUMED, effects
from controlplane.manifests import StrictBuffer, StrictSink, StrictSource
from controlplane.readmodels.comparing import NOT_OUT_OF_A_GAP

BEFORE = pipeline()
SOURCE = BEFORE["source"]
ADDRESS = "/v1/pipelines/orders"
MASK = {"type": "mask", "table": "public.orders", "columns": ["email"]}


def planned(shop: Tenant, document: dict[str, Any]) -> list[str]:
    response = shop.api.put(ADDRESS, json=document, params={"dry_run": "true"})
    assert response.status_code in (200, 201), response.text
    found: list[str] = response.json().get("effects", [])
    return found


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"source": {**SOURCE, "connection": "warehouse"}, "sink": {"connection": "shop"}}, ["gap_other_system", "gap_checkpoint_lost"]),
        ({"source": {**SOURCE, "tables": ["public.orders", "public.lines"]}}, ["public.lines is copied", "public.customers is not"]),
        ({"source": {**SOURCE, "snapshot": {"parallelism": 5, "chunk_rows": 2000}}}, ["5 chunks at once", "2,000 rows"]),
        ({"source": {**SOURCE, "log": {"retain_bytes_max": 1 << 30, "on_full": "stop"}}}, ["1.1 GB", "gap_log_limit"]),
        ({"source": {**SOURCE, "log": {"retain_bytes_max": 1 << 30}}}, ["goes on keeping it"]),
        ({"source": {**SOURCE, "failover": True}}, ["synchronized_standby_slots"]),
        ({"sink": {"connection": "warehouse", "on_refused": "dead_letter", "dead_letters_max": 70}}, ["Up to 70 changes", "dead_letters_full"]),
        ({"sink": {"connection": "warehouse", "dead_letters_max": 70}}, ["changes nothing while"]),
        ({"sink": {"connection": "warehouse", "on_schema_change": "pause"}}, ["stops before that transaction"]),
        ({"sink": {"connection": "warehouse", "on_schema_change": "ignore"}}, ["are left out"]),
        ({"sink": {"connection": "warehouse", "consistency": "key", "parallelism": 4}}, ["over 4 connections", "a part of"]),
        ({"buffer": {"type": "jetstream"}}, ["the leaf's store"]),
        ({"buffer": {"type": "jetstream", "confirm": "buffer"}}, ["before the destination has it"]),
        ({"buffer": {"size_bytes_max": 64 << 20}}, ["up to 67.1 MB"]),
        ({"transforms": [MASK]}, ["stay as they are", "`resync`"]),
    ],
)  # fmt: skip
def test_a_setting_that_is_changed_says_what_it_does(shop: Tenant, changes: dict[str, Any], words: list[str]) -> None:
    """On the way there and on the way back; an equal document has no effects, and a plan changes nothing."""
    assert planned(shop, BEFORE) == []
    after = {**BEFORE, **changes}
    said = planned(shop, after)
    assert [word for word in words if word not in " ".join(said)] == [], said
    assert said[-1] == NEW_SESSION
    assert len(said) > 1
    assert shop.api.get(ADDRESS).json()["generation"] == 1
    assert shop.put(ADDRESS, after).json()["effects"] == said
    if changes.get("buffer", {}).get("confirm") != "buffer":
        assert len(planned(shop, BEFORE)) > 1


def test_every_setting_that_people_can_write_has_its_words() -> None:
    """Changed alone, each leads to a sentence of its own: one that is added later cannot be forgotten."""
    same = PipelineSpec(
        data_plane="local",
        source=v2.PipelineSource(connection="shop", tables=["public.a"]),
        sink=v2.PipelineSink(connection="warehouse"),
        buffer=v2.BufferSettings(),
        transforms=[],
    )
    other: dict[str, Any] = {
        "connection": "elsewhere",
        "tables": ["public.b"],
        "transforms": [v2.DropTransform(table="public.a", columns=["x"])],
    }
    silent = []
    for part in ("source", "sink", "buffer"):
        held = getattr(same, part)
        for name in _written(part):
            value = other[name] if name in other else _another(getattr(held, name))
            changed = structs.replace(same, **{part: structs.replace(held, **{name: value})})
            if len(effects(same, changed)) < 2:
                silent.append(f"{part}.{name}")
    assert silent == []
    assert len(effects(same, structs.replace(same, transforms=other["transforms"]))) == 2


def test_topics_say_what_becomes_of_those_that_are_there() -> None:
    """Another name, another format, other partitions: each has words of its own."""
    held = TopicSettings(prefix="events")
    same = PipelineSpec(
        data_plane="local",
        source=v2.PipelineSource(connection="shop", tables=["public.a"]),
        sink=v2.PipelineSink(connection="stream", topics=held),
        buffer=v2.BufferSettings(),
        transforms=[],
    )
    said = []
    for changes in ({"prefix": "news"}, {"format": Format.JSON}, {"partitions": 12}):
        topics = structs.replace(held, **changes)  # type: ignore[arg-type]
        said.append(effects(same, structs.replace(same, sink=structs.replace(same.sink, topics=topics)))[0])
    assert ["news.SCHEMA.TABLE" in said[0], "json from now on" in said[1], "partitions" in said[2]] == [True] * 3
    assert "Topics that" in effects(None, same)[1]


def _written(part: str) -> tuple[str, ...]:
    form = {"source": StrictSource, "sink": StrictSink, "buffer": StrictBuffer}[part]
    return form.__struct_fields__


def _another(value: Any) -> Any:
    """Return another value of the same kind."""
    match value:
        case bool():
            return not value
        case int():
            return value * 2
        case Enum():
            return next(each for each in type(value) if each is not value)
        case v2.SnapshotSettings():
            return v2.SnapshotSettings(parallelism=7)
        case UnsetType():
            return TopicSettings(prefix="events")
        case SourceLog():
            return SourceLog(retain_bytes_max=1 << 30)
        case _:
            raise AssertionError(f"say how {value!r} is changed")


def test_a_new_pipeline_says_what_is_made_and_copied(shop: Tenant) -> None:
    """Slot, publication and tables, and what its settings mean; what has a default is not repeated."""
    document = pipeline(
        source={"connection": "shop", "tables": ["public.a", "public.b"], "failover": True},
        sink={"connection": "warehouse"},
    )
    response = shop.api.put("/v1/pipelines/other", json=document, params={"dry_run": "true"})
    first, second, third = response.json()["effects"]
    assert "2 tables are copied" in first
    assert "one that has rows already is refused" in second
    assert "Standbys" in third


def test_a_paused_pipeline_says_that_it_waits(shop: Tenant) -> None:
    """What is planned for it begins when it is resumed."""
    shop.api.post(f"{ADDRESS}/pause").raise_for_status()
    assert planned(shop, {**BEFORE, "transforms": [MASK]})[-1] == WHEN_RESUMED


def test_a_comparison_of_a_pipeline_in_a_gap_says_that_it_is_no_way_out(served: Served, shop: Tenant) -> None:
    """A resync of all tables is, and says so; one of a single table is not."""
    node = Node(served, shop)
    assert "warnings" not in node.report(status(Phase.STREAMING))
    assert shop.api.post(f"{ADDRESS}/reconcile", json={"repair": True}).json()["warnings"] == []
    generation = shop.api.get(ADDRESS).json()["generation"]
    node.report(status(Phase.GAP, generation, code=Code.GAP_SLOT_MISSING))
    assert shop.api.post(f"{ADDRESS}/reconcile", json={"repair": True}).json()["warnings"] == [NOT_OUT_OF_A_GAP]
    one = shop.api.post(f"{ADDRESS}/resync", json={"tables": ["public.orders"]}).json()["warnings"]
    every = shop.api.post(f"{ADDRESS}/resync").json()["warnings"]
    assert len(every) == len(one) + 1
    assert "closes a gap" in every[0]
