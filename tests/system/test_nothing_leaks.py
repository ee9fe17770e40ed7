"""What must not be found where: secrets anywhere but in their files, rows anywhere but on the customer's side."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import httpx
import psutil
import psycopg
import pytest
from psycopg import sql
from tests.system.databases import Databases, Pair
from tests.system.stack import Stack, eventually

from controlplane.row_security import DatabaseRole, role_name

pytestmark = [pytest.mark.system, pytest.mark.timeout(240)]

ROW_MARKS = ("mark-of-a-row-7f3a", "mark-of-a-snapshot-91cc", "mark-of-an-error-55d0", "mark-of-a-key-c0de")
KEY_FILES = (".nk", ".key", ".creds", ".seed", ".password")
HOW_FAR_FILES_ARE_READ = 256 << 20


@pytest.fixture(scope="module")
def worked(stack: Stack, databases: Databases, make_pair: Callable[[str], Pair]) -> Pair:
    """A stack that has done everything that could leak: rows, errors that quote rows, wrong passwords, restarts."""
    pair = make_pair("canary")
    pair.source.execute("CREATE TABLE rows (id text PRIMARY KEY, note text, n int)")
    pair.source.execute("INSERT INTO rows VALUES ('before', %s, 1)", ROW_MARKS[1])
    stack.apply(pair.manifest("public.rows", buffer="jetstream"))
    stack.wait(pair.name)
    pair.source.execute("INSERT INTO rows VALUES (%s, %s, 2)", ROW_MARKS[3], ROW_MARKS[0])
    eventually(lambda: pair.equal("rows"), within=30, what="rows on both sides")
    # PostgreSQL quotes the row in this error's text.
    pair.sink.execute("ALTER TABLE rows ADD CONSTRAINT positive CHECK (n > 0)")
    pair.source.execute("INSERT INTO rows VALUES ('bad', %s, -1)", ROW_MARKS[2])
    status = eventually(
        lambda: (found := stack.pipeline(pair.name)["status"])["code"] == "sink_constraint" and found,
        within=40,
        what="sink_constraint",
    )
    assert status["ready"] is False
    stack.cli("describe", "pipeline", pair.name)
    pair.sink.execute("ALTER TABLE rows DROP CONSTRAINT positive")
    stack.cli("restart", "pipeline", pair.name)
    stack.wait(pair.name)
    (stack.secrets / pair.secret).write_text("wrong-on-purpose\n")
    stack.cli("restart", "pipeline", pair.name)
    eventually(
        lambda: str(stack.pipeline(pair.name)["status"]["code"]).endswith("_auth_failed"), within=40, what="auth failed"
    )
    (stack.secrets / pair.secret).write_text(databases.password + "\n")
    stack.wait(pair.name)
    # A row that differs, and one that is missing: both keys and what they hold are marks.
    pair.sink.execute("DELETE FROM rows WHERE id = %s", ROW_MARKS[3])
    pair.sink.execute("INSERT INTO rows VALUES (%s, %s, 1)", ROW_MARKS[0], ROW_MARKS[1])
    stack.cli("reconcile", "pipeline", pair.name, "--repair")
    stack.wait(pair.name, "reconciled", seconds=90)
    return pair


@pytest.fixture(scope="module")
def secrets(stack: Stack, databases: Databases, worked: Pair) -> dict[str, bytes]:
    """Everything that is secret: the database's password, the API keys, every seed and key below the folder."""
    found = {"the database's password": databases.password.encode()}
    for name in ("api_key_file", "operator_key_file"):
        found[name] = Path(stack.state[name]).read_bytes().strip()
    for path in stack.folder.rglob("*"):
        if path.suffix in KEY_FILES and path.is_file():
            seeds = re.findall(rb"S[AOUN][A-Z2-7]{56}", path.read_bytes()) or [path.read_bytes().strip()]
            found |= {f"{path.relative_to(stack.folder)} {number}": seed for number, seed in enumerate(seeds)}
    return found


def holders(secrets: dict[str, bytes], data: bytes) -> list[str]:
    return [name for name, secret in secrets.items() if secret in data]


def test_there_are_secrets_to_look_for(secrets: dict[str, bytes]) -> None:
    """The other tests would pass for ever if they looked for nothing."""
    assert len(secrets) >= 6
    assert all(len(secret) >= 16 for secret in secrets.values())


def test_no_log_holds_a_secret(stack: Stack, secrets: dict[str, bytes]) -> None:
    """Neither a key nor a password, in any log, after wrong passwords and restarts."""
    logs = list(stack.logs())
    assert len(logs) >= 5
    found = {str(path): holders(secrets, path.read_bytes()) for path in logs}
    assert {path: names for path, names in found.items() if names} == {}


def test_no_process_shows_a_secret(stack: Stack, secrets: dict[str, bytes]) -> None:
    """Neither in its command line nor in its environment: both can be read by others, or end up in reports."""
    processes = stack.processes()
    assert len(processes) >= 6
    for process in processes:
        for file in ("cmdline", "environ"):
            try:
                data = Path(f"/proc/{process.pid}/{file}").read_bytes()
            except (FileNotFoundError, PermissionError, ProcessLookupError):
                continue
            assert holders(secrets, data) == [], f"{file} of {process.pid}"


def test_pointsman_json_names_files_and_holds_no_secret(stack: Stack, secrets: dict[str, bytes]) -> None:
    """A script gets paths; only their owner reads what lies there."""
    assert holders(secrets, (stack.folder / "pointsman.json").read_bytes()) == []
    for name in ("api_key_file", "operator_key_file"):
        assert Path(stack.state[name]).stat().st_mode & 0o077 == 0


def test_secret_files_are_their_owners_alone(stack: Stack, worked: Pair) -> None:
    """No key, seed or credential below the folder is readable for group or others."""
    open_ones = [
        str(path)
        for path in stack.folder.rglob("*")
        if path.is_file() and path.suffix in KEY_FILES and path.stat().st_mode & 0o077
    ]
    assert open_ones == []


def test_metrics_hold_no_secret_and_no_row(stack: Stack, secrets: dict[str, bytes]) -> None:
    """Of the control plane, and of the node if it has an address for them."""
    urls = [stack.state["api"]["url"] + "/metrics", stack.components["node-1"]["url"]]
    for url in urls:
        text = httpx.get(url, timeout=10).content
        assert b"# HELP" in text
        assert holders(secrets, text) == []
        assert [mark for mark in ROW_MARKS if mark.encode() in text] == []


def control_plane_dump(stack: Stack) -> bytes:
    """Return everything that the control plane's database holds; bytes as they are, not in hex."""
    settings = _database_settings(stack)
    parts: list[bytes] = []
    with psycopg.connect(
        host=settings["host"],
        port=settings["port"],
        dbname=settings["name"],
        user=settings["user"],
        password=Path(settings["password_file"]).read_text().strip(),
    ) as connection:
        # The tables' owner itself sees no row.
        connection.execute(
            sql.SQL("SET ROLE {}").format(sql.Identifier(role_name(settings["name"], DatabaseRole.BACKUP)))
        )
        tables = connection.execute(
            "SELECT schemaname, tablename FROM pg_tables WHERE schemaname NOT IN ('pg_catalog', 'information_schema')"
        ).fetchall()
        for table in tables:
            rows = connection.execute(sql.SQL("SELECT * FROM {}").format(sql.Identifier(*table))).fetchall()
            parts += [value if isinstance(value, bytes) else str(value).encode() for row in rows for value in row]
    return b"\n".join(parts)


def _database_settings(stack: Stack) -> dict[str, str]:
    for path in (stack.folder / "control-plane").rglob("*.json"):
        settings = json.loads(path.read_bytes())
        if isinstance(settings, dict) and "database" in settings:
            database: dict[str, str] = settings["database"]
            return database
    raise AssertionError("no settings of the control plane below its folder")


def test_the_control_planes_database_holds_no_secret(stack: Stack, secrets: dict[str, bytes]) -> None:
    """Events, read models, audit and telemetry: references and hashes only."""
    dump = control_plane_dump(stack)
    assert b"canary" in dump
    assert holders(secrets, dump) == []


def test_no_row_reached_the_control_plane(stack: Stack, worked: Pair) -> None:
    """Not in its database, its files or its logs, nor in the hub's, though an error's text had quoted a row."""
    dump = control_plane_dump(stack)
    assert [mark for mark in ROW_MARKS if mark.encode() in dump] == []
    for component in ("control-plane", "hub", "postgres"):
        files = [Path(stack.components[component]["log"]), *(stack.folder / component).rglob("*")]
        for path in files:
            if path.is_file() and path.stat().st_size < HOW_FAR_FILES_ARE_READ:
                data = path.read_bytes()
                assert [mark for mark in ROW_MARKS if mark.encode() in data] == [], path


def test_the_keys_of_rows_that_differed_are_told_on_the_node_and_nowhere_else(stack: Stack, worked: Pair) -> None:
    """The control plane has the counts; the other tests of this module look for the keys there in vain."""
    (found,) = stack.pipeline(worked.name)["status"]["reconciles"]
    assert (found["state"], found["rows_missing"], found["rows_extra"], found["rows_repaired"]) == ("done", 1, 1, 2)
    (node,) = (stack.folder / "nodes").iterdir()
    shown = stack.cli("node", "reconcile", "show", worked.name, "--folder", str(node)).out
    assert ROW_MARKS[3] in shown
    assert ROW_MARKS[0] in shown


def test_no_answer_of_the_api_holds_a_row_or_a_secret(stack: Stack, secrets: dict[str, bytes]) -> None:
    """Whoever may read everything of a tenant still sees no record and no secret."""
    paths = ["/pipelines", "/connections", "/nodes", "/data-planes", "/api-keys", "/events", "/audit/entries"]
    paths += ["/pipelines/canary", "/pipelines/canary/events", "/connections/canary-source"]
    with stack.api() as api:
        for path in paths:
            answer = api.get(path, params={"limit": 200} if path.count("/") < 2 or "events" in path else None)
            assert answer.status_code == 200, path
            assert holders(secrets, answer.content) == []
            assert [mark for mark in ROW_MARKS if mark in answer.text] == []


def test_workers_and_agent_do_not_run_with_the_control_planes_keys(stack: Stack, worked: Pair) -> None:
    """No process of the customer's side has a file of the control plane open."""
    for process in stack.workers():
        try:
            opened = [file.path for file in process.open_files()]
        except psutil.Error:
            continue
        assert not [path for path in opened if path.startswith((f"{stack.folder}/keys", f"{stack.folder}/control"))]
