"""/v1/audit: the tenant's chain of events, the signed head by which anyone can verify it, and what it says of any moment."""

from typing import Any

from litestar import Controller, get
from litestar.params import FromPath

from contracts.audit import AuditEntry, Checkpoint
from contracts.names import RESOURCE_NAME_PATTERN, matches
from contracts.residency import seal
from controlplane.access.roles import Permission
from controlplane.api import operations as op
from controlplane.api.answers import Answer, answer, check_audit
from controlplane.api.authentication import authorise
from controlplane.api.operations import Operation, declared
from controlplane.api.requests import Ask, Parameters, services_of
from controlplane.api.schemas import AuditCheckpoint, AuditEntries, AuditKey, AuditReplay, AuditResidency
from controlplane.audit import chain, residency
from controlplane.audit.replay import ENTRIES_MAX, TooLong, entries_to, replay
from controlplane.domain.aggregate import HistoryUnreadableError
from controlplane.readmodels import queries
from controlplane.refusals import Refused
from controlplane.row_security import Scope


class AuditController(Controller):
    """The audit log."""

    path = "/v1/audit"

    @get(
        "/entries",
        **declared(
            Operation(
                id="ListAuditEntries",
                summary="The audit log, entry by entry",
                description="Each entry's hash covers the one before it. `payload` is the stored JSON as a text.",
                permission=Permission.AUDIT,
                answers={200: AuditEntries},
                parameters=(op.AFTER, op.LIMIT, op.AT_LEAST),
                refusals=("audit_unavailable",),
            )
        ),
    )
    async def list_audit_entries(self, request: Ask) -> Answer:
        """List audit entries."""
        principal = await authorise(request)
        services = services_of(request)
        parameters = Parameters(request, "after", "limit", "at_least")
        after, limit = parameters.number("after", 0), parameters.limit
        await services.wait_for(services.audit, parameters.at_least)

        def read(connection: queries.Connection) -> list[AuditEntry]:
            check_audit(connection, chain.NAME, principal.tenant)
            return chain.read_entries(connection, principal.tenant, after=after, limit=limit)

        return answer({"items": await services.query(Scope(tenant=principal.tenant), read)})

    @get(
        "/checkpoint",
        **declared(
            Operation(
                id="GetAuditCheckpoint",
                summary="The signed head of the audit log",
                description="Keep it outside: it proves later that nothing before it was changed or cut off.",
                permission=Permission.AUDIT,
                answers={200: AuditCheckpoint},
                parameters=(op.AT_LEAST,),
                refusals=("audit_unavailable",),
            )
        ),
    )
    async def get_audit_checkpoint(self, request: Ask) -> Answer:
        """Read the signed head."""
        principal = await authorise(request)
        services = services_of(request)
        await services.wait_for(services.audit, Parameters(request, "at_least").at_least)

        def read(connection: queries.Connection) -> Checkpoint:
            check_audit(connection, chain.NAME, principal.tenant)
            checkpoint = chain.read_checkpoint(connection, principal.tenant)
            if checkpoint is None:
                raise Refused("projection_behind", "The audit log has no entry of this tenant yet.")
            return checkpoint

        checkpoint = await services.query(Scope(tenant=principal.tenant), read)
        return answer({"checkpoint": chain.sign_checkpoint(checkpoint, services.checkpoint_key)})

    @get(
        "/replay",
        **declared(
            Operation(
                id="ReplayAudit",
                summary="The whole configuration at a moment",
                description="Folded from the audit log's entries up to that moment, desired and acknowledged by each node.",
                permission=Permission.AUDIT,
                answers={200: AuditReplay},
                parameters=(op.AT, op.AT_LEAST),
                refusals=("audit_unavailable", "not_found", "history_too_long", "history_unreadable"),
            )
        ),
    )
    async def replay_audit(self, request: Ask) -> Answer:
        """Show the configuration as it was."""
        principal = await authorise(request)
        services = services_of(request)
        parameters = Parameters(request, "at", "at_least")
        at = parameters.moment("at")
        await services.wait_for(services.audit, parameters.at_least)

        def read(connection: queries.Connection) -> dict[str, Any]:
            check_audit(connection, chain.NAME, principal.tenant)
            try:
                shown = replay(connection, principal.tenant, at)
            except TooLong as error:
                raise Refused("history_too_long", f"The log has {error} up to then.") from None
            except HistoryUnreadableError as error:
                raise Refused("history_unreadable", str(error)) from None
            if shown is None:
                raise Refused("not_found", "There was nothing yet at that moment.")
            return shown

        return answer(await services.query(Scope(tenant=principal.tenant), read))

    @get(
        "/residency/{name:str}",
        **declared(
            Operation(
                id="GetResidency",
                summary="Where a pipeline's rows were",
                description="Nodes, regions, routes and policies since the pipeline was first configured, folded from the"
                " audit log, dated and signed with the key that signs checkpoints.",
                permission=Permission.AUDIT,
                answers={200: AuditResidency},
                parameters=(op.AT_LEAST,),
                refusals=("audit_unavailable", "not_found", "history_too_long", "history_unreadable"),
            )
        ),
    )
    async def get_residency(self, request: Ask, name: FromPath[str]) -> Answer:
        """Report where a pipeline's rows were."""
        principal = await authorise(request)
        services = services_of(request)
        await services.wait_for(services.audit, Parameters(request, "at_least").at_least)
        made_at = services.clock()

        def read(connection: queries.Connection) -> str:
            check_audit(connection, chain.NAME, principal.tenant)
            head = chain.read_checkpoint(connection, principal.tenant)
            if head is None or not matches(RESOURCE_NAME_PATTERN, name):
                raise Refused("not_found", "There was never a pipeline of this name.")
            if head.sequence > ENTRIES_MAX:
                raise Refused("history_too_long", f"The log has {head.sequence} entries.")
            signed = chain.sign_checkpoint(head, services.checkpoint_key)
            entries = entries_to(connection, principal.tenant, head.sequence)
            try:
                report = residency.fold(principal.tenant, name, entries, at=made_at, checkpoint=signed)
            except HistoryUnreadableError as error:
                raise Refused("history_unreadable", str(error)) from None
            if report is None:
                raise Refused("not_found", "There was never a pipeline of this name.")
            return seal(report, services.checkpoint_key)

        return answer({"report": await services.query(Scope(tenant=principal.tenant), read)})

    @get(
        "/key",
        **declared(
            Operation(
                id="GetAuditKey",
                summary="The key that signs checkpoints",
                description="Compare it with the one that was learned at another time or in another way.",
                permission=Permission.AUDIT,
                answers={200: AuditKey},
            )
        ),
    )
    async def get_audit_key(self, request: Ask) -> Answer:
        """Read the signing key's public half."""
        await authorise(request)
        Parameters(request)
        return answer({"key": services_of(request).checkpoint_key.public})
