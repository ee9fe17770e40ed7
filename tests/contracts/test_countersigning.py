"""The customer's own signature: what it covers, and that nothing else changes what it says."""

from collections.abc import Callable

import msgspec
import pytest
from msgspec import UNSET, structs
from tests.contracts.examples import ADDRESS, NODE, SIGNER

from contracts import convert, v1, v2
from contracts.countersigning import of_document
from contracts.delivery import OnSchemaChange
from contracts.envelope import decode_document

PIPELINE = v2.PipelineDocument(
    **ADDRESS,
    name="shop-to-warehouse",
    run=v2.RunState.RUNNING,
    source=v2.PipelineSource(connection="shop", tables=["public.orders"]),
    sink=v2.PipelineSink(connection="warehouse"),
    transforms=[v2.MaskTransform(table="public.orders", columns=["email"])],
)
CONNECTION = v2.ConnectionDocument(
    **ADDRESS,
    name="shop",
    config=v2.PostgresConfig(host="db.internal", database="shop", user="pointsman"),
    secrets={"password": "file:shop"},
)
CHANGES: dict[str, Callable[[v2.PipelineDocument], v2.PipelineDocument]] = {
    "a table more": lambda it: structs.replace(it, source=structs.replace(it.source, tables=["public.orders", "a.b"])),
    "another source": lambda it: structs.replace(it, source=structs.replace(it.source, connection="other")),
    "another destination": lambda it: structs.replace(it, sink=structs.replace(it.sink, connection="other")),
    "the mask dropped": lambda it: structs.replace(it, transforms=[]),
    "another mask": lambda it: structs.replace(it, transforms=[structs.replace(it.transforms[0], columns=["phone"])]),
    "another buffer": lambda it: structs.replace(it, buffer=v2.BufferSettings(type=v2.BufferType.JETSTREAM)),
    "another plane": lambda it: structs.replace(it, data_plane="paris-1"),
    "another tenant": lambda it: structs.replace(it, tenant="00000000-0000-4000-8000-000000000001"),
    "another name": lambda it: structs.replace(it, name="another"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_nothing_that_decides_where_rows_go_can_change_under_a_signature(change: str) -> None:
    """Every part of what was written, and where it belongs, is covered."""
    signature = of_document(PIPELINE).sign(NODE, 7)
    assert of_document(PIPELINE).is_signed_by(signature)
    assert not of_document(CHANGES[change](PIPELINE)).is_signed_by(signature)


@pytest.mark.parametrize(
    "changes", [{"host": "evil.example"}, {"port": 5433}, {"user": "root"}, {"ssl_mode": "require"}], ids=str
)
def test_a_connection_cannot_be_pointed_elsewhere(changes: dict[str, object]) -> None:
    """Address, user, TLS and the references to secrets are covered."""
    signature = of_document(CONNECTION).sign(NODE, 7)
    assert of_document(CONNECTION).is_signed_by(signature)
    moved = structs.replace(CONNECTION, config=structs.replace(CONNECTION.config, **changes))
    assert not of_document(moved).is_signed_by(signature)
    assert not of_document(structs.replace(CONNECTION, secrets={"password": "file:bank"})).is_signed_by(signature)


def test_number_and_key_belong_to_the_signature() -> None:
    """Neither a higher number nor another key can be written over it."""
    statement = of_document(PIPELINE)
    signature = statement.sign(NODE, 7)
    assert not statement.is_signed_by(structs.replace(signature, number=8))
    assert not statement.is_signed_by(structs.replace(signature, key=SIGNER.public))


def test_what_only_repeats_or_stops_is_not_signed() -> None:
    """Counters, generations, epochs and whether it runs may change under the same signature."""
    signature = of_document(PIPELINE).sign(NODE, 7)
    sink = structs.replace(PIPELINE.sink, on_schema_change=OnSchemaChange.PAUSE)
    assert not of_document(structs.replace(PIPELINE, sink=sink)).is_signed_by(signature)
    told = structs.replace(
        PIPELINE,
        run=v2.RunState.PAUSED,
        epoch=2,
        generation=9,
        restarts=3,
        resyncs={"public.orders": 2},
        sink=structs.replace(PIPELINE.sink, resumes=4),
        signature=signature,
    )
    assert of_document(told).is_signed_by(signature)


def test_a_signature_holds_on_the_wire_and_in_the_older_contract() -> None:
    """A document says the same after it was encoded, and after it went through version 1."""
    signature = of_document(PIPELINE).sign(NODE, 7)
    signed = structs.replace(PIPELINE, signature=signature)
    arrived = decode_document(msgspec.json.encode(signed), 2)
    assert isinstance(arrived, v2.PipelineDocument)
    assert isinstance(arrived.signature, v2.CustomerSignature)
    assert of_document(arrived).is_signed_by(arrived.signature)
    older = convert.to_v1(PIPELINE)
    assert isinstance(older, v1.PipelineDocument)
    assert of_document(convert.to_v2(older)).is_signed_by(signature)  # type: ignore[arg-type]


def test_a_signed_pipeline_is_not_given_to_a_node_that_could_not_see_the_signature() -> None:
    """Version 1 has no place for it, so the conversion says that it would be lost."""
    signed = structs.replace(PIPELINE, signature=of_document(PIPELINE).sign(NODE, 7))
    assert convert.to_v1(signed) == convert.Lost(("signature",))
    assert isinstance(convert.to_v1(structs.replace(signed, signature=UNSET)), v1.PipelineDocument)


def test_what_is_signed_is_written_down() -> None:
    """The very bytes, so that another program can check a signature: one array, keys sorted, defaults left out."""
    assert of_document(CONNECTION).text(7) == (
        b'["pointsman.customer.1","Connection","3f2504e0-4f89-11d3-9a0c-0305e82c3301","","shop",7,{"config":'
        b'{"database":"shop","host":"db.internal","type":"postgres","user":"pointsman"},"secrets":{"password":"file:shop"}}]'
    )
