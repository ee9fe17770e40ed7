"""How a problem looks on standard error: what happened and its code, where, what to do, and the command to type next."""

from rich.text import Text

from pointsman.cli.render import console, visible
from pointsman.problems import ApiProblem, Problem

DETAILS_MAX = 20


def print_problem(problem: Problem, *, prefix: str = "") -> None:
    """Print `problem` to standard error. Nothing in it can steer the terminal."""
    import sys

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
