"""Get a session ready: check the server, decide between starting over, resuming and GAP, and make what is missing.

In flow the checkpoint and what the server shows; out flows where the stream begins and what must be copied beside it.
Called by the source's `open`, once for each session.

Starting over, in this order: publication; the checkpoint names the slot; the slot; the checkpoint says where it begins. A
crash at any point before the first chunk of a table is durable leaves a checkpoint without a cursor, and the next session
drops what it finds and starts over again. From then on every session resumes: the stream where it was, each table's copy
at its cursor.

A table that was added later, or that somebody asked to be copied again, is copied beside the stream too. When all tables
were asked for, the pipeline starts over.
"""

import asyncio
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from contracts.codes import Code
from dataplane.batch import START, Position, TableSchema
from dataplane.checkpoint import Checkpoint, CheckpointStore, SourceIdentity
from dataplane.failures import Gap
from dataplane.sources.postgres import publication, slots
from dataplane.sources.postgres.catalog import Catalog, TableSeen
from dataplane.sources.postgres.opening import (
    INCARNATION_DIGITS,
    Resume,
    ServerSeen,
    StartOver,
    decide,
    object_name,
)
from dataplane.sources.postgres.replication import ReplicationConnection
from dataplane.sources.postgres.table_copy import TableCopy


@dataclass(slots=True)
class Prepared:
    """Where a session begins. `position` and `confirmed` are those of the checkpoint, `start` is where the stream begins.

    `unseen` are transactions that earlier sessions may have given out and that a snapshot may not see; `log_end` is where
    the server's log ended.
    """

    slot: str
    start: int
    position: Position
    confirmed: int
    copies: Sequence[TableCopy] = ()
    unseen: Sequence[int] = ()
    log_end: int = 0
    members: Mapping[str, int] = field(default_factory=dict)
    """The tables of the publication, each with the id of its entry; 0 for one that has left since it was looked at."""


class Preparation:
    """Prepares one session. `schemas` are set as soon as there are any, also when `run` fails later."""

    def __init__(
        self,
        catalog: Catalog,
        replication: ReplicationConnection,
        *,
        pipeline_id: str,
        tables: Sequence[str],
        resyncs: Mapping[str, int],
        failover: bool = False,
    ) -> None:
        self.schemas: dict[str, TableSchema] = {}
        self.publication = object_name(pipeline_id)
        self._catalog = catalog
        self._replication = replication
        self._pipeline_id = pipeline_id
        self._names = tables
        self._resyncs = resyncs
        self._failover = failover

    async def run(self, checkpoints: CheckpointStore) -> Prepared:
        """Prepare the session.

        Raises:
            Failure: as `Source.open` says.
            psycopg.Error: the server refused something.
        """
        checkpoint = await checkpoints.load()
        await self._catalog.check_server()
        server = await slots.look(self._catalog, self._replication, self.publication)
        afresh = publication.behind(self._names, self._resyncs, checkpoint) == set(self._names)
        decision = decide(checkpoint, server, afresh=afresh)
        tables = await self._catalog.tables(self._names)
        for table in tables:
            self.schemas[table.name] = await self._catalog.schema(table)
        for orphan in decision.orphans:
            await slots.drop(self._catalog, orphan)
        if isinstance(decision, StartOver):
            return await self._start_over(server, tables, checkpoints)
        assert checkpoint is not None
        return await self._resume(decision, server, checkpoint, tables, checkpoints)

    async def _start_over(
        self, server: ServerSeen, tables: Sequence[TableSeen], checkpoints: CheckpointStore
    ) -> Prepared:
        await slots.check_failover(self._catalog, wanted=self._failover)
        seen = await self._catalog.published(self.publication)
        await self._catalog.publish(self.publication, tables, exists=seen is not None, comment=self.note({}))
        slot = f"{self.publication}_{secrets.token_hex(INCARNATION_DIGITS // 2)}"
        identity = SourceIdentity(
            system_identifier=server.system_identifier,
            timeline=server.timeline,
            database=server.database,
            slot=slot,
            publication=self.publication,
        )
        await checkpoints.begin(identity)
        version = await self._catalog.version()
        start = await asyncio.to_thread(slots.make, self._replication, slot, version=version, failover=self._failover)
        # Durable before a row is read: a slot that is beyond what the checkpoint says was moved by somebody else.
        await checkpoints.advance(start)
        copies = self._copies(publication.afresh(self._names, self._resyncs), tables)
        unseen = await self._catalog.waiting_for_standbys()
        members = await self._catalog.members(self.publication)
        return Prepared(slot, start, START, start, copies, unseen, members=members)

    async def _resume(
        self,
        decision: Resume,
        server: ServerSeen,
        checkpoint: Checkpoint,
        tables: Sequence[TableSeen],
        checkpoints: CheckpointStore,
    ) -> Prepared:
        await slots.release(self._catalog, decision.slot)
        await slots.set_failover(self._catalog, self._replication, decision.slot, wanted=self._failover)
        seen = await self._catalog.published(self.publication)
        if seen is None or not seen.intact:
            raise Gap(Code.GAP_PUBLICATION_CHANGED, f"publication {self.publication} was dropped or altered")
        if decision.follow is not None:
            # From here on the source that was before is refused, should it come back.
            await checkpoints.follow(decision.follow, decision.confirmed)
        plan = publication.plan(self._names, self._resyncs, seen, checkpoint)
        if plan.alter:
            await self._catalog.publish(self.publication, tables, exists=True, comment=self.note(plan.least))
        copies = self._copies(plan, tables)
        if decision.follow is not None:
            for copy in copies:
                # The server that the chunks came from may have had rows that the promoted one never got.
                copy.start_over()
        return Prepared(
            slot=decision.slot.name,
            start=decision.lsn,
            position=decision.position,
            confirmed=decision.confirmed,
            copies=copies,
            unseen=await self._catalog.waiting_for_standbys() if plan.copies else (),
            log_end=server.wal_end,
            members={**dict.fromkeys(self._names, 0), **await self._catalog.members(self.publication)},
        )

    def _copies(self, plan: publication.Plan, tables: Sequence[TableSeen]) -> list[TableCopy]:
        oids = {table.name: table.oid for table in tables}
        rows = {table.name: table.rows_estimated for table in tables}
        return [
            TableCopy(
                name=copy.table,
                oid=oids[copy.table],
                copy=copy.copy,
                resync=copy.resync,
                whole=copy.replaces,
                cursor=copy.cursor,
                entered=copy.entered,
                rows_estimated=rows[copy.table],
            )
            for copy in plan.copies
        ]

    def note(self, least: Mapping[str, int]) -> str:
        """Return the publication's comment: from which copy on those of a table count."""
        return publication.written(publication.Note(pointsman=self._pipeline_id, copies=dict(least)))
