"""Writes docs/reference/errors.md from the codes themselves, so that the page is never behind them.

`python -m pointsman.errors_page` prints the page; `just docs` writes it; a test compares.
"""

from collections.abc import Sequence

from contracts.codes import EXPLANATIONS, Code, Family
from controlplane import refusals
from pointsman import problems
from pointsman.problems import Exit

_EXITS: dict[Exit, str] = {
    Exit.OK: "done",
    Exit.ERROR: "an error",
    Exit.DIFFERENT: "`diff` and `plan`: something differs",
    Exit.NOT_FOUND: "what was named does not exist",
    Exit.NOT_ALLOWED: "no valid key, or its role does not allow it",
    Exit.CONFLICT: "somebody changed it first, or it is in use",
    Exit.UNKNOWN: "a time limit passed before the outcome was known: look, then try again",
    Exit.USAGE: "a mistake in the command line",
    Exit.INTERRUPTED: "interrupted with Ctrl-C; what was asked for goes on",
}

_HEAD = """\
# Errors and exit codes

Made from the code by `just docs`; do not edit. Scripts may rely on codes and exit codes. Words may change.

A code is never renamed or used for something else.
"""


def page() -> str:
    """Return the whole page as Markdown."""
    parts = [_HEAD, _exits(), _nodes(), _api(), _command_line()]
    return "\n".join(parts)


def _exits() -> str:
    rows = [(str(int(code)), words) for code, words in _EXITS.items()]
    return "## Exit codes of the command line\n\n" + _table(("code", "meaning"), rows)


def _nodes() -> str:
    text = (
        "## What nodes report\n\nAn error's text can quote a row, so it stays in the node's log; only the code crosses."
        " `retry`: the node tries again by itself, with growing pauses. `stop`: the pipeline waits for a person;"
        " nothing is skipped and nothing is confirmed.\n\n"
    )
    rows = []
    for code in Code:
        explained = EXPLANATIONS[code]
        answer = "retry" if explained.family is Family.RETRY else "stop"
        rows.append((f"`{code.value}`", answer, explained.summary, explained.hint))
    return text + _table(("code", "answer", "meaning", "what to do"), rows)


def _api() -> str:
    text = (
        "## What the API answers\n\nErrors are `application/problem+json` (RFC 9457) with `code`, `hint`, `errors`"
        " (JSON pointers) and `request_id`. A refusal changes nothing.\n\n"
    )
    rows = [
        (f"`{code}`", str(meaning.status), f"{meaning.title}.", meaning.hint)
        for code, meaning in sorted(refusals.CODES.items())
    ]
    return text + _table(("code", "status", "meaning", "what to do"), rows)


def _command_line() -> str:
    text = "## What the command line says itself\n\n"
    rows = [(f"`{code}`", meaning, hint) for code, (meaning, hint) in sorted(problems.CODES.items())]
    return text + _table(("code", "meaning", "what to do"), rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines: list[Sequence[str]] = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


if __name__ == "__main__":
    import sys

    sys.stdout.write(page())
