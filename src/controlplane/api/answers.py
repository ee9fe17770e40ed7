"""How answers are made, the same way for every kind of resource: one, a page, what came of a write, its events."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
from litestar import MediaType, Response

from contracts.audit import AuditEntry
from contracts.names import RESOURCE_NAME_PATTERN, matches
from controlplane import manifests
from controlplane.access.roles import Principal
from controlplane.api.authentication import authorise
from controlplane.api.requests import Ask, Parameters, read_cursor, services_of, write_cursor, write_options
from controlplane.audit.chain import read_events
from controlplane.commands import Outcome, WriteOptions
from controlplane.commands.write_path import Decide
from controlplane.domain import Aggregate
from controlplane.readmodels import queries, statuses
from controlplane.refusals import Refused
from controlplane.row_security import Scope

Answer = Response[bytes]


def answer(body: Any, *, status: int = 200, headers: dict[str, str] | None = None) -> Answer:
    """Return `body` as JSON."""
    return Response(msgspec.json.encode(body), status_code=status, media_type=MediaType.JSON, headers=headers or {})


async def one(request: Ask, form: type[Aggregate], name: str) -> Answer:
    """Answer a read of one resource.

    Raises:
        Refused: not_found, projection_behind, read_model_unavailable, invalid_parameter.
    """
    principal = await authorise(request)
    services = services_of(request)
    services.check_read_model(principal.tenant)
    await services.wait_for(services.resources, Parameters(request, "at_least").at_least)
    _check_readable(form, name)

    def read(connection: queries.Connection) -> dict[str, Any]:
        found = queries.get(connection, form, principal.tenant, name)
        if found is None:
            raise _not_found(form)
        shown = manifests.resource(found.aggregate, found.revision)
        return {**shown, "status": statuses.read(connection, principal.tenant, [found.aggregate], services.clock())[0]}

    shown = await services.query(Scope(tenant=principal.tenant), read)
    return answer(shown, headers=_etag(shown))


async def page(request: Ask, form: type[Aggregate]) -> Answer:
    """Answer a read of a page of resources, by name.

    Raises:
        Refused: projection_behind, read_model_unavailable, invalid_parameter.
    """
    principal = await authorise(request)
    services = services_of(request)
    services.check_read_model(principal.tenant)
    parameters = Parameters(request, "limit", "cursor", "at_least")
    limit, purpose = parameters.limit, f"{principal.tenant}/{form.KIND}"
    after = read_cursor(services, purpose, parameters.text("cursor"))
    await services.wait_for(services.resources, parameters.at_least)

    def read(connection: queries.Connection) -> tuple[list[dict[str, Any]], str]:
        found = queries.page(connection, form, principal.tenant, after=after, limit=limit)
        aggregates = [each.aggregate for each in found]
        told = statuses.read(connection, principal.tenant, aggregates, services.clock())
        items = [
            {**manifests.resource(each.aggregate, each.revision), "status": status}
            for each, status in zip(found, told, strict=True)
        ]
        return items, aggregates[-1].name if aggregates else ""

    items, last = await services.query(Scope(tenant=principal.tenant), read)
    cursor = write_cursor(services, purpose, last) if len(items) == limit else None
    return answer({"items": items, "next_cursor": cursor})


async def options_of(request: Ask, *more: str) -> tuple[WriteOptions, Parameters, bytes]:
    """Return how a write wants to be carried out, its parameters (`dry_run` and `more`) and its body.

    Raises:
        Refused: invalid_header or invalid_parameter.
    """
    body = await request.body()
    parameters = Parameters(request, "dry_run", *more)
    return write_options(request, parameters, body), parameters, body


async def carry_out(request: Ask, principal: Principal, decide: Decide, options: WriteOptions) -> Outcome:
    """Run a command on a thread, and give the read model a moment to follow."""
    services = services_of(request)
    outcome = await services.run(services.write_path.run, principal, decide, options)
    if outcome.changed and not options.dry_run:
        await services.settle(outcome.revision)
    return outcome


async def written(
    request: Ask,
    principal: Principal,
    decide: Decide,
    options: WriteOptions,
    *,
    warn: Callable[[Mapping[str, Any] | None], list[str]] | None = None,
) -> Answer:
    """Carry out a write of a resource and answer with the resource, as it is after the write.

    `warn` gives further warnings that depend on the resource's status.
    """
    services = services_of(request)
    outcome = await carry_out(request, principal, decide, options)
    subject, status = outcome.subject, None
    if subject is not None:
        told = await services.query(
            Scope(tenant=principal.tenant), statuses.read, principal.tenant, [subject], services.clock()
        )
        status = told[0]
    shown = {**outcome.body, "revision": outcome.revision, "status": status}
    if warn is not None and (more := warn(status)):
        shown["warnings"] = [*shown.get("warnings", []), *more]
    return answer(shown, status=outcome.status, headers={**_etag(shown), **replayed(outcome)})


def replayed(outcome: Outcome) -> dict[str, str]:
    """Return the header that says that a request was answered from its Idempotency-Key."""
    return {"Idempotency-Replayed": "true"} if outcome.replayed else {}


async def events_of(request: Ask, kinds: Sequence[str] | None = None, names: Sequence[str] = ()) -> Answer:
    """Answer a read of events, oldest first: of some kinds and names, or of those that the request's parameters name.

    Raises:
        Refused: projection_behind, invalid_parameter, audit_unavailable.
    """
    principal = await authorise(request)
    services = services_of(request)
    parameters = Parameters(request, "after", "limit", "at_least", *(("kind", "name") if kinds is None else ()))
    if kinds is None:
        kinds, names = ([each] if (each := parameters.text(what)) is not None else [] for what in ("kind", "name"))
    after, limit = parameters.number("after", 0), parameters.limit
    await services.wait_for(services.audit, parameters.at_least)

    def read(connection: queries.Connection) -> list[AuditEntry]:
        check_audit(connection, services.audit.projection.name, principal.tenant)
        return read_events(connection, principal.tenant, kinds=kinds, names=names, after=after, limit=limit)

    return answer({"items": [_event(entry) for entry in await services.query(Scope(tenant=principal.tenant), read)]})


def check_audit(connection: queries.Connection, projection: str, tenant: str) -> None:
    """Refuse to show a log that has stopped: what is missing would look as if it had not happened.

    Raises:
        Refused: audit_unavailable.
    """
    if queries.is_quarantined(connection, projection, tenant):
        raise Refused("audit_unavailable", "The audit log of this tenant has stopped at an event.")


def _event(entry: AuditEntry) -> dict[str, Any]:
    data = msgspec.json.decode(entry.payload)
    own = {field: value for field, value in data.items() if field not in ("actor", "at", "name", "tenant")}
    return {
        "id": entry.event_id,
        "at": entry.at,
        "kind": entry.kind,
        "name": entry.name,
        "type": entry.type,
        "actor": entry.actor,
        "data": own,
    }


def _etag(shown: dict[str, Any]) -> dict[str, str]:
    return {"ETag": f'"{shown["generation"]}"'}


def _check_readable(form: type[Aggregate], name: str) -> None:
    """Answer a name that nothing can have as one that nothing has, before it reaches the database."""
    if not matches(RESOURCE_NAME_PATTERN, name):
        raise _not_found(form)


def _not_found(form: type[Aggregate]) -> Refused:
    return Refused("not_found", f"There is no {form.KIND} of this name.")
