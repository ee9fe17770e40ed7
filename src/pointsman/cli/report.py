"""How a problem looks on standard error: what happened and its code, where, what to do, and the command to type next.

For people it is text; with `-o json` or `-o yaml` it is one object on a line of its own, so that a script reads it.
"""

import json
import sys
from collections.abc import Sequence
from contextvars import ContextVar

from rich.text import Text

from pointsman.cli.render import Format, console, visible
from pointsman.problems import ApiProblem, Problem

DETAILS_MAX = 20

form: ContextVar[Format] = ContextVar("form", default="table")
"""The form that the command line asked for, read from it before anything can go wrong in it."""


def asked_for(arguments: Sequence[str]) -> Format:
    """Return the form that `arguments` ask for with `-o`, also where the rest of them cannot be understood."""
    for option, value in zip(arguments, (*arguments[1:], ""), strict=True):
        given = value if option in ("-o", "--output") else option.removeprefix("--output=").removeprefix("-o")
        if option.startswith(("-o", "--output")) and given in ("json", "yaml"):
            return "json" if given == "json" else "yaml"
    return "table"


def print_problem(problem: Problem, *, prefix: str = "") -> None:
    """Print `problem` to standard error, in the form that was asked for. Nothing in it can steer the terminal."""
    if form.get() == "table":
        _print_text(problem, prefix)
    else:
        # JSON is YAML as well, and one line each stays readable when several documents are refused.
        sys.stderr.write(json.dumps({"error": _fields(problem, prefix)}) + "\n")


def _fields(problem: Problem, prefix: str) -> dict[str, object]:
    fields: dict[str, object] = {
        "code": problem.code,
        "message": prefix + problem.message,
        "details": list(problem.details),
        "hint": problem.hint,
        "next_command": problem.next_command,
        "exit_code": int(problem.exit_code),
    }
    if isinstance(problem, ApiProblem):
        fields |= {"status": problem.status, "request_id": problem.request_id}
    return fields


def _print_text(problem: Problem, prefix: str) -> None:
    text = Text()
    text.append("error: ", style="bold red")
    text.append(visible(prefix + problem.message))
    text.append(f" [{visible(problem.code)}]", style="dim")
    for detail in problem.details[:DETAILS_MAX]:
        text.append(f"\n  at: {visible(detail)}")
    if len(problem.details) > DETAILS_MAX:
        text.append(f"\n  … and {len(problem.details) - DETAILS_MAX} more")
    if problem.hint:
        text.append(f"\n  hint: {visible(problem.hint)}")
    if isinstance(problem, ApiProblem) and problem.request_id and problem.status >= 500:
        text.append(f"\n  request: {visible(str(problem.request_id))}")
    if problem.next_command:
        text.append("\n  next: ")
        text.append(visible(problem.next_command), style="bold")
    console(sys.stderr).print(text, soft_wrap=True)
