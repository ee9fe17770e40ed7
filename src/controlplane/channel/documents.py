"""What one data plane must hold, as documents: decided without I/O from the tenant's resources.

The same resources, epoch and trust list always give the same bytes, so a rebuild or a new signing key changes no digest.
Called by the publisher for each data plane that an event touches.
"""

from collections.abc import Iterable, Mapping

import msgspec
from msgspec import UNSET, Struct, UnsetType, structs

from contracts import CONTRACTS_SPOKEN, v1, v2
from contracts.backfilling import Backfill
from contracts.convert import Lost, to_v1
from contracts.delivery import OnSchemaChange
from contracts.envelope import digest, kind_of
from contracts.reconciling import Reconcile

INDEX_NAME = "index"

_ENCODER = msgspec.json.Encoder(order="deterministic")


class ConnectionState(Struct, frozen=True, kw_only=True):
    """A connection as the log has made it. `config` is None while it does not exist."""

    generation: int = 0
    config: v2.SystemConfig | None = None
    secrets: dict[str, str] = {}
    signature: v2.CustomerSignature | UnsetType = UNSET


class PipelineState(Struct, frozen=True, kw_only=True):
    """A pipeline as the log has made it. `source` is None while it does not exist."""

    generation: int = 0
    data_plane: str = ""
    source: v2.PipelineSource | None = None
    sink: v2.PipelineSink | None = None
    buffer: v2.BufferSettings = v2.BufferSettings()
    transforms: list[v2.Transform] = []
    signature: v2.CustomerSignature | UnsetType = UNSET
    run: v2.RunState = v2.RunState.RUNNING
    restarts: int = 0
    resyncs: dict[str, int] = {}
    resumes: int = 0
    """How often it was resumed: what a pipeline needs that stops at a changed shape."""
    reconciles: dict[str, Reconcile] = {}
    backfills: dict[str, Backfill] = {}
    snapshots_paused: list[str] = []

    @property
    def connections(self) -> set[str]:
        """The connections that it reads or writes through; none while it does not exist."""
        return {self.source.connection, self.sink.connection} if self.source and self.sink else set()


class Body(Struct, frozen=True, kw_only=True):
    """A document in one contract version, encoded and not signed."""

    contract: int
    kind: v2.Kind
    name: str
    generation: int
    digest: str
    body: bytes


class Address(Struct, frozen=True, kw_only=True):
    """For which data plane documents are made, in which epoch, and the newest event that touched it."""

    tenant: str
    data_plane: str
    epoch: int
    revision: int


def build(
    address: Address,
    connections: Mapping[str, ConnectionState],
    pipelines: Mapping[str, PipelineState],
    trust: v2.TrustDocument,
) -> list[Body]:
    """Return every document of the data plane in every contract version, each version's index last.

    A pipeline that an older version cannot express is stood in for there by `requires`.
    """
    documents: list[v2.AnyDocument] = []
    used: set[str] = set()
    for name, pipeline in sorted(pipelines.items()):
        if pipeline.data_plane == address.data_plane and pipeline.source and pipeline.sink:
            documents.append(_pipeline(address, name, pipeline))
            used |= pipeline.connections
    for name in sorted(used & connections.keys()):
        connection = connections[name]
        if connection.config is not None:
            documents.append(_connection(address, name, connection, connection.config))
    documents.sort(key=lambda each: isinstance(each, v2.PipelineDocument))  # connections before what needs them
    bodies: list[Body] = []
    for contract in CONTRACTS_SPOKEN:
        made = [_body(contract, trust), *(_body(contract, _as(contract, document)) for document in documents)]
        bodies += [*made, _index(address, contract, made)]
    return bodies


def _pipeline(address: Address, name: str, state: PipelineState) -> v2.PipelineDocument:
    if state.source is None or state.sink is None:
        raise ValueError("a pipeline that does not exist has no document")
    return v2.PipelineDocument(
        tenant=address.tenant,
        data_plane=address.data_plane,
        name=name,
        epoch=address.epoch,
        generation=state.generation,
        run=state.run,
        source=state.source,
        sink=_sink(state.sink, state.resumes),
        buffer=state.buffer,
        transforms=state.transforms,
        restarts=state.restarts,
        resyncs=state.resyncs,
        reconciles=state.reconciles or UNSET,
        backfills=state.backfills or UNSET,
        snapshots_paused=state.snapshots_paused or UNSET,
        signature=state.signature,
    )


def _sink(sink: v2.PipelineSink, resumes: int) -> v2.PipelineSink:
    """Return the sink with the counter of resumes, which only a pipeline that may stop at a changed shape needs."""
    pauses = sink.on_schema_change is OnSchemaChange.PAUSE
    return structs.replace(sink, resumes=resumes) if pauses else sink


def _connection(address: Address, name: str, state: ConnectionState, config: v2.SystemConfig) -> v2.ConnectionDocument:
    return v2.ConnectionDocument(
        tenant=address.tenant,
        data_plane=address.data_plane,
        name=name,
        epoch=address.epoch,
        generation=state.generation,
        config=config,
        secrets=state.secrets,
        signature=state.signature,
    )


def _as(contract: int, document: v2.AnyDocument) -> v1.AnyDocument | v2.AnyDocument:
    if contract == v2.CONTRACT:
        return document
    older = to_v1(document)
    if not isinstance(older, Lost):
        return older
    return v2.RequiresDocument(
        tenant=document.tenant,
        data_plane=document.data_plane,
        name=document.name,
        epoch=document.epoch,
        generation=document.generation,
        of=v2.Kind.PIPELINE,
        contract=v2.CONTRACT,
    )


def _index(address: Address, contract: int, bodies: Iterable[Body]) -> Body:
    entries = [
        v2.IndexEntry(kind=each.kind, name=each.name, generation=each.generation, digest=each.digest) for each in bodies
    ]
    index = v2.IndexDocument(
        tenant=address.tenant,
        data_plane=address.data_plane,
        name=INDEX_NAME,
        epoch=address.epoch,
        generation=max(address.revision, 1),
        revision=address.revision,
        entries=sorted(entries, key=lambda entry: (entry.kind.value, entry.name)),
    )
    return _body(contract, index)


def _body(contract: int, document: v1.AnyDocument | v2.AnyDocument) -> Body:
    body = _ENCODER.encode(document)
    return Body(
        contract=contract,
        kind=kind_of(document),
        name=document.name,
        generation=document.generation,
        digest=digest(body),
        body=body,
    )
