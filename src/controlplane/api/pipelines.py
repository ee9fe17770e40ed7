"""/v1/pipelines: which tables flow from which connection to which, and how that stands."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from litestar import Controller, delete, get, post, put
from litestar.params import FromPath

from controlplane import manifests
from controlplane.access.roles import Permission
from controlplane.api import operations as op
from controlplane.api.answers import Answer, events_of, one, options_of, page, written
from controlplane.api.authentication import authorise
from controlplane.api.operations import Operation, declared
from controlplane.api.requests import Ask, services_of
from controlplane.api.schemas import Events, PipelineResource, Pipelines
from controlplane.commands import WriteOptions, pipeline_copies, pipelines
from controlplane.commands.write_path import Decide
from controlplane.domain import Pipeline
from controlplane.manifests import PipelineManifest, ReconcileRequest, ResyncRequest, TablesRequest
from controlplane.readmodels import queries
from controlplane.readmodels.comparing import hindrance_of
from controlplane.readmodels.pausing import cost_of
from controlplane.row_security import Scope

_ACT_REFUSALS = ("not_found", "being_removed", "stale_generation", "idempotency_key_reused")
_TABLES_REFUSALS = (
    *_ACT_REFUSALS,
    "malformed_json",
    "invalid_document",
    "unknown_field",
    "unknown_table",
    "too_large_for_the_channel",
)
"""Of an act on tables that the body may name."""


class PipelineController(Controller):
    """Pipelines."""

    path = "/v1/pipelines"

    @get(
        "/",
        **declared(
            Operation(
                id="ListPipelines",
                summary="List pipelines",
                permission=Permission.READ,
                answers={200: Pipelines},
                parameters=op.PAGE,
            )
        ),
    )
    async def list_pipelines(self, request: Ask) -> Answer:
        """List pipelines."""
        return await page(request, Pipeline)

    @get(
        "/{name:str}",
        **declared(
            Operation(
                id="GetPipeline",
                summary="Read a pipeline and how it stands",
                description="The status is what nodes acknowledged. `ready` is true only if a node that was heard of within"
                " 45 s streams the newest generation.",
                permission=Permission.READ,
                answers={200: PipelineResource},
                parameters=(op.AT_LEAST,),
                refusals=("not_found",),
            )
        ),
    )
    async def get_pipeline(self, request: Ask, name: FromPath[str]) -> Answer:
        """Read a pipeline."""
        return await one(request, Pipeline, name)

    @put(
        "/{name:str}",
        **declared(
            Operation(
                id="ApplyPipeline",
                summary="Create or change a pipeline",
                description="The document is whole: what it leaves out gets its default. An unchanged document keeps its"
                " generation. A new pipeline runs at once; a paused one stays paused. `effects` says in words what the change"
                " does to data.",
                permission=Permission.WRITE,
                body=PipelineManifest,
                answers={200: PipelineResource, 201: PipelineResource},
                parameters=op.PUT,
                refusals=(
                    *op.DOCUMENT_REFUSALS,
                    "unknown_connection",
                    "unfit_connection",
                    "unknown_data_plane",
                    "unknown_type",
                    "secret_in_plain_text",
                    "signature_invalid",
                    "same_table_cycle",
                    "table_taken",
                    "immutable_field",
                    "being_removed",
                    "too_many_resources",
                    "too_large_for_the_channel",
                ),
            )
        ),
    )
    async def apply_pipeline(self, request: Ask, name: FromPath[str]) -> Answer:
        """Create or change a pipeline."""
        principal = await authorise(request)
        options, _, body = await options_of(request)
        spec = manifests.parse_pipeline(name, body)
        return await written(request, principal, pipelines.configure(name, spec, options), options)

    @delete(
        "/{name:str}",
        status_code=200,
        **declared(
            Operation(
                id="DeletePipeline",
                summary="Delete a pipeline",
                description="Without cleanup it is gone at once, and the source keeps the replication slot and its log. With"
                " cleanup the answer is 202: the node drops slot, publication and checkpoint, then the pipeline goes.",
                permission=Permission.WRITE,
                answers={200: PipelineResource, 202: PipelineResource},
                parameters=(op.CLEANUP, *op.CONDITIONAL_WRITE),
                refusals=("not_found", "stale_generation"),
            )
        ),
    )
    async def delete_pipeline(self, request: Ask, name: FromPath[str]) -> Answer:
        """Delete a pipeline."""
        principal = await authorise(request)
        options, parameters, _ = await options_of(request, "cleanup")
        manifests.check_name(name)
        decide = pipelines.delete(name, options, cleanup=parameters.flag("cleanup"))
        return await written(request, principal, decide, options)

    @post(
        "/{name:str}/pause",
        status_code=200,
        **declared(
            Operation(
                id="PausePipeline",
                summary="Pause a pipeline",
                description="It stops at a transaction's end and keeps its place; the source keeps its log meanwhile."
                " The warnings say how much it keeps now, how fast that grows, and when its limit is reached. With `tables`"
                " only the copying of these tables stops, after the chunk on its way: the stream goes on for all"
                " tables, and nothing of the source's log is kept for it.",
                permission=Permission.OPERATE,
                body=TablesRequest,
                body_required=False,
                answers={200: PipelineResource},
                parameters=op.CONDITIONAL_WRITE,
                refusals=_TABLES_REFUSALS,
            )
        ),
    )
    async def pause_pipeline(self, request: Ask, name: FromPath[str]) -> Answer:
        """Pause a pipeline, or the copying of some of its tables."""
        return await _act_on_tables(request, name, pipelines.pause, pipeline_copies.pause_copying, warn=cost_of)

    @post(
        "/{name:str}/resume",
        status_code=200,
        **declared(
            Operation(
                id="ResumePipeline",
                summary="Resume a paused pipeline",
                description="With `tables` the copying of these tables goes on where it was.",
                permission=Permission.OPERATE,
                body=TablesRequest,
                body_required=False,
                answers={200: PipelineResource},
                parameters=op.CONDITIONAL_WRITE,
                refusals=_TABLES_REFUSALS,
            )
        ),
    )
    async def resume_pipeline(self, request: Ask, name: FromPath[str]) -> Answer:
        """Resume a pipeline, or the copying of some of its tables."""
        return await _act_on_tables(request, name, pipelines.resume, pipeline_copies.resume_copying)

    @post(
        "/{name:str}/restart",
        status_code=200,
        **declared(
            Operation(
                id="RestartPipeline",
                summary="Start a pipeline's workers again",
                description="It also lets a pipeline go on that stopped at a failure which was mended since.",
                permission=Permission.OPERATE,
                answers={200: PipelineResource},
                parameters=op.CONDITIONAL_WRITE,
                refusals=_ACT_REFUSALS,
            )
        ),
    )
    async def restart_pipeline(self, request: Ask, name: FromPath[str]) -> Answer:
        """Restart a pipeline."""
        return await _act(request, name, pipelines.restart)

    @post(
        "/{name:str}/resync",
        status_code=200,
        **declared(
            Operation(
                id="ResyncPipeline",
                summary="Copy tables of a pipeline again",
                description="All of them, or those that the body names, while the others go on. Rows are replaced range"
                " by range; a table whose key has no order that means the same at both ends (text) is emptied and filled in one"
                " transaction. A resync of all tables starts the pipeline over, and so closes a gap. With `where` only the"
                " rows of one table that match all conditions are copied again; rows that the source does not have any more"
                " are deleted if every condition is on a column of the key that both ends compare alike. The warnings say which.",
                permission=Permission.OPERATE,
                body=ResyncRequest,
                body_required=False,
                answers={200: PipelineResource},
                parameters=op.CONDITIONAL_WRITE,
                refusals=(*_TABLES_REFUSALS, "invalid_condition", "unknown_column"),
            )
        ),
    )
    async def resync_pipeline(self, request: Ask, name: FromPath[str]) -> Answer:
        """Copy a pipeline's tables again."""
        principal = await authorise(request)
        options, _, body = await options_of(request)
        manifests.check_name(name)
        asked = manifests.parse_resync(body)
        if asked.tables is None or not asked.where:
            return await written(request, principal, pipelines.resync(name, asked.tables, options), options)
        table = asked.tables[0]
        scope = Scope(tenant=principal.tenant)
        columns = await services_of(request).query(scope, queries.columns_of, principal.tenant, name, table)
        command = pipeline_copies.backfill(name, table, asked.where, columns, options)
        return await written(request, principal, command, options)

    @post(
        "/{name:str}/reconcile",
        status_code=200,
        **declared(
            Operation(
                id="ReconcilePipeline",
                summary="Compare source and destination",
                description="All tables, or those that the body names, row by row, by key and value, while the pipeline"
                " goes on. With `repair` the destination is mended: rows that are missing or differ are written, rows that"
                " the source does not have are deleted. The status counts; the keys stay on the customer's side. It does not"
                " close a gap: a resync of all tables does.",
                permission=Permission.OPERATE,
                body=ReconcileRequest,
                body_required=False,
                answers={200: PipelineResource},
                parameters=op.CONDITIONAL_WRITE,
                refusals=(*_TABLES_REFUSALS, "unfit_connection"),
            )
        ),
    )
    async def reconcile_pipeline(self, request: Ask, name: FromPath[str]) -> Answer:
        """Compare a pipeline's two ends."""
        principal = await authorise(request)
        options, _, body = await options_of(request)
        manifests.check_name(name)
        asked = manifests.parse_reconcile(body)
        command = pipelines.reconcile(name, asked.tables, options, repair=asked.repair)
        return await written(request, principal, command, options, warn=hindrance_of)

    @get(
        "/{name:str}/events",
        **declared(
            Operation(
                id="ListPipelineEvents",
                summary="What happened to a pipeline",
                description="What people asked for, and what nodes reported when something changed.",
                permission=Permission.READ,
                answers={200: Events},
                parameters=op.EVENTS,
            )
        ),
    )
    async def list_pipeline_events(self, request: Ask, name: FromPath[str]) -> Answer:
        """List a pipeline's events and those of its placements."""
        return await events_of(request, ["Pipeline", "Placement"], [name])


async def _act(request: Ask, name: str, command: Callable[[str, WriteOptions], Decide]) -> Answer:
    principal = await authorise(request)
    options, _, body = await options_of(request)
    manifests.check_name(name)
    manifests.check_empty(manifests.parse_object(body))
    return await written(request, principal, command(name, options), options)


async def _act_on_tables(
    request: Ask,
    name: str,
    whole: Callable[[str, WriteOptions], Decide],
    of_tables: Callable[[str, Sequence[str], WriteOptions], Decide],
    warn: Callable[[Mapping[str, Any] | None], list[str]] | None = None,
) -> Answer:
    """Act on the pipeline, or on the copying of the tables that the body names. `warn` is about the pipeline."""
    principal = await authorise(request)
    options, _, body = await options_of(request)
    manifests.check_name(name)
    tables = manifests.parse_tables(body)
    if tables is None:
        return await written(request, principal, whole(name, options), options, warn=warn)
    return await written(request, principal, of_tables(name, tables, options), options)
