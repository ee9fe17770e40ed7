"""`node policy …`: what this node may do, written by the customer and by nobody else. No API is asked.

`check` answers beforehand, from files or from what the node holds, what the node itself would answer: the same code judges.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec
from rich.text import Text

from pointsman.cli import kinds, render
from pointsman.cli.manifests import read, to_connection, to_pipeline
from pointsman.cli.output import output_option
from pointsman.cli.render import Column, Format
from pointsman.problems import CODES, Exit, Problem

if TYPE_CHECKING:
    from contracts.v2 import ConnectionDocument, PipelineDocument
    from dataplane.policy import Policy

_folder = click.option("--folder", required=True, metavar="FOLDER", help="The node's folder.")


@click.group("policy")
def policy() -> None:
    """Say what this node may do, whatever a control plane asks."""


@policy.command("init")
@_folder
@click.option(
    "--profile",
    type=click.Choice(("production", "local")),
    default="production",
    show_default=True,
    help="production: nothing is allowed yet. local: this machine only, for a trial.",
)
@output_option
def policy_init(folder: str, profile: str, output: Format) -> None:
    """Write a first policy into the node's folder. One that is there stays."""
    from dataplane.policy import FILE_NAME, PROFILES

    path = Path(folder) / FILE_NAME
    if path.exists():
        raise Problem(
            "policy_exists",
            f"{path} exists already.",
            hint=CODES["policy_exists"][1],
            exit_code=Exit.CONFLICT,
        )
    path.write_text(PROFILES[profile])
    path.chmod(0o600)
    render.print_one({"file": str(path), "profile": profile}, output, text=lambda _: Text(f"{path}: {profile}"))


@policy.command("show")
@_folder
@output_option
def policy_show(folder: str, output: Format) -> None:
    """Print the policy as the node understands it, or what is wrong with it."""
    from dataplane.policy import digest_of

    found = {**msgspec.to_builtins(_policy(folder)), "sha256": digest_of(Path(folder))}
    render.print_one(found, output, text=lambda item: Text(render.as_yaml(item).rstrip()))


@policy.command("check")
@_folder
@click.option(
    "-f", "--filename", "paths", multiple=True, metavar="FILE", help="Manifests to judge; may be given again."
)
@output_option
def policy_check(folder: str, paths: Sequence[str], output: Format) -> int:
    """Say what the policy holds against pipelines, before they are applied. Without -f: those that the node holds.

    Connections that no file gives are taken from the node. Columns that a table has and no transform names are judged
    when the node reads the table. Files are not signed yet; of what the node holds the customer's signatures are judged too.
    Ends with 2 when something would be refused.
    """
    from dataplane.node.signatures import Signatures
    from dataplane.policy import judge

    rules = _policy(folder)
    pipelines, connections = _documents(folder, paths)
    signatures = None if paths else Signatures(Path(folder) / "state")
    items: list[dict[str, Any]] = []
    for pipeline in pipelines:
        ends = [connections.get(name) for name in (pipeline.source.connection, pipeline.sink.connection)]
        source, sink = ends
        if source is None or sink is None:
            missing = pipeline.source.connection if source is None else pipeline.sink.connection
            raise Problem(
                "unknown_connection",
                f"Pipeline {pipeline.name} names connection {missing}, which neither a file nor the node has.",
                hint="Give its manifest with -f as well.",
            )
        held_against = judge(rules, pipeline, source, sink)
        if signatures is not None:
            held_against += signatures.judge(rules.documents, (pipeline, source, sink))
        items.extend({"pipeline": pipeline.name, **msgspec.to_builtins(each)} for each in held_against)
    columns = (Column("PIPELINE", "pipeline"), Column("CODE", "code"), Column("WHY", "what"))
    render.print_items(items, columns, output, empty=f"Nothing is held against {len(pipelines)} pipelines.")
    return Exit.DIFFERENT if items else Exit.OK


def _policy(folder: str) -> "Policy":
    from dataplane.policy import PolicyInvalid, load

    try:
        return load(Path(folder))
    except PolicyInvalid as invalid:
        raise Problem("policy_invalid", f"{invalid}.", hint=CODES["policy_invalid"][1]) from None


def _documents(folder: str, paths: Sequence[str]) -> "tuple[list[PipelineDocument], dict[str, ConnectionDocument]]":
    from contracts.convert import to_v2
    from contracts.v2 import PipelineDocument
    from dataplane.link.enrolment import DOCUMENTS
    from dataplane.link.store import DocumentStore

    held = Path(folder) / DOCUMENTS
    store = DocumentStore(held, reads_only=True) if held.exists() else None
    connections = store.connections() if store is not None else {}
    if not paths:
        documents = (to_v2(each.document) for each in (store.pipelines() if store is not None else {}).values())
        return [each for each in documents if isinstance(each, PipelineDocument)], connections
    manifests = read(paths)
    given = {each.name: to_connection(each) for each in manifests if each.kind is kinds.CONNECTION}
    return [to_pipeline(each) for each in manifests if each.kind is kinds.PIPELINE], connections | given
