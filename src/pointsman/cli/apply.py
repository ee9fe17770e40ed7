"""`apply`, `plan` and `diff`: files against the control plane.

Everything is read and checked before the first write. Then, as kubectl does, each document is tried for itself: one that
is refused does not stop the others, and the command ends with an error. When the control plane does not answer, it stops.
"""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

import click
from rich.text import Text

from pointsman.cli import render
from pointsman.cli.manifests import Manifest, read
from pointsman.cli.output import output_option
from pointsman.cli.render import Format
from pointsman.cli.signing import sign_option, signed
from pointsman.cli.target import Target, target_options
from pointsman.client import Client, Resource
from pointsman.problems import ApiProblem, Exit, Problem

READ_ONLY = ("generation", "revision", "created_at", "updated_at", "status", "warnings", "effects", "id", "deleting")
_REFERENCES = {"unknown_connection": "connection", "unknown_data_plane": "data-plane"}
"""Refusals of a dry run that what stands before in the same files may cure, and what would."""
_STOPS = ("api_unreachable", "outcome_unknown", "unauthenticated", "bad_answer")

_files = click.option(
    "-f",
    "--filename",
    "paths",
    multiple=True,
    required=True,
    metavar="PATH",
    help="A YAML or JSON file, a folder of them, or - for standard input. May be given several times.",
)


@click.command("apply")
@_files
@click.option("--dry-run", is_flag=True, help="Check everything and change nothing.")
@sign_option
@target_options
@output_option
def apply(paths: Sequence[str], dry_run: bool, signing_key: str | None, target: Target, output: Format) -> int:
    """Make the control plane hold what the files say.

    Documents are applied in the order data planes, connections, pipelines, wherever they stand. One that is refused
    does not stop the others; the command then ends with an error.
    """
    manifests = read(paths)
    with target.client() as client:
        outcomes, problems = _each(client, signed(client, manifests, signing_key), dry_run=dry_run)
    suffix = " (dry run)" if dry_run else ""
    if outcomes or output != "table":
        render.print_one({"items": outcomes}, output, text=lambda _: _lines(outcomes, suffix))
    for outcome in outcomes:
        for warning in outcome.get("warnings") or ():
            render.say(f"warning: {outcome['kind']}/{outcome['name']}: {_words(warning)}", style="yellow")
    return _ended(problems, len(manifests))


def _each(
    client: Client, manifests: Sequence[Manifest], *, dry_run: bool
) -> tuple[list[dict[str, Any]], list[tuple[Manifest, Problem]]]:
    outcomes: list[dict[str, Any]] = []
    problems: list[tuple[Manifest, Problem]] = []
    for manifest in manifests:
        try:
            outcomes.append(_one(client, manifest, dry_run=dry_run))
        except Problem as problem:
            if dry_run and waits_for(problem, outcomes):
                outcomes.append(_unchecked(client, manifest))
                continue
            problems.append((manifest, problem))
            if problem.code in _STOPS:
                break
    return outcomes, problems


def _one(client: Client, manifest: Manifest, *, dry_run: bool) -> dict[str, Any]:
    before = current(client, manifest)
    written = client.put(manifest.kind.path, manifest.name, manifest.body, dry_run=dry_run)
    after = written.resource
    outcome = _outcome(before, after, dry_run=dry_run)
    return {
        "kind": manifest.kind.singular,
        "name": manifest.name,
        "outcome": outcome,
        "generation": after.get("generation"),
        "revision": after.get("revision"),
        **({"warnings": after["warnings"]} if after.get("warnings") else {}),
        **({"effects": after["effects"]} if after.get("effects") else {}),
    }


def waits_for(problem: Problem, outcomes: Sequence[Mapping[str, Any]]) -> bool:
    """Say whether a dry run was refused for something that the same files would make first."""
    return problem.code in _REFERENCES and any(
        outcome["outcome"] == "created" and outcome["kind"] == _REFERENCES[problem.code] for outcome in outcomes
    )


def _unchecked(client: Client, manifest: Manifest) -> dict[str, Any]:
    outcome = "created" if current(client, manifest) is None else "configured"
    words = "It is checked once what it names exists."
    return {"kind": manifest.kind.singular, "name": manifest.name, "outcome": outcome, "effects": [words]}


def _outcome(before: Mapping[str, Any] | None, after: Mapping[str, Any], *, dry_run: bool) -> str:
    if before is None:
        return "created"
    if dry_run:
        return "unchanged" if written_part(before) == written_part(after) else "configured"
    return "unchanged" if before.get("generation") == after.get("generation") else "configured"


def current(client: Client, manifest: Manifest) -> Resource | None:
    """Return what the control plane holds under the manifest's kind and name, or None."""
    try:
        return client.get(manifest.kind.path, manifest.name)
    except ApiProblem as problem:
        if problem.status == 404:
            return None
        raise


def written_part(resource: Mapping[str, Any]) -> dict[str, Any]:
    """Return what people write of a resource: without what only the control plane says."""
    return {key: value for key, value in resource.items() if key not in READ_ONLY}


def _lines(outcomes: Sequence[Mapping[str, Any]], suffix: str) -> Text:
    lines = Text()
    for number, outcome in enumerate(outcomes):
        word = str(outcome["outcome"])
        lines.append("\n" if number else "")
        lines.append(render.visible(f"{outcome['kind']}/{outcome['name']} "))
        lines.append(word, style="" if word == "unchanged" else "green")
        generation = outcome.get("generation")
        if word == "configured" and generation:
            lines.append(f" (generation {generation})", style="dim")
        lines.append(suffix)
    return lines


def _words(warning: Any) -> str:
    if isinstance(warning, Mapping):
        return str(warning.get("message") or warning.get("detail") or warning.get("code"))
    return str(warning)


def _ended(problems: Sequence[tuple[Manifest, Problem]], total: int) -> int:
    """Print what was refused and return the exit code: that of the problems if they share one, otherwise 1."""
    from pointsman.cli.report import print_problem

    if not problems:
        return Exit.OK
    for manifest, problem in problems:
        print_problem(problem, prefix=f"{manifest.kind.singular}/{manifest.name} ({manifest.origin}): ")
    if total > 1:
        render.say(f"{len(problems)} of {total} documents could not be applied.")
    codes = {problem.exit_code for _, problem in problems}
    return codes.pop() if len(codes) == 1 else Exit.ERROR


@click.command("plan")
@_files
@sign_option
@target_options
@output_option
def plan(paths: Sequence[str], signing_key: str | None, target: Target, output: Format) -> int:
    """Say in words what `apply` would do. Ends with 2 when there is something to do, with 0 when there is nothing."""
    manifests = read(paths)
    with target.client() as client:
        outcomes, problems = _each(client, signed(client, manifests, signing_key), dry_run=True)
    render.print_one({"items": outcomes}, output, text=lambda _: _plan_text(outcomes))
    if problems:
        return _ended(problems, len(manifests))
    return Exit.DIFFERENT if any(item["outcome"] != "unchanged" for item in outcomes) else Exit.OK


_SIGNS = {
    "created": ("+", "create", "green"),
    "configured": ("~", "change", "yellow"),
    "unchanged": (" ", "keep", "dim"),
}


def _plan_text(outcomes: Sequence[Mapping[str, Any]]) -> Text:
    lines = Text()
    for outcome in outcomes:
        sign, verb, style = _SIGNS[str(outcome["outcome"])]
        lines.append(f"{sign} {verb:<7}{render.visible(str(outcome['kind']))}/", style=style)
        lines.append(f"{render.visible(str(outcome['name']))}\n", style=style)
        for effect in (*(outcome.get("effects") or ()), *(outcome.get("warnings") or ())):
            lines.append(f"    {render.visible(_words(effect))}\n")
    counts = {word: sum(1 for o in outcomes if o["outcome"] == word) for word in _SIGNS}
    lines.append(
        f"{counts['created']} to create, {counts['configured']} to change, {counts['unchanged']} to keep. "
        "Nothing is deleted by apply."
    )
    return lines


@click.command("diff")
@_files
@sign_option
@target_options
@output_option
def diff(paths: Sequence[str], signing_key: str | None, target: Target, output: Format) -> int:
    """Show what `apply` would change, line by line. Ends with 0 when nothing differs and with 2 when something does."""
    items: list[dict[str, Any]] = []
    with target.client() as client:
        for manifest in signed(client, read(paths), signing_key):
            items.append(_difference(client, manifest, items))
    different = any(item["different"] for item in items)
    if different or output != "table":
        render.print_one({"items": items}, output, text=lambda _: _coloured(items))
    return Exit.DIFFERENT if different else Exit.OK


def _difference(client: Client, manifest: Manifest, before_it: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    before = current(client, manifest)
    try:
        after = client.put(manifest.kind.path, manifest.name, manifest.body, dry_run=True).resource
    except Problem as problem:
        if not waits_for(problem, before_it):
            raise
        after = manifest.body
    old, new = None if before is None else written_part(before), written_part(after)
    lines = _unified(manifest, old, new)
    return {
        "kind": manifest.kind.singular,
        "name": manifest.name,
        "outcome": "created" if before is None else "configured" if lines else "unchanged",
        "different": bool(lines),
        "before": old,
        "after": new,
        "diff": lines,
    }


def _unified(manifest: Manifest, before: Mapping[str, Any] | None, after: Mapping[str, Any]) -> list[str]:
    title = f"{manifest.kind.singular}/{manifest.name}"
    old = [] if before is None else render.as_yaml(dict(sorted(before.items()))).splitlines()
    new = render.as_yaml(dict(sorted(after.items()))).splitlines()
    return list(difflib.unified_diff(old, new, f"{title} now", f"{title} from {manifest.origin}", lineterm="", n=3))


def _coloured(items: Sequence[Mapping[str, Any]]) -> Text:
    styles = {"+": "green", "-": "red", "@": "cyan"}
    text = Text()
    for line in (line for item in items for line in item["diff"]):
        text.append(("\n" if text else "") + render.visible(line), style=styles.get(line[:1], ""))
    return text
