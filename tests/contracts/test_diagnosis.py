"""Findings cross as closed words, names and numbers; here they become sentences, and SQL that PostgreSQL takes."""

import re
from typing import Any

import msgspec
import pytest
from tests.conftest import Database

from contracts import v2
from contracts.checks import BUGS, Check, Outcome, State, bugs_of
from contracts.codes import Code, explain
from contracts.diagnosis import Advice, advise, words_for
from contracts.envelope import PAYLOAD_BYTES_MAX, Purpose, sign
from contracts.keys import KeyPair, Role
from contracts.meanings import MEANINGS

POSSIBLE = [
    (check, outcome, state)
    for check, meaning in MEANINGS.items()
    for outcome in Outcome
    for state in (None, *meaning.states)
]
MENDED = {
    Check.WAL_LEVEL,
    Check.REPLICATION_RIGHT,
    Check.PUBLICATION_RIGHT,
    Check.FREE_SLOTS,
    Check.FREE_WAL_SENDERS,
    Check.TABLE_READABLE,
    Check.TABLE_OWNED,
    Check.TABLE_IDENTITY,
    Check.DATABASE_RIGHT,
    Check.SCHEMA_RIGHT,
    Check.TABLE_WRITABLE,
    Check.TABLE_EMPTY,
}
"""Problems that SQL mends."""


def finding(check: Check, outcome: Outcome, state: State | None = None, **changes: Any) -> v2.Finding:
    full: dict[str, Any] = {
        "pipeline": "orders",
        "table": "public.Orders$1",
        "count": 3,
        "count_max": 10,
        "size_bytes": 5 << 30,
        "seconds": 7200.0,
        "version": 170004,
    }
    return v2.Finding(check=check, outcome=outcome, state=state, **{**full, **changes})


def advice(each: v2.Finding) -> Advice:
    return advise(each, user="pointsman", database="shop")


def test_every_check_has_its_meaning() -> None:
    """The table tells of the checks that exist, and each of them can be well."""
    assert set(MEANINGS) == set(Check)
    assert all(Outcome.OK in meaning.outcomes for meaning in MEANINGS.values())


@pytest.mark.parametrize(("check", "outcome", "state"), POSSIBLE)
def test_every_outcome_of_every_check_has_words(check: Check, outcome: Outcome, state: State | None) -> None:
    """Whatever a node may send becomes whole sentences, also when it leaves every name and number out."""
    for each in (finding(check, outcome, state), v2.Finding(check=check, outcome=outcome, state=state)):
        said = advice(each)
        assert said.summary
        for sentence in (said.summary, said.hint):
            assert sentence == "" or sentence.endswith(".")
            assert not re.search(r"[{}]", sentence)
    if outcome is Outcome.OK:
        assert said.sql == ()


@pytest.mark.parametrize("check", Check)
def test_a_problem_or_a_warning_says_what_to_do(check: Check) -> None:
    """By a hint, by SQL, or both; where SQL mends it, there is SQL."""
    for outcome in (Outcome.WARNING, Outcome.PROBLEM):
        words = MEANINGS[check].outcomes.get(outcome)
        assert words is None or words.hint or words.sql or MEANINGS[check].states
    if check in MENDED:
        assert advice(finding(check, Outcome.PROBLEM)).sql


def test_postgresql_takes_every_statement(database: Database) -> None:
    """Each is parsed by a real server, with names that need their quotes."""
    statements = {
        statement for check, outcome, state in POSSIBLE for statement in advice(finding(check, outcome, state)).sql
    }
    assert len(statements) > 20
    database.execute('CREATE TABLE public."Orders$1" (id int)')
    for number, statement in enumerate(sorted(statements)):
        # The body of an SQL function is parsed when it is made, and not run.
        database.execute(f"CREATE FUNCTION f{number}() RETURNS void LANGUAGE sql AS $pm${statement}; SELECT$pm$")
    with pytest.raises(Exception, match="syntax error"):
        database.execute("CREATE FUNCTION g() RETURNS void LANGUAGE sql AS $pm$GRANT SELECT TABLE t TO u; SELECT$pm$")


def test_names_in_sql_are_quoted() -> None:
    """Upper case and signs stay what they are, and no name can end its quotes."""
    (_, grant) = advise(finding(Check.TABLE_READABLE, Outcome.PROBLEM), user='a"b', database="x").sql
    assert grant == 'GRANT SELECT ON TABLE "public"."Orders$1" TO "a""b"'


def test_a_finding_with_a_code_is_told_by_the_codes_words() -> None:
    """A connection that fails says why."""
    each = v2.Finding(check=Check.CONNECTS, outcome=Outcome.PROBLEM, code=Code.SOURCE_AUTH_FAILED)
    assert advice(each).summary == explain(Code.SOURCE_AUTH_FAILED).summary


def test_the_state_chooses_the_words() -> None:
    """A slot that was given up for its size is mended otherwise than one for its idleness."""
    removed = words_for(finding(Check.PIPELINE_SLOT, Outcome.PROBLEM, State.WAL_REMOVED))
    idle = words_for(finding(Check.PIPELINE_SLOT, Outcome.PROBLEM, State.IDLE_TIMEOUT))
    assert removed.sql != idle.sql
    assert words_for(finding(Check.PIPELINE_SLOT, Outcome.OK, State.IDLE_TIMEOUT)).sql == ()


@pytest.mark.parametrize(
    ("version", "count"), [(170004, 2), (170005, 2), (170006, 0), (140017, 2), (140018, 2), (140019, 0), (180003, 0)]
)
def test_bugs_are_known_by_minor_version(version: int, count: int) -> None:
    """From the release that has a bug until the one that mends it."""
    assert len(bugs_of(version)) == count
    assert all(bug.since < bug.fixed for bug in BUGS)


def test_the_longest_diagnosis_fits_into_a_message() -> None:
    """The bound of the list follows from the channel's limit."""
    longest = finding(
        max(Check, key=lambda each: len(each.value)),
        Outcome.PROBLEM,
        max(State, key=lambda each: len(each.value)),
        table=f"{'s' * 63}.{'t' * 63}",
        pipeline="p" * 63,
        count=2**63 - 1,
        count_max=2**63 - 1,
        seconds=9_999_999_999.123456,
        version=2**63 - 1,
        size_bytes=2**63 - 1,
        code=max(Code, key=lambda each: len(each.value)),
    )
    diagnosis = v2.Diagnosis(id="0" * 32, ok=False, findings=[longest] * v2.FINDINGS_MAX)
    key = KeyPair.derive(Role.USER, bytes(32))
    report = v2.Report(node="n" * 63, key=key.public, sequence=2**62, message=diagnosis)
    assert len(sign(report, key, contract=2, purpose=Purpose.REPORT)) < PAYLOAD_BYTES_MAX - 1_000
    assert msgspec.json.decode(msgspec.json.encode(report), type=v2.Report) == report
