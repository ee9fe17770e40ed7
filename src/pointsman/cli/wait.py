"""`wait`: until a resource is as somebody wants it, bounded by a time limit."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import click

from pointsman.cli import kinds, render
from pointsman.cli.kinds import Kind
from pointsman.cli.output import kind_argument, name_argument, output_option
from pointsman.cli.render import Format, field
from pointsman.cli.target import Target, target_options
from pointsman.client import TIMEOUT_SECONDS, Client, Resource
from pointsman.problems import ApiProblem, Exit, Problem

POLL_SECONDS = 0.3
TIMEOUT_SECONDS_MAX = 86_400.0

Condition = Callable[[Resource | None], bool]


def condition(kind: Kind, wanted: str) -> Condition:
    """Return what `--for` asks: ready, deleted, exists, reconciled, phase=PHASE, condition=TYPE or generation=NUMBER.

    Raises:
        click.BadParameter: it is none of these.
    """
    name, _, value = wanted.partition("=")
    match name.lower(), value.lower():
        case ("ready", "") | ("condition", "ready"):
            return lambda found: is_ready(kind, found)
        case (("deleted" | "delete" | "removed"), ""):
            return lambda found: found is None
        case (("exists" | "create" | "created"), ""):
            return lambda found: found is not None
        case ("paused" | "streaming" | "degraded" | "gap" | "retrying" | "snapshotting" | "pending") as phase, "":
            return lambda found: _settled(found) and field(found or {}, "status.phase") == phase
        case "reconciled", "":
            return is_reconciled
        case "phase", phase if phase:
            return lambda found: _settled(found) and field(found or {}, "status.phase") == phase
        case "condition", type_ if type_:
            return lambda found: _condition_true(found, type_)
        case "generation", number if number.isdecimal():
            return lambda found: (field(found or {}, "status.observed_generation") or 0) >= int(number)
    raise click.BadParameter(
        f"{wanted!r}; use ready, deleted, exists, reconciled, phase=PHASE, condition=TYPE or generation=NUMBER.",
        param_hint="--for",
    )


def is_ready(kind: Kind, found: Resource | None) -> bool:
    """Say whether a resource is ready. A kind that has no such state is ready once it exists."""
    if found is None:
        return False
    ready = field(found, "status.ready")
    return bool(ready) if ready is not None else kind not in (kinds.PIPELINE, kinds.NODE)


def is_reconciled(found: Resource | None) -> bool:
    """Say whether every comparison that was asked for has come to an end, whatever it found."""
    tables = field(found or {}, "status.reconciles") or ()
    return bool(tables) and all(table.get("state") in ("done", "failed") for table in tables)


def _settled(found: Mapping[str, Any] | None) -> bool:
    """Say whether the node's report is about the newest generation, not about an older one."""
    return found is not None and field(found, "status.observed_generation") == found.get("generation")


def _condition_true(found: Mapping[str, Any] | None, wanted: str) -> bool:
    conditions = field(found or {}, "status.conditions") or ()
    return any(
        str(c.get("type", "")).lower() == wanted and str(c.get("status", "")).lower() == "true" for c in conditions
    )


@click.command("wait")
@kind_argument(kinds.PIPELINE, kinds.CONNECTION, kinds.DATA_PLANE, kinds.NODE)
@name_argument()
@click.option(
    "--for",
    "wanted",
    default="ready",
    show_default=True,
    help="ready, deleted, exists, phase=PHASE, condition=TYPE or generation=NUMBER.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(0, TIMEOUT_SECONDS_MAX),
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait.",
)
@target_options
@output_option
def wait(kind: Kind, name: str, wanted: str, timeout: float, target: Target, output: Format) -> None:
    """Wait until a resource is as wanted. Ends with 6 when the time is over; what was asked for goes on meanwhile."""
    holds = condition(kind, wanted)
    # One try at a time, so that an API that hangs does not stretch the limit: `until` looks again anyway.
    patience = min(TIMEOUT_SECONDS, max(1.0, timeout))
    with target.client(timeout_seconds=patience, attempts_max=1) as client:
        found = until(client, kind, name, holds, wanted=wanted, seconds_max=timeout)
    item = found or {"kind": kind.name, "name": name}
    words = f"{kind.singular}/{render.visible(name)} {render.visible(wanted)}"
    render.print_one(item, output, text=lambda _: words)


def until(
    client: Client, kind: Kind, name: str, holds: Condition, *, wanted: str, seconds_max: float
) -> Resource | None:
    """Look until `holds`; return what was found then.

    Raises:
        ApiProblem: not_found, when the resource has to exist for it.
        Problem: wait_timeout, with the last state that was seen.
    """
    end = time.monotonic() + seconds_max
    may_be_absent = holds(None) or wanted.lower().startswith(("exists", "create"))
    found: Resource | None = None
    silent = False
    while True:
        try:
            found, silent = client.get(kind.path, name), False
        except ApiProblem as problem:
            if problem.status == 404 and not may_be_absent:
                raise
            if problem.status not in (404, 429, 503):
                raise
            found = None if problem.status == 404 else found
        except Problem as problem:
            if problem.code != "api_unreachable":
                raise
            silent = True
        if not silent and holds(found):
            return found
        left = end - time.monotonic()
        if left <= 0:
            raise _timeout(kind, name, wanted, seconds_max, found, silent=silent)
        time.sleep(min(POLL_SECONDS, left))


def _timeout(kind: Kind, name: str, wanted: str, seconds: float, found: Resource | None, *, silent: bool) -> Problem:
    if silent:
        state = "the control plane does not answer"
    elif found is None:
        state = "it does not exist"
    else:
        phase = str(field(found, "status.phase") or "no node has reported")
        reason = next(
            (
                str(c.get("reason"))
                for c in field(found, "status.conditions") or ()
                if str(c.get("type")).lower() == "ready" and str(c.get("status")).lower() != "true"
            ),
            None,
        )
        state = ", ".join(dict.fromkeys(part for part in (phase, reason, field(found, "status.code")) if part))
    hint = field(found or {}, "status.hint")
    return Problem(
        "wait_timeout",
        f"{kind.singular} {name!r} is not {wanted} after {seconds:g} s: {state}.",
        hint=hint or "Whatever was asked for goes on.",
        next_command=f"pointsman describe {kind.singular} {name}",
        exit_code=Exit.UNKNOWN,
    )
