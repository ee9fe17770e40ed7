"""Writes docs/reference/checks.md from the doctor's checks themselves, so that the page is never behind them.

`python -m pointsman.checks_page` prints the page; `just docs` writes it; a test compares.
"""

from collections.abc import Iterable

from contracts.checks import BUGS, Check, Outcome
from contracts.meanings import MEANINGS, Meaning, Words

_HEAD = """\
# What the doctor looks at

Made from the code by `just docs`; do not edit. `pointsman doctor connection NAME` and
`POST /v1/connections/NAME/doctor` answer with these checks. Scripts may rely on checks, outcomes and states. Words may change.

The node reads catalogs and statistics, and of a destination's tables whether there is a row, with statements of at most two
seconds each. What crosses to the control plane is
the check, the outcome, names of tables and pipelines, and numbers: no text of the server, and no name of anybody else's
slot. The words and the SQL are made on the control plane.

| outcome | meaning |
| --- | --- |
| `ok` | It is well. |
| `warning` | It works, and may not for ever. |
| `problem` | A pipeline cannot run, or has lost its place. `doctor` ends with 1. |
| `unknown` | It could not be seen: a right is missing, the server answered too slowly, or the time was over. |
"""

_SIDES = {"both": "Any connection", "source": "A source", "destination": "A destination"}
_PLACES = {
    "table": "TABLE",
    "pipeline": "NAME",
    "quoted_table": "TABLE",
    "literal_table": "'TABLE'",
    "quoted_schema": "SCHEMA",
    "quoted_user": "USER",
    "quoted_database": "DATABASE",
    "count": "N",
    "count_max": "MAX",
    "more": "MORE",
    "room": "MORE",
    "size": "SIZE",
    "duration": "TIME",
    "version": "VERSION",
    "state": "STATE",
    "bugs": "",
}


def page() -> str:
    """Return the whole page as Markdown."""
    parts = [_HEAD]
    for side, title in _SIDES.items():
        checks = [check for check in Check if MEANINGS[check].side == side]
        parts.append(f"\n## {title}\n" + "".join(_section(check, MEANINGS[check]) for check in checks))
    parts.append(_bugs())
    return "".join(parts)


def _section(check: Check, meaning: Meaning) -> str:
    rows = [_row(outcome.value, words) for outcome, words in meaning.outcomes.items() if outcome is not Outcome.OK] + [
        _row(f"{state.value}", words) for state, words in meaning.states.items()
    ]
    table = "| outcome or state | meaning | what to do |\n| --- | --- | --- |\n" + "".join(rows)
    return f"\n### `{check.value}`\n\n{meaning.title}\n\n{table}"


def _row(name: str, words: Words) -> str:
    parts: Iterable[str] = (words.hint, *(f"`{statement};`" for statement in words.sql))
    what = " ".join(part for part in parts if part)
    cells = [f"`{name}`", *(text.format_map(_PLACES).strip().replace("|", "\\|") for text in (words.summary, what))]
    return "| " + " | ".join(cells) + " |\n"


def _bugs() -> str:
    rows = "".join(
        f"| {bug.major}.{bug.since} to {bug.major}.{bug.fixed - 1} | {bug.major}.{bug.fixed} | {bug.summary} |\n"
        for bug in BUGS
    )
    return f"\n## Bugs of minor versions\n\n| versions | fixed in | what happens |\n| --- | --- | --- |\n{rows}"


if __name__ == "__main__":
    import sys

    sys.stdout.write(page())
