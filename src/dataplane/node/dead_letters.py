"""A pipeline's dead letters as its node's own folder leads to them: no control plane and no leaf is asked.

In flow the folder that `pointsman node join` made and a pipeline's name; out flows a `LetterDesk` on the pipeline's
destination, with the connection from the documents that the node holds and the secret from its secrets folder. Called by
`pointsman node dlq`, which runs as whoever may read that folder.
"""

from pathlib import Path

from contracts import convert
from contracts.names import resource_id
from contracts.v2 import PipelineDocument
from dataplane import config, secrets
from dataplane.link.store import DocumentStore
from dataplane.node.reconciler import PIPELINE_KIND
from dataplane.sinks.postgres.letter_desk import LetterDesk


class UnknownHere(Exception):
    """The node holds no pipeline of that name: `known` are those that it holds."""

    def __init__(self, pipeline: str, known: list[str]) -> None:
        super().__init__(f"this node holds no pipeline {pipeline}")
        self.known = known


def desk(folder: Path, pipeline: str) -> LetterDesk:
    """Return the desk for a pipeline's letters; nothing is connected yet.

    Raises:
        FileNotFoundError: nobody has joined from this folder.
        UnknownHere: the node does not hold the pipeline, or not its destination's connection.
        Failure: the destination's secret is missing or refused.
    """
    node = config.read(folder)
    store = DocumentStore(folder / "documents", reads_only=True)
    held = store.pipelines()
    if pipeline not in held:
        raise UnknownHere(pipeline, sorted(held))
    document = convert.to_v2(held[pipeline].document)
    assert isinstance(document, PipelineDocument)
    connection = store.connections().get(document.sink.connection)
    if connection is None:
        raise UnknownHere(pipeline, sorted(held))
    password = secrets.password(connection.secrets, node.secrets_folder)
    return LetterDesk(connection, password, pipeline_id=str(resource_id(node.tenant, PIPELINE_KIND, pipeline)))
