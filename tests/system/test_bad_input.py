"""Whatever is sent: a stable code, a hint, and nothing changed."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.system.databases import Pair
from tests.system.stack import Stack, eventually

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]

SECRET = "hunter2-in-plain-text"


@pytest.fixture(scope="module")
def pair(stack: Stack, make_pair: Callable[[str], Pair]) -> Pair:
    """A pipeline that runs while all of this is tried."""
    made = make_pair("good")
    made.source.execute("CREATE TABLE rows (id int PRIMARY KEY)")
    stack.apply(made.manifest("public.rows"))
    stack.wait(made.name)
    return made


def written(stack: Stack, after: int = 0) -> list[dict[str, Any]]:
    """Return the events after one, but for what nodes report. Every change is an event, so none means none."""
    return [each for each in stack.events(after=after) if not each["type"].startswith("Placement")]


@pytest.fixture(scope="module")
def last(stack: Stack, pair: Pair) -> int:
    """The newest event before anything wrong is tried."""
    return int(written(stack)[-1]["id"])


@pytest.fixture(autouse=True)
def nothing_changes(stack: Stack, last: int) -> Iterator[None]:
    """No test of this module leaves an event behind."""
    yield
    assert written(stack, last) == []


def _connection(**changes: Any) -> dict[str, Any]:
    config = {"host": "127.0.0.1", "port": 5432, "database": "shop", "user": "pointsman"}
    return {"type": "postgres", "config": config, "secrets": {"password": "file:shop_password"}, **changes}


def _pipeline(**changes: Any) -> dict[str, Any]:
    return {
        "data_plane": "local",
        "source": {"connection": "good-source", "tables": ["public.rows"]},
        "sink": {"connection": "good-sink"},
        "buffer": {"type": "direct"},
        **changes,
    }


_MASK = {"type": "mask", "table": "public.rows", "columns": ["note"]}

REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "an unknown connection": (
        "/pipelines/new",
        _pipeline(source={"connection": "nowhere", "tables": ["public.rows"]}),
        "unknown_connection",
    ),
    "an unknown destination": ("/pipelines/new", _pipeline(sink={"connection": "nowhere"}), "unknown_connection"),
    "an unknown data plane": ("/pipelines/new", _pipeline(data_plane="nowhere"), "unknown_data_plane"),
    "an unknown type": ("/connections/new", _connection(type="oracle"), "unknown_type"),
    "an unknown buffer": ("/pipelines/new", _pipeline(buffer={"type": "floppy"}), "unknown_type"),
    "an unknown transform": ("/pipelines/new", _pipeline(transforms=[{**_MASK, "type": "sql"}]), "unknown_type"),
    "an unknown field": ("/pipelines/new", _pipeline(colour="red"), "unknown_field"),
    "an unknown field of a config": (
        "/connections/new",
        _connection(config={**_connection()["config"], "options": "-c x=y"}),
        "unknown_field",
    ),
    "a secret in plain text": (
        "/connections/new",
        _connection(secrets={"password": SECRET}),
        "secret_in_plain_text",
    ),
    "a secret's value in the config": (
        "/connections/new",
        _connection(config={**_connection()["config"], "password": SECRET}),
        "secret_in_plain_text",
    ),
    "the same table on both sides": (
        "/pipelines/new",
        _pipeline(sink={"connection": "good-source"}),
        "same_table_cycle",
    ),
    "a table that another pipeline writes": ("/pipelines/new", _pipeline(), "table_taken"),
    "a name with odd characters": ("/pipelines/Odd_Name", _pipeline(), "invalid_name"),
    "a name that climbs": ("/connections/%2e%2e%2fnodes", _connection(), "not_found"),
    "a name with a wildcard": ("/connections/a*", _connection(), "invalid_name"),
    "a name that is too long": (f"/connections/{'a' * 64}", _connection(), "invalid_name"),
    "a name with a look-alike": ("/connections/%D0%B0", _connection(), "invalid_name"),
    "a name with a newline": ("/connections/a%0A", _connection(), "invalid_name"),
    "a table without a schema": (
        "/pipelines/new",
        _pipeline(source={"connection": "good-source", "tables": ["rows"]}),
        "invalid_document",
    ),
    "no table": ("/pipelines/new", _pipeline(source={"connection": "good-source", "tables": []}), "invalid_document"),
    "a port that is none": (
        "/connections/new",
        _connection(config={**_connection()["config"], "port": 70_000}),
        "invalid_document",
    ),
    "a number where a text belongs": ("/connections/new", _connection(type=7), "unknown_type"),
}


def refused(answer: Any, code: str, *statuses: int) -> dict[str, Any]:
    """Check that `answer` is a problem with `code` and a hint, and return it."""
    problem: dict[str, Any] = answer.json()
    assert problem.get("code") == code, problem
    assert answer.headers["content-type"].startswith("application/problem+json")
    assert len(problem["hint"]) > 10
    assert problem["title"]
    assert problem["status"] == answer.status_code
    assert answer.status_code in statuses
    assert SECRET not in answer.text
    return problem


@pytest.mark.parametrize("what", REFUSED)
def test_the_api_refuses(stack: Stack, what: str) -> None:
    """Every kind of wrong document gets its code, also when it is only tried."""
    path, document, code = REFUSED[what]
    with stack.api() as api:
        for parameters in ({"dry_run": "true"}, {}):
            refused(api.put(path, json=document, params=parameters), code, 400, 404, 409, 422)


@pytest.mark.parametrize("key", ["", "pm_wrong", "pm_" + "a" * 60, "Bearer", "a b", "x" * 5000])
def test_the_api_refuses_a_wrong_key(stack: Stack, key: str) -> None:
    """Whatever stands in its place, a key that is not one opens nothing."""
    with stack.api(key=key or "none") as api:
        for method, path in (("GET", "/pipelines"), ("DELETE", "/pipelines/good"), ("PUT", "/connections/new")):
            answer = api.request(method, path, json=_connection() if method == "PUT" else None)
            refused(answer, "unauthenticated", 401)


def test_the_tenants_key_does_not_open_what_is_the_operators(stack: Stack) -> None:
    """Tenants are made by the operator only, and the operator's key reads no tenant's resources."""
    with stack.api() as api:
        refused(api.post("/tenants", json={"name": "mine"}), "forbidden", 403)
    with stack.api(operator=True) as api:
        answer = api.get("/pipelines")
        assert answer.status_code in (401, 403)


def test_the_api_refuses_a_body_of_10_mb(stack: Stack) -> None:
    """It is refused by its size, not read to its end."""
    with stack.api() as api:
        document = _connection()
        document["config"]["host"] = "a" * 10_000_000
        refused(api.put("/connections/new", json=document), "body_too_large", 413)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"nonsense", b"\xff\xfe", b'{"a":1}{', b"[" * 100_000, b"null"])
def test_the_api_refuses_what_is_no_document(stack: Stack, body: bytes) -> None:
    """Not JSON, or JSON that is no object."""
    with stack.api() as api:
        answer = api.put("/connections/new", content=body, headers={"content-type": "application/json"})
    assert answer.json()["code"] in ("malformed_json", "invalid_document")
    assert answer.status_code in (400, 422)
    assert answer.json()["hint"]


def test_the_api_refuses_a_stale_change(stack: Stack) -> None:
    """If-Match names the generation that a change was made from; another one is refused, and so is nonsense."""
    with stack.api() as api:
        current = api.get("/pipelines/good")
        document = _pipeline(buffer={"type": "jetstream"})
        for etag in ('"999"', '"0"'):
            answer = api.put("/pipelines/good", json=document, headers={"If-Match": etag})
            refused(answer, "stale_generation", 412)
        refused(api.put("/pipelines/good", json=document, headers={"If-None-Match": "*"}), "already_exists", 412)
        assert api.get("/pipelines/good").headers["etag"] == current.headers["etag"]


def test_the_api_refuses_to_take_away_what_is_used(stack: Stack) -> None:
    """A connection that a pipeline names stays, and what does not exist is not found."""
    with stack.api() as api:
        refused(api.delete("/connections/good-sink"), "in_use", 409)
        refused(api.delete("/connections/nowhere"), "not_found", 404)
        refused(api.get("/pipelines/nowhere"), "not_found", 404)
        refused(api.post("/pipelines/nowhere/pause"), "not_found", 404)
        refused(api.post("/pipelines/good/explode"), "not_found", 404, 405)


@pytest.mark.parametrize("token", ["", "pmj_wrong", "a" * 500, "../../etc"])
def test_the_api_refuses_a_wrong_join_token(stack: Stack, token: str) -> None:
    """Enrolment needs a token that was issued; the answer does not say how near a guess was."""
    key = "U" + "A" * 55
    body = {"token": token, "node": "intruder", "node_key": key, "leaf_key": None, "contract": 2}
    with stack.api(key="none") as api:
        answer = api.post("/enrol", json=body)
    assert answer.status_code in (400, 401, 403, 422)
    assert answer.json()["code"]
    assert answer.json()["hint"]


_CONNECTION = "kind: Connection\nname: new\ntype: postgres\nconfig: {host: a, port: 1, database: d, user: u}\n"
_NOWHERE = """kind: Pipeline
name: new
data_plane: local
source: {connection: nowhere, tables: [public.rows]}
sink: {connection: good-sink}
"""

MANIFESTS: dict[str, tuple[str, str]] = {
    "invalid YAML": ("kind: Connection\nname: [unclosed\n", "manifest_invalid"),
    "a tag that makes objects": ("kind: !!python/object/apply:os.system ['true']\n", "manifest_invalid"),
    "an alias": ("kind: &a Connection\nname: *a\n", "manifest_invalid"),
    "a duplicate key": ("kind: Connection\nkind: Pipeline\nname: x\n", "manifest_invalid"),
    "a list": ("- kind: Connection\n", "manifest_invalid"),
    "no kind": ("name: x\n", "manifest_invalid"),
    "an unknown kind": ("kind: Railway\nname: x\n", "unknown_kind"),
    "a secret in plain text": (
        f"{_CONNECTION}secrets: {{password: {SECRET}}}\n",
        "secret_in_plain_text",
    ),
    "an unknown connection": (
        _NOWHERE,
        "unknown_connection",
    ),
    "a name with odd characters": (
        "kind: Connection\nname: 'a/../b'\ntype: postgres\nconfig: {host: a, port: 1, database: d, user: u}\n",
        "invalid_name",
    ),
    "a document of 10 MB": (
        f"kind: Connection\nname: new\nconfig: {{host: {'a' * 10_000_000}}}\n",
        "manifest_too_large",
    ),
}


@pytest.mark.parametrize("what", MANIFESTS)
def test_the_command_line_refuses(stack: Stack, what: str) -> None:
    """A wrong file ends with an error that names the code and what to do, and quotes no secret."""
    manifest, code = MANIFESTS[what]
    ended = stack.apply(manifest, expect=None)
    assert ended.code not in (0, 2)
    assert code in ended.err
    assert "hint" in ended.err.lower()
    assert SECRET not in ended.out + ended.err


def test_one_wrong_document_of_several_is_named(stack: Stack) -> None:
    """Nothing of a file is sent when one of its documents cannot be right, whatever its place."""
    good = "kind: Connection\nname: new\ntype: postgres\nconfig: {host: a, port: 1, database: d, user: u}\n"
    ended = stack.apply(good + "---\nkind: Connection\nname: Bad_Name\ntype: postgres\n", expect=None)
    assert ended.code != 0
    assert "Bad_Name" in ended.err
    assert "invalid_name" in ended.err


def test_the_command_line_refuses_a_wrong_key(stack: Stack, tmp_path: Path) -> None:
    """With exit code 4."""
    key = tmp_path / "key"
    key.write_text("pm_wrong\n")
    ended = stack.cli("get", "pipelines", "--api", stack.state["api"]["url"], "--key-file", str(key), expect=4)
    assert "unauthenticated" in ended.err


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["get", "pipeline", "nowhere"], 3),
        (["describe", "connection", "nowhere"], 3),
        (["pause", "pipeline", "nowhere"], 3),
        (["delete", "connection", "good-sink"], 5),
        (["get", "railways"], 64),
        (["frobnicate"], 64),
        (["wait", "pipeline", "good", "--for", "phase=gap", "--timeout", "1"], 6),
    ],
)
def test_the_command_line_ends_with_the_documented_code(stack: Stack, arguments: list[str], code: int) -> None:
    """3 not found, 5 conflict, 6 outcome unknown, 64 usage."""
    stack.cli(*arguments, expect=code)


class TestAtTheSource:
    """What only the node can find out."""

    @pytest.fixture
    def nothing_changes(self) -> None:
        """Here documents are right, and applied."""

    @pytest.mark.parametrize(
        ("name", "schema", "tables", "code", "place"),
        [
            ("no-table", "SELECT 1", "public.nowhere", "source_table_missing", "public.nowhere"),
            ("no-key", "CREATE TABLE keyless (n int)", "public.keyless", "source_table_without_key", "public.keyless"),
        ],
    )
    def test_a_pipeline_that_cannot_run_says_why(
        self,
        stack: Stack,
        make_pair: Callable[[str], Pair],
        name: str,
        schema: str,
        tables: str,
        code: str,
        place: str,
    ) -> None:
        """It is degraded, with a code, a hint and the table's name, and never ready."""
        pair = make_pair(name)
        pair.source.execute(schema)
        stack.apply(pair.manifest(tables))
        stack.wait(pair.name, "degraded")
        status = stack.pipeline(pair.name)["status"]
        assert (status["code"], status["ready"]) == (code, False)
        assert status["hint"]
        shown = stack.cli("describe", "pipeline", pair.name).out
        assert code in shown
        assert place in shown
        stack.cli("delete", "pipeline", pair.name)

    def test_a_wrong_password_is_told_from_an_absent_one(self, stack: Stack, make_pair: Callable[[str], Pair]) -> None:
        """First the secret is missing, then it is wrong, then the pipeline runs: nobody has to restart anything."""
        pair = make_pair("password")
        pair.source.execute("CREATE TABLE rows (id int PRIMARY KEY)")
        secret = stack.secrets / pair.secret
        right = secret.read_text()
        secret.unlink()
        stack.apply(pair.manifest("public.rows"))

        def code() -> object:
            return stack.pipeline(pair.name)["status"].get("code")

        eventually(lambda: code() == "secret_missing", within=30, what="secret_missing")
        secret.write_text("wrong\n")
        eventually(lambda: code() in ("source_auth_failed", "sink_auth_failed"), within=40, what="auth failed")
        secret.write_text(right)
        stack.wait(pair.name)
        stack.cli("delete", "pipeline", pair.name)
