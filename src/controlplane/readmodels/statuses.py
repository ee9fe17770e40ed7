"""Reads what the statuses of several resources are composed from, in as few queries as there are tables."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from controlplane.domain import AccessGrant, Aggregate, ApiKey, Connection, DataPlane, Member, Node, Pipeline
from controlplane.readmodels import queries, status


def read(
    connection: queries.Connection, tenant: str, aggregates: Sequence[Aggregate], now: datetime
) -> list[dict[str, Any] | None]:
    """Return the status of each of a tenant's resources, which are all of one kind; None for a kind that has none."""
    first = aggregates[0] if aggregates else None
    match first:
        case None:
            return []
        case Pipeline():
            return [*_pipelines(connection, tenant, [each for each in aggregates if isinstance(each, Pipeline)], now)]
        case Connection():
            used_by = queries.users_of(connection, tenant, [each.name for each in aggregates])
            return [status.connection_status(used_by[each.name]) for each in aggregates]
        case DataPlane():
            return [*_planes(connection, tenant, [each for each in aggregates if isinstance(each, DataPlane)], now)]
        case Node():
            known = queries.node_telemetry(connection, tenant, [each.name for each in aggregates])
            return [
                status.node_status(each, known.get(each.name), now) for each in aggregates if isinstance(each, Node)
            ]
        case ApiKey():
            uses = queries.last_uses(connection, tenant, [each.name for each in aggregates])
            keys = [each for each in aggregates if isinstance(each, ApiKey)]
            return [status.api_key_status(each, uses.get(each.name), now) for each in keys]
        case Member():
            known_as = queries.people(connection, tenant, [each.name for each in aggregates])
            members = [each for each in aggregates if isinstance(each, Member)]
            return [status.member_status(each, known_as.get(each.name)) for each in members]
        case AccessGrant():
            return [status.access_grant_status(each, now) for each in aggregates if isinstance(each, AccessGrant)]
        case _:
            return [None for _ in aggregates]


def _pipelines(
    connection: queries.Connection, tenant: str, pipelines: Sequence[Pipeline], now: datetime
) -> list[dict[str, Any]]:
    placements = queries.placements_of(connection, pipelines)
    telemetry = queries.pipeline_telemetry(connection, tenant, [each.name for each in pipelines])
    reports = {name: placement.last for name, placement in placements.items()}
    nodes = queries.node_telemetry(connection, tenant, {report.node for report in reports.values() if report})
    found = []
    for pipeline in pipelines:
        report = reports.get(pipeline.name)
        facts = status.PipelineFacts(
            pipeline=pipeline,
            report=report,
            reconciles=placements[pipeline.name].reconciles if pipeline.name in placements else {},
            telemetry=telemetry.get(pipeline.name),
            node=nodes.get(report.node) if report is not None else None,
            now=now,
        )
        found.append(status.pipeline_status(facts))
    return found


def _planes(
    connection: queries.Connection, tenant: str, planes: Sequence[DataPlane], now: datetime
) -> list[dict[str, Any]]:
    nodes = queries.nodes_of(connection, tenant, [each.name for each in planes])
    known = queries.node_telemetry(connection, tenant, [name for names in nodes.values() for name in names])
    return [status.data_plane_status(each, [known.get(name) for name in nodes[each.name]], now) for each in planes]
