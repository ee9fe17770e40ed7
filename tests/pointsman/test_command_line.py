"""The command line as a whole: every command follows the same rules, and ends as it says it does."""

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

import click
import pytest
import yaml
from tests.pointsman.conftest import Done
from tests.pointsman.fake_api import FakeApi, problem

from contracts import v2
from contracts.codes import Code
from contracts.keys import KeyPair, Role
from dataplane import config
from dataplane.link.ledger import Ledger
from dataplane.link.uplink import SequenceCounter, Uplink
from pointsman.cli.root import root

Run = Callable[..., Done]

PRINTS_NO_DATA = {
    "pointsman completion": "its output is a script for a shell",
    "pointsman node run": "it becomes the agent",
}


def leaves(command: click.Command, path: str) -> Iterator[tuple[str, click.Command]]:
    if isinstance(command, click.Group):
        for name, inner in command.commands.items():
            yield from leaves(inner, f"{path} {name}")
    else:
        yield path, command


COMMANDS = dict(leaves(root, "pointsman"))


@pytest.mark.parametrize("path", COMMANDS)
def test_every_command_prints_as_table_json_or_yaml(path: str) -> None:
    """Each has -o with the same three formats, unless it prints no data."""
    formats = [
        tuple(parameter.type.choices)
        for parameter in COMMANDS[path].params
        if "-o" in parameter.opts and isinstance(parameter.type, click.Choice)
    ]
    assert formats == ([] if path in PRINTS_NO_DATA else [("table", "json", "yaml")])


@pytest.mark.parametrize("path", COMMANDS)
def test_every_command_and_option_is_explained(path: str) -> None:
    """No command and no option is without a help text."""
    command = COMMANDS[path]
    assert command.help
    silent = [p.name for p in command.params if isinstance(p, click.Option) and not p.help]
    assert silent == []


def test_every_command_stands_in_the_root_help(pointsman: Run) -> None:
    """A command that the sections forget would be invisible."""
    done = pointsman("--help")
    assert done.code == 0
    assert [name for name in root.commands if f"  {name}" not in done.out] == []


@pytest.fixture
def filled(api: FakeApi) -> FakeApi:
    api.put("data-planes", "local", model="self_managed")
    api.put("connections", "shop", type="postgres", config={"host": "h", "port": 5432, "database": "shop"})
    status = {"ready": True, "phase": "streaming", "node": "node-1", "observed_generation": 1}
    api.put(
        "pipelines",
        "orders",
        source={"connection": "shop"},
        sink={"connection": "w"},
        data_plane="local",
        status=status,
    )
    api.put("nodes", "node-1", data_plane="local", contract=2, status={"ready": True})
    api.put("members", "00ff00ff00ff00ff", role="viewer", status={"display_name": "Ada", "email": "ada@example.com"})
    api.put("fleet", "acme", tenant="t", nodes=[{"connected": True}], phases={"streaming": 2}, codes={})
    api.put("access-grants", "support", expires_at="2030-01-01T00:00:00Z", uses=3, status={"phase": "open"})
    return api


PRINTING = [
    ("get", "pipelines"),
    ("get", "pipeline", "orders"),
    ("get", "conn"),
    ("get", "dp", "local"),
    ("get", "nodes"),
    ("describe", "pipeline", "orders"),
    ("describe", "connection", "shop"),
    ("describe", "node", "node-1"),
    ("wait", "pipeline", "orders", "--for", "ready"),
    ("wait", "pl", "none", "--for", "deleted"),
    ("pause", "pipeline", "orders"),
    ("resume", "pipeline", "orders"),
    ("restart", "pipeline", "orders"),
    ("resync", "pipeline", "orders"),
    ("reconcile", "pipeline", "orders"),
    ("reconcile", "pipeline", "orders", "--table", "public.orders", "--repair"),
    ("resync", "pipeline", "orders", "--table", "public.orders", "--table", "public.customers"),
    ("resync", "pipeline", "orders", "--table", "public.orders", "--where", "id >= 5", "--where", "note is null"),
    ("resync", "pipeline", "orders", "--table", "public.orders", "--where", "id in (1, 2)", "--dry-run"),
    ("pause", "pipeline", "orders", "--table", "public.orders"),
    ("resume", "pipeline", "orders", "--table", "public.orders"),
    ("delete", "pipeline", "orders"),
    ("delete", "pipeline", "orders", "--cleanup"),
    ("events",),
    ("events", "pipelines"),
    ("events", "pipeline", "orders"),
    ("test", "connection", "shop"),
    ("audit", "verify"),
    ("audit", "export", "--out", "audit.jsonl"),
    ("audit", "replay", "--at", "2026-01-31T12:00:00Z"),
    ("create", "join-token", "local"),
    ("create", "api-key", "ci", "--role", "viewer"),
    ("create", "api-key", "laptop", "--role", "viewer", "--member", "00ff00ff00ff00ff", "--read-only"),
    ("create", "member", "--name", "Ada", "--email", "ada@example.com"),
    ("create", "access-grant", "support", "--hours", "2"),
    ("get", "members"),
    ("get", "access-grants"),
    ("get", "fleet"),
    ("create", "operator", "grace"),
    ("get", "pipelines", "--grant", "00000000-0000-0000-0000-000000000000/support"),
    ("describe", "access-grant", "support"),
    ("set", "member", "00ff00ff00ff00ff", "--role", "admin"),
    ("erase", "member", "00ff00ff00ff00ff"),
    ("create", "tenant", "acme"),
    ("create", "data-plane", "other"),
    ("context", "list"),
    ("version",),
]


@pytest.mark.parametrize("arguments", PRINTING, ids=" ".join)
def test_json_and_yaml_say_the_same_and_a_table_says_something(
    filled: FakeApi, against: Run, arguments: tuple[str, ...], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All three formats work on every command that reads or changes something; data alone is on standard output."""
    monkeypatch.chdir(home)
    filled.done.clear()
    shown = {}
    for form in ("json", "yaml", "table"):
        filled.put(
            "pipelines",
            "orders",
            **{
                key: value
                for key, value in filled.resources.get(("pipelines", "orders"), SAVED).items()
                if key in SAVED
            },
        )
        filled.done.clear()
        done = against(*arguments, "-o", form)
        assert done.code == 0, done
        shown[form] = done.out
    assert type(json.loads(shown["json"])) is type(yaml.safe_load(shown["yaml"]))
    assert shown["table"] or arguments == ("context", "list")


@pytest.mark.parametrize("form", ["json", "yaml"])
@pytest.mark.parametrize(
    ("arguments", "code", "exit_code"),
    [
        (("get", "pipeline", "none"), "not_found", 3),
        (("get", "pipelines", "--no-such-option"), "usage", 64),
        (("get", "nonsense"), "usage", 64),
    ],
)
def test_a_problem_takes_the_form_that_was_asked_for(
    filled: FakeApi, against: Run, form: str, arguments: tuple[str, ...], code: str, exit_code: int
) -> None:
    """With -o json or yaml a script reads code, hint and exit code from one line on standard error."""
    for order in ((*arguments, "-o", form), (arguments[0], "-o", form, *arguments[1:])):
        done = against(*order)
        assert done.code == exit_code
        error = json.loads(done.err)["error"]
        assert (error["code"], error["exit_code"]) == (code, exit_code)
        assert error["message"]
    assert "error: " in against(*arguments).err


SAVED = {
    "source": {"connection": "shop"},
    "sink": {"connection": "w"},
    "data_plane": "local",
    "status": {"ready": True, "phase": "streaming", "node": "node-1", "observed_generation": 1},
}


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("get", "pipeline", "nothing"), 3),
        (("describe", "connection", "nothing"), 3),
        (("delete", "connection", "nothing"), 3),
        (("get", "pipelins"), 64),
        (("get",), 64),
        (("test", "pipeline", "orders"), 64),
        (("fly",), 64),
        (("get", "pipelines", "--colour"), 64),
        (("get", "pipelines", "-o", "xml"), 64),
        (("wait", "pipeline", "x", "--for", "weather"), 64),
        (("wait", "pipeline", "x", "--timeout", "-1"), 64),
        (("pause", "connection", "shop"), 64),
        (("resync", "connection", "shop"), 64),
        (("reconcile", "connection", "shop"), 64),
        (("reconcile", "pipeline", "nothing"), 3),
        (("node", "reconcile", "show", "orders", "--folder", "/nonexistent"), 3),
        (("resync", "pipeline", "nothing"), 3),
        (("resync", "pipeline", "orders", "--table"), 64),
        (("resync", "pipeline", "orders", "--table", "public.orders", "--where"), 64),
        (("pause", "connection", "shop", "--table", "public.orders"), 64),
        (("delete", "connection", "shop", "--cleanup"), 64),
        (("apply", "-f", "/does/not/exist.yaml"), 1),
        (("get", "pipelines", "--context", "none"), 3),
        (("get", "pipelines", "--context", "none", "--dir", "x"), 64),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_an_exit_code_says_what_went_wrong(
    filled: FakeApi, against: Run, arguments: tuple[str, ...], code: int
) -> None:
    """Not found is 3, usage is 64, other errors are 1; nothing is printed as data then, and the error has a code."""
    done = against(*arguments)
    assert done.code == code, done
    assert done.out == ""
    assert "error: " in done.err
    assert "[" in done.err


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (401, "unauthenticated", 4),
        (403, "forbidden", 4),
        (409, "in_use", 5),
        (412, "stale_generation", 5),
        (422, "x", 1),
    ],
)
def test_a_refusal_by_the_api_has_its_exit_code_and_its_hint(
    filled: FakeApi, against: Run, status: int, code: str, expected: int
) -> None:
    """Code and hint of the problem document are shown, on standard error."""
    filled.fault = lambda method, path: problem(status, code, "It was refused.") if method == "DELETE" else None
    done = against("delete", "connection", "shop")
    assert done.code == expected
    assert f"error: It was refused. [{code}]" in done.err
    assert f"hint: What to do about {code}." in done.err


def test_a_write_without_an_answer_is_unknown_not_failed(
    filled: FakeApi, against: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is tried again with the same Idempotency-Key, then the command ends with 6."""
    monkeypatch.setattr("pointsman.client.RETRY_SECONDS_FIRST", 0.001)
    filled.fault = lambda method, path: "hang up" if method == "POST" else None
    done = against("pause", "pipeline", "orders")
    assert done.code == 6
    assert "outcome_unknown" in done.err
    keys = [headers["Idempotency-Key"] for method, _, headers in filled.requests if method == "POST"]
    assert len(keys) > 1
    assert len(set(keys)) == 1


def test_a_control_plane_that_does_not_answer_is_an_error_that_says_that_pipelines_go_on(
    api: FakeApi, against: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody should believe that the data has stopped."""
    monkeypatch.setattr("pointsman.client.RETRY_SECONDS_FIRST", 0.001)
    api.close()
    done = against("get", "pipelines")
    assert done.code == 1
    assert "Pipelines go on" in done.err


def test_a_kind_that_is_misspelt_gets_the_nearest_one(against: Run) -> None:
    """As git does."""
    assert "Did you mean 'pipelines'?" in against("get", "pipelins").err


@pytest.mark.parametrize("spelling", ["pipeline", "pipelines", "pl", "Pipeline", "PIPELINES"])
def test_a_kind_may_be_singular_plural_or_short(filled: FakeApi, against: Run, spelling: str) -> None:
    """In any case."""
    assert "orders" in against("get", spelling).out


@pytest.mark.parametrize("form", ["table", "json", "yaml"])
def test_nothing_from_outside_can_steer_the_terminal(api: FakeApi, against: Run, form: str) -> None:
    """Escape sequences, returns and marks that turn text around are written out, in data and in errors."""
    evil = "a\x1b[31mb\rc\u202ed\x9be\x7ff"
    api.put("connections", "shop", type="postgres", config={"host": evil, "port": 1, "database": "d"})
    listed = against("get", "connections", "-o", form)
    api.fault = lambda method, path: problem(422, "invalid_document", f"It holds {evil}.")
    refused = against("get", "connection", "shop", "-o", form)
    for text in (listed.out, refused.err):
        assert not set(text) & set("\x1b\r\u202e\x9b\x7f")
        assert "31m" in text


def test_without_a_terminal_there_is_no_colour_and_nothing_is_cut(api: FakeApi, against: Run) -> None:
    """A pipe gets whole lines of text."""
    long = "x" * 60
    for number in range(3):
        api.put(
            "connections", f"{long}{number}", type="postgres", config={"host": "h" * 200, "port": 1, "database": "d"}
        )
    done = against("get", "connections")
    assert "\x1b" not in done.out
    assert all("h" * 200 in line for line in done.out.splitlines()[1:])
    assert not any(line != line.rstrip() for line in done.out.splitlines())


def test_flags_may_stand_before_the_verb(filled: FakeApi, pointsman: Run, key_file: Path) -> None:
    """As with kubectl."""
    done = pointsman("--api", filled.url, "--key-file", str(key_file), "get", "pipelines")
    assert "orders" in done.out


def test_a_read_after_a_write_asks_for_what_was_written(filled: FakeApi, against: Run) -> None:
    """The newest revision is remembered from one command to the next."""
    against("pause", "pipeline", "orders")
    against("get", "pipelines")
    _, path, _ = filled.requests[-1]
    assert f"at_least={filled.revision}" in path


def test_a_revision_of_another_life_is_forgotten(filled: FakeApi, against: Run) -> None:
    """An address that has a new control plane behind it still answers."""
    against("pause", "pipeline", "orders")
    filled.fault = lambda method, path: (
        problem(503, "projection_behind", "Not there yet.") if "at_least" in path else None
    )
    done = against("get", "pipelines")
    assert done.code == 0
    assert "orders" in done.out


def test_a_secret_is_written_to_a_file_of_its_own_and_not_printed(filled: FakeApi, against: Run, home: Path) -> None:
    """With --out the file is new, private, and nothing of the secret is on the terminal."""
    file = home / "token"
    done = against("create", "join-token", "local", "--out", str(file))
    assert "pmj_secret_token" not in done.out + done.err
    assert file.read_text() == "pmj_secret_token\n"
    assert file.stat().st_mode & 0o077 == 0
    again = against("create", "join-token", "local", "--out", str(file))
    assert again.code == 5


def test_wait_ends_with_6_and_says_how_it_stands(filled: FakeApi, against: Run) -> None:
    """A time limit is no failure of what was asked for."""
    filled.put(
        "pipelines", "orders", **SAVED | {"status": {"ready": False, "phase": "degraded", "code": "sink_disk_full"}}
    )
    done = against("wait", "pipeline", "orders", "--timeout", "0")
    assert done.code == 6
    assert "degraded, sink_disk_full" in done.err


def test_describe_says_in_words_what_a_code_means(filled: FakeApi, against: Run) -> None:
    """What happened and what to do."""
    filled.put(
        "pipelines", "orders", **SAVED | {"status": {"ready": False, "phase": "degraded", "code": "sink_disk_full"}}
    )
    done = against("describe", "pipeline", "orders")
    assert "The destination's disk is full." in done.out


def test_get_and_describe_show_what_the_source_keeps_and_for_how_long_it_may(filled: FakeApi, against: Run) -> None:
    """Kept now, growth and time left; a slot without a limit says so."""
    slot = {"status": "extended", "retained_bytes": 5_000_000_000, "growth_bytes_per_second": 1_000_000.0}
    telemetry = {
        "slot_retained_bytes": 5_000_000_000,
        "slot": slot | {"limit_bytes": 12_200_000_000, "seconds_left": 7200},
    }
    filled.put("pipelines", "orders", **SAVED | {"status": {"phase": "paused", "telemetry": telemetry}})
    line = next(each for each in against("get", "pipelines").out.splitlines() if each.startswith("orders"))
    assert " ".join(line.split()).endswith("5.0 GB 1.0 MB/s 2h - - 0s")
    page = against("describe", "pipeline", "orders").out
    assert "Slot at the source" in page
    for told in ("extended", "5.0 GB", "1.0 MB/s", "12.2 GB", "2h"):
        assert told in page
    filled.put("pipelines", "orders", **SAVED | {"status": {"phase": "paused", "telemetry": {"slot": slot}}})
    assert "none known" in against("describe", "pipeline", "orders").out


def test_describe_shows_how_far_the_copy_of_each_table_is(filled: FakeApi, against: Run) -> None:
    """Rows, volume and the time left, and which copy waits for somebody."""
    copies = [
        {"table": "public.orders", "rows": 1200, "rows_estimated": 9000, "bytes": 5_000_000, "seconds_left": 7200.0},
        {"table": "public.customers", "part": True, "paused": True},
    ]
    filled.put("pipelines", "orders", **SAVED | {"status": {"phase": "snapshotting", "telemetry": {"copies": copies}}})
    lines = [" ".join(line.split()) for line in against("describe", "pipeline", "orders").out.splitlines()]
    assert "public.orders copying 1,200 rows of about 9,000, 5.0 MB 2h left" in lines
    assert any(line.startswith("public.customers paused a part") for line in lines)


def test_a_connection_that_does_not_work_ends_with_1_and_says_why(filled: FakeApi, against: Run) -> None:
    """What the node found is data, so it is on standard output, in every format."""
    assert against("test", "connection", "shop").out == "works: node-1 reached shop in 20 ms, PostgreSQL 18.3\n"
    done = against("test", "connection", "other", "-o", "json")
    assert done.code == 1
    assert json.loads(done.out)["code"] == "source_unreachable"


def test_the_doctor_ends_with_1_for_a_problem_and_prints_what_mends_it(filled: FakeApi, against: Run) -> None:
    """A warning is no failure. Each finding has a line, and those that are not well their SQL below."""
    done = against("doctor", "connection", "shop", "--timeout", "30")
    assert done.code == 0
    assert done.out == (
        "shop, seen from node-1 in 80 ms\n"
        "warning  slot_size_limit  It is unlimited.\n"
        "ok       connects         Connected.\n"
        "\nIt is unlimited.\n  Limit it.\n  SELECT pg_reload_conf();\n"
        "\n1 ok, 1 warning\n"
    )
    bad = against("doctor", "connection", "other")
    assert bad.code == 1
    assert "contract 1" in bad.out
    assert "PROBLEM  table_readable" in bad.out
    assert '\n  GRANT SELECT ON "t" TO "u";\n' in bad.out
    assert json.loads(against("doctor", "connection", "other", "-o", "json").out)["ok"] is False
    assert against("doctor", "connection", "shop", "--timeout", "600").code == 64


def test_contexts_are_kept_and_used(filled: FakeApi, pointsman: Run, key_file: Path) -> None:
    """The first one is in use at once; the key itself is not stored."""
    assert pointsman("context", "set", "here", "--api", filled.url, "--key-file", str(key_file)).code == 0
    assert "orders" in pointsman("get", "pipelines").out
    assert pointsman("context", "use", "there").code == 3
    listed = json.loads(pointsman("context", "list", "-o", "json").out)
    assert listed["items"] == [{"name": "here", "current": True, "api": filled.url, "key_file": str(key_file)}]
    assert pointsman("context", "delete", "here").code == 0
    assert pointsman("get", "pipelines").code == 64


def test_a_log_that_was_changed_does_not_verify(filled: FakeApi, against: Run, home: Path) -> None:
    """An edited entry, a missing one, and a history that was written anew are found."""
    import msgspec

    kept = home / "checkpoint"
    assert against("audit", "verify", "--checkpoint", str(kept)).code == 0
    whole = list(filled.entries)
    filled.entries = [*whole[:1], msgspec.structs.replace(whole[1], actor="key:other"), *whole[2:]]
    assert "edited" in against("audit", "verify").err
    filled.entries = [*whole[:1], *whole[2:]]
    assert against("audit", "verify").code == 1
    filled.entries = []
    for number in range(len(whole) + 2):
        filled.log("Pipeline", f"p{number}", "Configured")
    assert against("audit", "verify").code == 0
    rewritten = against("audit", "verify", "--checkpoint", str(kept))
    assert rewritten.code == 1
    assert "audit_broken" in rewritten.err


def test_a_report_of_residency_verifies_offline(filled: FakeApi, against: Run, pointsman: Run, home: Path) -> None:
    """Written once, checked with the pinned key and nobody asked; a changed byte or another key is found."""
    file, key = home / "residency", filled.signing.public
    assert "2 PlacementReported" in against("audit", "residency", "orders", "--out", file).out
    check = ("audit", "verify-residency", file, "--key")
    assert json.loads(pointsman(*check, key, "-o", "json").out)["pipeline"] == "orders"
    assert pointsman(*check, KeyPair.generate(Role.ACCOUNT).public).code == 1
    file.write_text(file.read_text().replace('"PlacementReported":2', '"PlacementReported":1'))
    done = pointsman(*check, key)
    assert (done.code, "residency_broken" in done.err) == (1, True)


def test_checkpoints_that_a_node_kept_show_a_cut_tail(
    filled: FakeApi, against: Run, pointsman: Run, home: Path
) -> None:
    """What a node was given is taken from it and held against the log: a shorter one, signed anew, does not pass."""
    key = filled.signing.public
    link = home / "node" / "link"
    link.mkdir(parents=True)
    (home / "node" / "node.json").write_text("{}")
    first = filled.checkpoint()
    filled.log("Pipeline", "orders", "Paused")
    (link / "checkpoints.jsonl").write_text(f"{first}\n{filled.checkpoint()}\n")
    kept = home / "kept.jsonl"
    listed = json.loads(pointsman("node", "checkpoints", "--folder", home / "node", "-o", "json").out)["items"]
    assert [each["goes_on"] for each in listed] == [True, True]
    assert pointsman("node", "checkpoints", "--folder", home / "node", "--out", kept).code == 0
    verify = ("audit", "verify", "--key", key, "--checkpoint", kept)
    found = json.loads(against(*verify, "-o", "json").out)
    assert (found["earlier_checkpoints"], found["earlier_checkpoint"]) == (2, len(filled.entries))
    filled.entries.pop()
    assert against("audit", "verify", "--key", key).code == 0
    cut = against(*verify)
    assert (cut.code, "is missing" in cut.err) == (1, True)
    assert len(kept.read_text().splitlines()) == 2


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_complete_commands_kinds_and_names(
    filled: FakeApi, against: Run, shell: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The script is printed, and the names come from the control plane."""
    assert "_POINTSMAN_COMPLETE" in against("completion", shell).out
    from click.shell_completion import ShellComplete

    complete = ShellComplete(root, {}, "pointsman", "_POINTSMAN_COMPLETE")
    assert "pipeline" in [item.value for item in complete.get_completions(["get"], "pip")]
    assert [item.value for item in complete.get_completions(["describe", "pipeline"], "or")] == ["orders"]


def test_an_export_verifies_offline(filled: FakeApi, against: Run, pointsman: Run, home: Path) -> None:
    """From a file, a checkpoint kept elsewhere and the pinned key; a changed byte or a missing line is found."""
    log, kept, key = home / "audit.jsonl", home / "checkpoint", filled.signing.public
    assert against("audit", "export", "--out", str(log), "--checkpoint", str(kept)).code == 0
    offline = ("audit", "verify", "--from", str(log), "--checkpoint", str(kept), "--key", key)
    assert json.loads(pointsman(*offline, "-o", "json").out)["entries"] == len(filled.entries)
    whole = log.read_text()
    for damaged in (
        whole.replace('"actor":"key:test"', '"actor":"key:else"', 1),
        "\n".join(whole.splitlines()[1:]) + "\n",
        "\n".join(whole.splitlines()[:-1]) + "\n",
        whole + "not JSON\n",
    ):
        log.write_text(damaged)
        done = pointsman(*offline)
        assert (done.code, "[audit_broken]" in done.err) == (1, True)
    assert pointsman("audit", "verify", "--from", str(log)).code == 64
    assert pointsman(*offline[:3], str(home / "none"), *offline[4:]).code == 1


def test_an_export_for_a_siem_keeps_the_way_back_to_the_proof(filled: FakeApi, against: Run, home: Path) -> None:
    """Every OCSF event has what its class requires, and the entry's number and hash."""
    out = home / "ocsf.jsonl"
    assert against("audit", "export", "--format", "ocsf", "--out", str(out)).code == 0
    events = [json.loads(line) for line in out.read_text().splitlines()]
    required = {"metadata", "time", "category_uid", "class_uid", "activity_id", "type_uid", "severity_id", "entity"}
    assert [sorted(required - event.keys()) for event in events] == [[]] * len(filled.entries)
    assert [event["unmapped"]["hash"] for event in events] == [entry.hash for entry in filled.entries]
    assert {event["type_uid"] - 100 * event["class_uid"] for event in events} <= {1, 3, 4, 99}


def test_the_ledger_is_listed_counted_checked_and_exported(pointsman: Run, home: Path) -> None:
    """On the node's machine, from its folder alone: newest entries, counts by type, the check, JSON Lines."""
    node = _node_with_ledger(home, messages=30)
    listed = json.loads(pointsman("node", "ledger", "list", "--folder", str(node), "--limit", "2", "-o", "json").out)
    assert [item["number"] for item in listed["items"]] == [29, 30]
    assert listed["items"][0]["sealed"]["body"]["message"]["count"] == 29
    first = pointsman("node", "ledger", "list", "--folder", str(node), "--after", "0", "--limit", "1", "-o", "json")
    assert [item["number"] for item in json.loads(first.out)["items"]] == [1]
    counted = json.loads(pointsman("node", "ledger", "count", "--folder", str(node), "-o", "json").out)
    assert [(item["type"], item["messages"]) for item in counted["items"]] == [("error", 30)]
    assert "30 entries, all intact" in pointsman("node", "ledger", "verify", "--folder", str(node)).out
    exported = pointsman("node", "ledger", "export", "--folder", str(node), "--out", "-")
    assert [json.loads(line)["number"] for line in exported.out.splitlines()] == list(range(1, 31))


def test_a_ledger_that_was_edited_is_an_error(pointsman: Run, home: Path) -> None:
    """`verify` names the entry and ends with 1."""
    node = _node_with_ledger(home, messages=3)
    (segment,) = (node / "link" / "ledger").iterdir()
    segment.write_bytes(segment.read_bytes().replace(b'"count":2', b'"count":7'))
    done = pointsman("node", "ledger", "verify", "--folder", str(node))
    assert done.code == 1
    assert "[ledger_broken]" in done.err
    assert "entry 2: was edited" in done.err


def test_a_folder_without_a_node_has_no_ledger(pointsman: Run, home: Path) -> None:
    """Every ledger command says that nobody joined from there."""
    for command in (["list"], ["count"], ["verify"], ["export", "--out", "-"]):
        done = pointsman("node", "ledger", *command, "--folder", str(home / "nothing"))
        assert (done.code, "[node_not_joined]" in done.err) == (3, True)


def _node_with_ledger(home: Path, *, messages: int) -> Path:
    folder = home / "node"
    key = KeyPair.generate(Role.USER)
    folder.mkdir()
    seed = folder / "node.nk"
    seed.write_text(key.seed)
    config.write(folder, _node_config(seed))
    ledger = Ledger(folder / "link" / "ledger")
    gate = Uplink("node-1", key, SequenceCounter(folder), ledger, contract=2)
    for count in range(1, messages + 1):
        gate.seal(v2.ErrorReport(code=Code.WORKER_EXITED, at=datetime.now(UTC), count=count))
    return folder


def _node_config(seed: Path) -> config.NodeConfig:
    return config.NodeConfig(
        tenant=str(UUID(int=1)),
        account="A" * 56,
        data_plane="local",
        node="node-1",
        root_key="A" * 56,
        seed_file=str(seed),
        leaf_url="nats://127.0.0.1:4222",
        ctl_seed_file="/none",
        data_seed_file="/none",
        secrets_folder="/none",
    )


MANIFESTS = """
kind: Connection
name: shop
type: postgres
config: {host: db.internal, database: shop, user: pointsman}
secrets: {password: "file:shop_password"}
---
kind: Connection
name: warehouse
type: postgres
config: {host: collector.evil.example, database: dwh, user: pointsman}
---
kind: Pipeline
name: orders
data_plane: local
source: {connection: shop, tables: [public.orders]}
sink: {connection: warehouse}
"""


def test_a_pipeline_is_judged_by_the_policy_before_it_is_applied(pointsman: Run, home: Path) -> None:
    """`check` says what the node would hold against it, and ends with 2; with a rule for it, with 0."""
    (home / "pipeline.yaml").write_text(MANIFESTS)
    check = ("node", "policy", "check", "--folder", str(home), "-f", str(home / "pipeline.yaml"))
    assert "[policy_invalid]" in pointsman(*check).err
    assert pointsman("node", "policy", "init", "--folder", str(home)).code == 0
    done = pointsman(*check, "-o", "json")
    assert done.code == 2
    assert {item["code"] for item in json.loads(done.out)["items"]} == {
        "policy_source_refused",
        "policy_destination_refused",
        "policy_secret_refused",
    }
    (home / "policy.toml").write_text(
        '[[source]]\nhosts = ["db.internal"]\n[[destination]]\nhosts = ["*.evil.example"]\n'
        '[secrets]\nallowed = ["file:shop_*"]\n'
    )
    done = pointsman(*check)
    assert (done.code, "Nothing is held against 1 pipelines" in done.err) == (0, True)


def test_a_policy_that_is_there_stays(pointsman: Run, home: Path) -> None:
    """`init` never writes over what a customer wrote; `show` prints what the node understands."""
    assert pointsman("node", "policy", "init", "--folder", str(home), "--profile", "local").code == 0
    shown = json.loads(pointsman("node", "policy", "show", "--folder", str(home), "-o", "json").out)
    assert shown["source"][0]["hosts"] == ["127.0.0.1", "::1", "localhost"]
    again = pointsman("node", "policy", "init", "--folder", str(home))
    assert (again.code, "[policy_exists]" in again.err) == (5, True)
