"""`keys` and `--sign`: a signature is made here, over what the file says, and only when something is new."""

import json
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.pointsman.conftest import Done
from tests.pointsman.fake_api import TENANT, FakeApi
from tests.pointsman.test_manifests import PIPELINE, SHOP

from contracts.countersigning import of_document
from contracts.keys import KeyPair
from contracts.v2 import ConnectionDocument, CustomerSignature, PipelineDocument
from pointsman.cli import signing

Run = Callable[..., Done]


@pytest.fixture
def key(pointsman: Run, home: Path) -> Path:
    file = home / "signing.nk"
    assert pointsman("keys", "create", "--out", file).code == 0
    return file


@pytest.fixture
def manifest(home: Path) -> Path:
    file = home / "m.yaml"
    file.write_text(f"{SHOP}---\n{PIPELINE}")
    return file


def _document(resource: dict[str, Any]) -> PipelineDocument | ConnectionDocument:
    """What a node would get, made of the resource as the control plane holds it."""
    address = {"tenant": TENANT, "epoch": 1, "generation": 1}
    if resource["kind"] == "Pipeline":
        return msgspec.convert({**resource, **address, "kind": "pipeline", "run": "running"}, PipelineDocument)
    config = {**resource["config"], "type": resource["type"]}
    fields = {**resource, **address, "kind": "connection", "data_plane": "local", "config": config}
    return msgspec.convert(fields, ConnectionDocument)


def test_a_signing_key_stays_in_a_file_of_its_owner(key: Path, pointsman: Run) -> None:
    """The seed is printed nowhere; what is shown is the public half, and a file that exists is not written over."""
    pair = KeyPair(key.read_text())
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    shown = pointsman("keys", "show", key)
    assert shown.out.strip() == pair.public
    again = pointsman("keys", "create", "--out", key)
    assert again.code == 5
    assert KeyPair(key.read_text()).public == pair.public
    assert pair.seed not in shown.out + shown.err + again.out + again.err


def test_what_is_applied_with_a_key_is_signed_as_a_node_checks_it(
    against: Run, api: FakeApi, key: Path, manifest: Path
) -> None:
    """Pipelines and connections carry a signature that holds under the document that a node gets."""
    done = against("apply", "-f", manifest, "--sign", key)
    assert done.code == 0, done.err
    for place in (("connections", "shop"), ("pipelines", "orders")):
        document = _document(api.resources[place])
        assert isinstance(document.signature, CustomerSignature)
        assert document.signature.key == KeyPair(key.read_text()).public
        assert of_document(document).is_signed_by(document.signature)


def test_applying_twice_signs_once_and_a_change_signs_with_a_higher_number(
    against: Run, api: FakeApi, key: Path, manifest: Path
) -> None:
    """What stands there with the same key's signature keeps it, so nothing changes; what differs is signed anew."""
    against("apply", "-f", manifest, "--sign", key)
    first = dict(api.resources["pipelines", "orders"])
    again = against("apply", "-f", manifest, "--sign", key, "-o", "json")
    assert [each["outcome"] for each in json.loads(again.out)["items"]] == ["unchanged", "unchanged"]
    assert against("diff", "-f", manifest, "--sign", key).code == 0
    manifest.write_text(f"{SHOP}---\n{PIPELINE.replace('public.orders', 'public.letters')}")
    changed = against("apply", "-f", manifest, "--sign", key, "-o", "json")
    assert [each["outcome"] for each in json.loads(changed.out)["items"]] == ["unchanged", "configured"]
    second = api.resources["pipelines", "orders"]
    assert second["signature"]["number"] > first["signature"]["number"]
    assert of_document(_document(second)).is_signed_by(msgspec.convert(second["signature"], CustomerSignature))


@pytest.mark.parametrize(
    "text",
    [PIPELINE + "tranforms: []\n", PIPELINE.replace("tables:", "tabels: [], tables:"), SHOP + "sekrets: {}\n"],
    ids=["a field of the document", "a field of the source", "a field of a connection"],
)
def test_a_field_that_would_go_unsigned_stops_everything(
    text: str, against: Run, api: FakeApi, key: Path, manifest: Path
) -> None:
    """A control plane gone bad could read a misspelt mask as it likes: nothing is signed or sent."""
    manifest.write_text(text)
    done = against("apply", "-f", manifest, "--sign", key)
    assert done.code == 1
    assert "manifest_invalid" in done.err
    assert api.resources == {}


def test_a_clock_that_went_back_is_noticed(
    against: Run, api: FakeApi, key: Path, manifest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A number below the one that stands there would be refused by nodes, so nothing is sent."""
    against("apply", "-f", manifest, "--sign", key)
    before = dict(api.resources["pipelines", "orders"])
    monkeypatch.setattr("contracts.countersigning.number_now", lambda: before["signature"]["number"])
    manifest.write_text(PIPELINE.replace("public.orders", "public.letters"))
    done = against("apply", "-f", manifest, "--sign", key)
    assert (done.code, "signing_clock_behind" in done.err) == (5, True)
    assert api.resources["pipelines", "orders"] == before


def test_a_file_that_is_no_key_is_refused_without_being_quoted(against: Run, manifest: Path, key_file: Path) -> None:
    """The wrong file may hold a secret."""
    done = against("apply", "-f", manifest, "--sign", key_file)
    assert done.code == 1
    assert "signing_key_unreadable" in done.err
    assert key_file.read_text().strip() not in done.err
    assert signing.KEY_BYTES_MAX < 1 << 20
