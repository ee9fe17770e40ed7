"""From a finding to words: what it means, what to do, and the SQL that mends it.

In flow a node's finding (closed words, names, numbers) and the names of the connection that it is about, which the
control plane knows; out flows `Advice`. Pure. Called by the API's controller of `doctor`.

Names are quoted always, so that none of them can be read as anything else than a name.
"""

from typing import NamedTuple

from contracts.checks import Outcome, bugs_of
from contracts.codes import explain
from contracts.meanings import MEANINGS, UNSEEN, Words
from contracts.v2 import Finding

MEGABYTE = 1 << 20
PLACES = (
    "table",
    "pipeline",
    "state",
    "count",
    "count_max",
    "more",
    "room",
    "size",
    "duration",
    "version",
    "bugs",
    "quoted_table",
    "literal_table",
    "quoted_schema",
    "quoted_user",
    "quoted_database",
)
"""What templates may name: the finding's fields for people, and names quoted for SQL."""


class Advice(NamedTuple):
    """A finding in words. `sql` mends it, one statement each, to be run by an administrator of the server."""

    summary: str
    hint: str
    sql: tuple[str, ...]


def advise(finding: Finding, *, user: str, database: str) -> Advice:
    """Return what `finding` means for a connection of `user` to `database`."""
    if finding.code is not None:
        explained = explain(finding.code)
        return Advice(explained.summary, explained.hint, ())
    words = words_for(finding)
    places = _places(finding, user, database)
    return Advice(
        words.summary.format_map(places).strip(),
        words.hint.format_map(places),
        tuple(each.format_map(places) for each in words.sql),
    )


def words_for(finding: Finding) -> Words:
    """Return the templates for a finding. An outcome that this version knows no words for is told by its title."""
    meaning = MEANINGS[finding.check]
    if finding.state is not None and finding.outcome in (Outcome.WARNING, Outcome.PROBLEM):
        by_state = meaning.states.get(finding.state)
        if by_state is not None:
            return by_state
    if finding.outcome in meaning.outcomes:
        return meaning.outcomes[finding.outcome]
    return UNSEEN if finding.outcome is Outcome.UNKNOWN else Words(meaning.title)


def quoted(name: str) -> str:
    """Return an SQL identifier for `name`."""
    return '"' + name.replace('"', '""') + '"'


def version_text(version: int) -> str:
    """Return a server's version as people write it: 18.3 for 180003."""
    return f"{version // 10_000}.{version % 10_000}"


def _places(finding: Finding, user: str, database: str) -> dict[str, str]:
    schema, _, name = (finding.table or "schema.table").partition(".")
    table = f"{quoted(schema)}.{quoted(name)}"
    version = finding.version or 0
    bugs = dict.fromkeys(bug.summary for bug in bugs_of(version))
    return {
        "table": finding.table or "a table",
        "pipeline": finding.pipeline or "NAME",
        "state": finding.state.value if finding.state is not None else "another",
        "count": f"{finding.count or 0:,}",
        "count_max": f"{finding.count_max or 0:,}",
        "more": str((finding.count_max or 0) + 10),
        "room": str(2 * (finding.size_bytes or 0) // MEGABYTE + 1024),
        "size": size_text(finding.size_bytes or 0),
        "duration": duration_text(finding.seconds),
        "version": version_text(version),
        "bugs": " ".join(bugs),
        "quoted_table": table,
        "literal_table": "'" + table.replace("'", "''") + "'",
        "quoted_schema": quoted(schema),
        "quoted_user": quoted(user),
        "quoted_database": quoted(database),
    }


def size_text(size_bytes: int) -> str:
    """Return a number of bytes as people say it."""
    for unit, length in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size_bytes >= length:
            return f"{size_bytes / length:.1f} {unit}"
    return f"{size_bytes} B"


def duration_text(seconds: float | None) -> str:
    """Return a duration as people say it; `an unknown time` for none."""
    if seconds is None:
        return "an unknown time"
    for unit, length in (("days", 86_400), ("hours", 3_600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"
