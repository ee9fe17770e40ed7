"""The customer's policy: what no rule allows is refused, however a control plane spells it."""

from pathlib import Path
from typing import Any

import pytest
from msgspec import structs
from tests.dataplane.node.documents import connection, pipeline

from contracts.backfilling import Backfill, Comparison, Condition
from contracts.codes import Code
from contracts.reconciling import Reconcile
from contracts.v2 import (
    BufferSettings,
    BufferType,
    ConnectionDocument,
    DropTransform,
    MaskMethod,
    MaskTransform,
    PipelineDocument,
    RunState,
)
from dataplane.batch import START, ChangeSet, Column, TableSchema, Truncate
from dataplane.failures import Permanent
from dataplane.policy import (
    LOCAL,
    PRODUCTION,
    Policy,
    PolicyFile,
    PolicyInvalid,
    judge,
    judge_connection,
    load,
    parse,
)
from dataplane.worker.guarding import Guard

BACKFILL = Backfill(number=1, where=(Condition(column="id", comparison=Comparison.EQUAL, values=("1",)),))
OPEN = """
[[source]]
hosts = ["db.internal", "*.rds.internal", "10.1.0.0/16", "::1"]
ports = [5432]
databases = ["shop"]
tables = ["public.*", "sales.orders"]
[[destination]]
hosts = ["warehouse.internal"]
tls = true
[secrets]
allowed = ["file:shop_*"]
[allow]
questions = true
"""


def _connection(name: str, host: str, **changes: Any) -> ConnectionDocument:
    document = connection(name, port=changes.pop("port", 5432))
    secrets = changes.pop("secrets", {"password": "file:shop_password"})
    config = structs.replace(document.config, host=host, **{"database": "shop", **changes})
    return structs.replace(document, config=config, secrets=secrets)


def _pipeline(*tables: str, **changes: Any) -> PipelineDocument:
    document = pipeline()
    return structs.replace(
        document, source=structs.replace(document.source, tables=list(tables or ("public.orders",))), **changes
    )


SHOP = _connection("shop", "db.internal")
WAREHOUSE = _connection("warehouse", "warehouse.internal", ssl_mode="verify-full")


def _codes(policy: str, document: PipelineDocument, source: Any = SHOP, sink: Any = WAREHOUSE) -> list[Code]:
    return [violation.code for violation in judge(parse(policy), document, source, sink)]


def test_what_a_rule_allows_runs() -> None:
    """Hosts, ports, databases, tables, secrets and TLS all agree."""
    assert _codes(OPEN, _pipeline("public.orders", "sales.orders")) == []


def test_without_rules_everything_is_refused() -> None:
    """What `node join` writes allows nothing, and neither does an empty file."""
    for text in (PRODUCTION, ""):
        assert set(_codes(text, _pipeline())) == {
            Code.POLICY_SOURCE_REFUSED,
            Code.POLICY_DESTINATION_REFUSED,
            Code.POLICY_SECRET_REFUSED,
        }


@pytest.mark.parametrize(
    "host",
    [
        "db.internal.evil.example",
        "evil-db.internal",
        "rds.internal",
        "127.0.0.1",
        "127.1",
        "0x7f000001",
        "2130706433",
        "localhost",
        "10.2.0.1",
        "169.254.169.254",
        "::ffff:169.254.169.254",
        "::ffff:10.2.0.1",
        "fe80::1",
    ],
)
def test_no_spelling_of_another_host_passes(host: str) -> None:
    """Names are compared as wholes, addresses as numbers."""
    assert _codes(OPEN, _pipeline(), _connection("shop", host)) == [Code.POLICY_SOURCE_REFUSED]


@pytest.mark.parametrize("host", ["DB.internal", "a.rds.internal", "10.1.255.1", "::ffff:10.1.0.9", "0:0:0:0:0:0:0:1"])
def test_every_spelling_of_an_allowed_host_passes(host: str) -> None:
    """Case does not count, and an IPv4 address written as IPv6 is the same host."""
    assert _codes(OPEN, _pipeline(), _connection("shop", host)) == []


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"source": _connection("shop", "db.internal", port=5433)}, Code.POLICY_SOURCE_REFUSED),
        ({"source": _connection("shop", "db.internal", database="payroll")}, Code.POLICY_SOURCE_REFUSED),
        ({"source": _connection("shop", "db.internal", secrets={"password": "env:HOME"})}, Code.POLICY_SECRET_REFUSED),
        ({"sink": _connection("w", "warehouse.internal", ssl_mode="require")}, Code.POLICY_DESTINATION_REFUSED),
        ({"sink": _connection("w", "collector.evil.example")}, Code.POLICY_DESTINATION_REFUSED),
    ],
)
def test_another_place_or_secret_is_refused(changes: dict[str, ConnectionDocument], code: Code) -> None:
    """Each with the code of what is wrong, whatever else is right."""
    assert _codes(OPEN, _pipeline(), changes.get("source", SHOP), changes.get("sink", WAREHOUSE)) == [code]


def test_a_table_that_no_rule_names_is_refused_by_name() -> None:
    """The table goes up with the code, so that people above see which it is."""
    (violation,) = judge(parse(OPEN), _pipeline("public.orders", "sales.salaries"), SHOP, WAREHOUSE)
    assert (violation.code, violation.table) == (Code.POLICY_SOURCE_REFUSED, "sales.salaries")


@pytest.mark.parametrize(
    "changes",
    [
        {"run": RunState.REMOVED},
        {"resyncs": {"public.orders": 1}},
        {"backfills": {"public.orders": BACKFILL}},
        {"reconciles": {"public.orders": Reconcile(number=1, repair=True)}},
        {"buffer": BufferSettings(type=BufferType.JETSTREAM)},
    ],
    ids=["remove", "resync", "backfill", "repair", "jetstream"],
)
def test_what_a_control_plane_may_ask_for_is_a_choice(changes: dict[str, Any]) -> None:
    """Dropping slots, copying again, and rows at rest in the buffer each need a word of the customer."""
    assert _codes(OPEN, _pipeline(**changes)) == [Code.POLICY_ACTION_REFUSED]
    allowed = OPEN + "remove = true\nresync = true\njetstream = true\n"
    assert _codes(allowed, _pipeline(**changes)) == []


def test_a_question_reaches_no_other_host() -> None:
    """A connection test is no scanner of the customer's network: neither another host nor another secret is tried."""
    policy = parse(OPEN)
    assert judge_connection(policy, SHOP) == []
    for strange, code in (
        (_connection("x", "169.254.169.254"), Code.POLICY_SOURCE_REFUSED),
        (_connection("x", "db.internal", secrets={"password": "env:HOME"}), Code.POLICY_SECRET_REFUSED),
    ):
        assert [each.code for each in judge_connection(policy, strange)] == [code]
    silent = parse(OPEN.replace("questions = true", ""))
    assert [each.code for each in judge_connection(silent, SHOP)] == [Code.POLICY_ACTION_REFUSED]


MASKED = OPEN + '[[mask]]\ncolumns = ["email", "*_ssn"]\nmethods = ["hash", "drop"]\n'


def _guarded(policy: Policy, document: PipelineDocument, *columns: str) -> None:
    schema = TableSchema(
        "public", "orders", tuple(Column(name, "text", 25, number == 0, True) for number, name in enumerate(columns))
    )
    item = Truncate(schema, START)
    change = ChangeSet((item,), START, START, begins=True, ends=True, commit_end_lsn=1, commit_time=0, transactions=1)
    Guard(policy.mask, document).check(change)


def test_a_column_leaves_only_as_the_policy_says() -> None:
    """Also one that only appears at the source later: the worker asks for the columns that are about to leave."""
    policy = parse(MASKED)
    plain = _pipeline()
    redacted = _pipeline(transforms=[MaskTransform(table="public.orders", columns=["email"])])
    hashed = _pipeline(
        transforms=[
            MaskTransform(table="public.orders", columns=["email"], method=MaskMethod.HASH, secret="file:shop_key"),
            DropTransform(table="public.orders", columns=["tax_ssn"]),
        ]
    )
    _guarded(policy, plain, "id", "total")
    for document, columns in ((plain, ("id", "email")), (redacted, ("id", "email")), (hashed, ("id", "new_ssn"))):
        with pytest.raises(Permanent) as refused:
            _guarded(policy, document, *columns)
        assert (refused.value.code, refused.value.table) == (Code.POLICY_MASK_MISSING, "public.orders")
        assert refused.value.column == columns[-1]
    _guarded(policy, hashed, "id", "email")
    assert Code.POLICY_MASK_MISSING in _codes(MASKED, redacted)


def test_rows_are_not_counted_by_what_may_only_leave_masked() -> None:
    """How many rows of a part were copied goes up: asked often enough, it would tell each value."""
    policy = parse(MASKED.replace("[allow]", "[allow]\nresync = true"))
    where = (
        Condition(column="id", comparison=Comparison.EQUAL, values=("1",)),
        Condition(column="us_ssn", comparison=Comparison.BELOW, values=("5",)),
    )
    asked = _pipeline(backfills={"public.orders": Backfill(number=1, where=where)})
    (violation,) = judge(policy, asked, SHOP, WAREHOUSE)
    assert (violation.code, violation.column) == (Code.POLICY_ACTION_REFUSED, "us_ssn")


def test_a_mask_that_follows_another_counts_as_the_first() -> None:
    """Redacting first and hashing the stars afterwards is a redaction."""
    document = _pipeline(
        transforms=[
            MaskTransform(table="public.orders", columns=["email"]),
            MaskTransform(table="public.orders", columns=["email"], method=MaskMethod.HASH, secret="file:shop_key"),
        ]
    )
    with pytest.raises(Permanent):
        _guarded(parse(MASKED), document, "id", "email")


@pytest.mark.parametrize(
    "text",
    [
        "not toml",
        "[allow]\neverything = true",
        "[[source]]\nhosts = []",
        "[[source]]\nport = 1",
        '[[mask]]\ncolumns = "x"',
    ],
)
def test_a_policy_with_a_mistake_allows_nothing(text: str, folder: Path) -> None:
    """A misspelt word must not open anything: the file as a whole is refused."""
    (folder / "policy.toml").write_text(text)
    with pytest.raises(PolicyInvalid):
        load(folder)


def test_a_policy_that_anyone_can_change_allows_nothing(folder: Path) -> None:
    """Whoever can write on the machine could otherwise write it."""
    file = folder / "policy.toml"
    file.write_text(LOCAL)
    load(folder)
    file.chmod(0o646)
    with pytest.raises(PolicyInvalid):
        load(folder)


def test_a_change_of_the_file_counts_at_once(folder: Path) -> None:
    """Taking a rule away, breaking the file and deleting it each show at the next look."""
    file = PolicyFile(folder)
    assert isinstance(file.current(), PolicyInvalid)
    (folder / "policy.toml").write_text(LOCAL)
    assert file.current() == parse(LOCAL)
    (folder / "policy.toml").write_text("broken")
    assert isinstance(file.current(), PolicyInvalid)
    (folder / "policy.toml").unlink()
    assert isinstance(file.current(), PolicyInvalid)
