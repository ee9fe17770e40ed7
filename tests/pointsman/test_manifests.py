"""Files that people write: what is accepted, what is refused before anything is sent, and how documents are applied."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.pointsman.conftest import Done
from tests.pointsman.fake_api import FakeApi, problem

Run = Callable[..., Done]

SHOP = """\
kind: Connection
name: shop
type: postgres
config: {host: 127.0.0.1, port: 5432, database: shop, user: pointsman}
secrets: {password: "file:shop_password"}
"""
PIPELINE = """\
kind: Pipeline
name: orders
data_plane: local
source: {connection: shop, tables: [public.orders]}
sink: {connection: warehouse}
buffer: {type: jetstream}
"""


@pytest.fixture
def write(home: Path) -> Callable[..., str]:
    def to_file(text: str | bytes, name: str = "m.yaml") -> str:
        file = home / name
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(file)

    return to_file


def writes(api: FakeApi) -> list[str]:
    return [f"{method} {path}" for method, path, _ in api.requests if method != "GET"]


ATTACKS = {
    "an alias": ("a: &x [1]\nb: *x", "manifest_invalid"),
    "a billion laughs": ("a: &a [x]\nb: &b [*a,*a]\nc: [*b,*b]", "manifest_invalid"),
    "a duplicate key": ("kind: Connection\nname: a\nname: b", "manifest_invalid"),
    "a python tag": ("kind: Connection\nname: !!python/object/apply:os.system [id]", "manifest_invalid"),
    "a binary tag": ("kind: Connection\nname: !!binary aGk=", "manifest_invalid"),
    "deep nesting": ("a: " + "[" * 200 + "]" * 200, "manifest_invalid"),
    "a list as a key": ("? [a, b]\n: 1", "manifest_invalid"),
    "a number without end": ("kind: Connection\nname: a\nport: " + "9" * 100_000, "manifest_invalid"),
    "an open bracket": ("kind: [", "manifest_invalid"),
    "a tab": ("kind: Connection\nname: a\n\tport: 1", "manifest_invalid"),
    "a NUL": ("kind: Connection\nname: 'a\x00b'", "manifest_invalid"),
    "no text": (b"\xff\xfe\x00", "manifest_invalid"),
    "a list": ("- kind: Connection", "manifest_invalid"),
    "a word": ("hello", "manifest_invalid"),
    "no kind": ("name: a", "manifest_invalid"),
    "no name": ("kind: Connection", "manifest_invalid"),
    "an unknown kind": ("kind: Pipelin\nname: a", "unknown_kind"),
    "a kind without files": ("kind: Node\nname: a", "manifest_invalid"),
    "the same twice": (SHOP + "---\n" + SHOP, "manifest_invalid"),
    "nothing": ("# only a comment\n", "manifest_invalid"),
    "too much": ("kind: Connection\nname: a\nnote: " + "x" * (1 << 20), "manifest_too_large"),
    "a secret in secrets": (SHOP.replace("file:shop_password", "hunter2"), "secret_in_plain_text"),
    "a secret in config": (SHOP.replace("user: pointsman", "password: hunter2"), "secret_in_plain_text"),
    "a secret as a number": (SHOP.replace('"file:shop_password"', "12345"), "secret_in_plain_text"),
    "a secret in a URL": (SHOP.replace("127.0.0.1", "'postgres://me:hunter2@h'"), "secret_in_plain_text"),
    "secrets that are a word": (SHOP.replace('{password: "file:shop_password"}', "hunter2"), "secret_in_plain_text"),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_what_is_not_accepted_is_refused_before_anything_is_sent(
    api: FakeApi, against: Run, write: Callable[..., str], attack: str
) -> None:
    """Each gets its code and its place, quotes no secret, and nothing of the file is applied."""
    text, code = ATTACKS[attack]
    first = "" if isinstance(text, bytes) or attack == "nothing" else PIPELINE.replace("orders\n", "first\n") + "---\n"
    file = write(first.encode() + text if isinstance(text, bytes) else first + text)
    done = against("apply", "-f", file)
    assert done.code == 1, done
    assert f"[{code}]" in done.err
    assert "hunter2" not in done.err
    assert file in done.err
    assert writes(api) == []


def test_words_keep_their_meaning(api: FakeApi, against: Run, write: Callable[..., str]) -> None:
    """`on`, `no`, `0123`, `1:30` and dates stay what was written; only true, false, null and plain numbers change."""
    text = SHOP + "labels: {a: on, b: no, c: 0123, d: 1:30, e: 2020-01-01, f: true, g: null, h: 12, i: 1.5, 7: x}\n"
    assert against("apply", "-f", write(text)).code == 0
    assert api.resources["connections", "shop"]["labels"] == {
        "a": "on", "b": "no", "c": "0123", "d": "1:30", "e": "2020-01-01", "f": True, "g": None, "h": 12, "i": 1.5, "7": "x",
    }  # fmt: skip


def test_connections_are_applied_before_the_pipelines_that_name_them(
    api: FakeApi, against: Run, write: Callable[..., str]
) -> None:
    """Wherever they stand in the file."""
    text = PIPELINE + "---\nkind: DataPlane\nname: local\n---\n" + SHOP
    done = against("apply", "-f", write(text), "-o", "json")
    assert [item["name"] for item in json.loads(done.out)["items"]] == ["local", "shop", "orders"]


def test_each_document_says_what_became_of_it(api: FakeApi, against: Run, write: Callable[..., str]) -> None:
    """Created, then unchanged, then configured."""
    assert against("apply", "-f", write(SHOP)).out == "connection/shop created\n"
    assert against("apply", "-f", write(SHOP)).out == "connection/shop unchanged\n"
    changed = against("apply", "-f", write(SHOP.replace("5432", "5433")))
    assert changed.out == "connection/shop configured (generation 2)\n"


def test_one_refused_document_does_not_stop_the_others(api: FakeApi, against: Run, write: Callable[..., str]) -> None:
    """As with kubectl; the command ends with an error and names the document."""
    text = SHOP.replace("type: postgres", "type: unknown") + "---\n" + SHOP.replace("shop", "other")
    done = against("apply", "-f", write(text))
    assert done.code == 1
    assert done.out == "connection/other created\n"
    assert "connection/shop" in done.err
    assert "[unknown_type]" in done.err
    assert "at: /type" in done.err


def test_folders_and_standard_input_are_read(
    api: FakeApi, against: Run, write: Callable[..., str], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder's YAML and JSON files, and `-`."""
    import io
    import sys

    write(SHOP, "all/a.yaml")
    write(json.dumps({"kind": "Connection", "name": "other", "type": "postgres"}), "all/b.json")
    write("not: yaml: at all", "all/notes.txt")
    assert against("apply", "-f", str(home / "all")).out.count("created") == 2
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(SHOP.replace("shop", "piped").encode())))
    assert against("apply", "-f", "-").out == "connection/piped created\n"


def test_diff_ends_with_2_exactly_when_something_differs(api: FakeApi, against: Run, write: Callable[..., str]) -> None:
    """And prints what, and changes nothing."""
    against("apply", "-f", write(SHOP))
    before = len(writes(api))
    assert against("diff", "-f", write(SHOP)) == Done(0, "", "")
    done = against("diff", "-f", write(SHOP.replace("5432", "5433")))
    assert done.code == 2
    assert "-  port: 5432" in done.out
    assert "+  port: 5433" in done.out
    assert all("dry_run=true" in line for line in writes(api)[before:])
    assert api.resources["connections", "shop"]["config"]["port"] == 5432


def test_plan_says_what_apply_would_do(api: FakeApi, against: Run, write: Callable[..., str]) -> None:
    """In words; 2 when there is something to do."""
    against("apply", "-f", write(SHOP))
    done = against("plan", "-f", write(SHOP + "---\n" + PIPELINE))
    assert done.code == 2
    assert "+ create pipeline/orders" in done.out
    assert "1 to create, 0 to change, 1 to keep" in done.out
    assert ("pipelines", "orders") not in api.resources


def test_what_get_prints_as_yaml_can_be_applied_again(api: FakeApi, against: Run, write: Callable[..., str]) -> None:
    """Read-only fields are in the way of nothing."""
    against("apply", "-f", write(SHOP))
    one = against("get", "connection", "shop", "-o", "yaml").out
    many = against("get", "connections", "-o", "yaml").out
    for shown in (one, many):
        assert against("apply", "-f", write(shown)).out == "connection/shop unchanged\n"


def test_a_plan_knows_what_the_same_files_would_make_first(
    api: FakeApi, against: Run, write: Callable[..., str]
) -> None:
    """A pipeline is not refused for a connection that stands in the same file; without it, it is."""

    def refuse(method: str, path: str) -> Any:
        missing = method == "PUT" and "pipelines" in path and ("connections", "shop") not in api.resources
        return problem(422, "unknown_connection", "There is no connection shop.") if missing else None

    api.fault = refuse
    both = write(PIPELINE + "---\n" + SHOP)
    assert against("plan", "-f", both).code == 2
    assert against("diff", "-f", both).code == 2
    assert against("plan", "-f", write(PIPELINE)).code == 1
    assert against("diff", "-f", write(PIPELINE)).code == 1
    assert api.resources == {}
