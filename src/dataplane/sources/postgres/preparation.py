"""Get a session ready: check the server, decide between starting over, resuming and GAP, and make what is missing.

In flow the checkpoint and what the server shows; out flows where the stream begins and what must be copied beside it.
Called by the source's `open`, once for each session.

Starting over, in this order: publication; the checkpoint names the slot; the slot; the checkpoint says where it begins. A
crash at any point before the first chunk of a table is durable leaves a checkpoint without a cursor, and the next session
drops what it finds and starts over again. From then on every session resumes: the stream where it was, each table's copy
at its cursor.

A table that was added later, or that somebody asked to be copied again, is copied beside the stream too, and so is a part
of one. When all tables were asked for, the pipeline starts over. Conditions of a part that do not fit its table are told, and
nothing is copied for them.
"""

import asyncio
import secrets
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from contracts.backfilling import Backfill
from contracts.codes import Code
from dataplane.batch import START, Position, TableSchema
from dataplane.checkpoint import Checkpoint, CheckpointStore, SourceIdentity
from dataplane.failures import Gap
from dataplane.sources.port import CopyStanding
from dataplane.sources.postgres import publication, slots
from dataplane.sources.postgres.catalog import Catalog, TableSeen
from dataplane.sources.postgres.examining import examine
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
    refused: Sequence[CopyStanding] = ()
    """Copies of parts of tables whose conditions do not fit."""
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
        backfills: Mapping[str, Backfill] = publication.NOTHING,
        paused: Collection[str] = (),
        failover: bool = False,
    ) -> None:
        self.schemas: dict[str, TableSchema] = {}
        self.publication = object_name(pipeline_id)
        self._catalog = catalog
        self._replication = replication
        self._pipeline_id = pipeline_id
        self._names = tables
        self._resyncs = resyncs
        self._backfills = backfills
        self._paused = frozenset(paused)
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
        copies = self._made(publication.afresh(self._names, self._resyncs, self._backfills).copies, tables, None)
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
        plan = publication.plan(self._names, self._resyncs, seen, checkpoint, self._backfills)
        if plan.alter:
            await self._catalog.publish(self.publication, tables, exists=True, comment=self.note(plan.least))
        copies = self._made(plan.copies, tables, checkpoint)
        if decision.follow is not None:
            for copy in copies:
                # The server that the chunks came from may have had rows that the promoted one never got.
                copy.start_over_from_another_server(began=copy.name in checkpoint.unsettled)
        copies, refused = await self._examined(copies, tables, checkpoint)
        return Prepared(
            slot=decision.slot.name,
            start=decision.lsn,
            position=decision.position,
            confirmed=decision.confirmed,
            copies=copies,
            unseen=await self._catalog.waiting_for_standbys() if plan.copies else (),
            log_end=server.wal_end,
            members={**dict.fromkeys(self._names, 0), **await self._catalog.members(self.publication)},
            refused=refused,
        )

    async def _examined(
        self, copies: Sequence[TableCopy], tables: Sequence[TableSeen], checkpoint: Checkpoint
    ) -> tuple[list[TableCopy], list[CopyStanding]]:
        """Return the copies without those of parts whose conditions do not fit, and what is to be said of these.

        Of one that has begun nothing more is read, but the stream still passes what was copied.
        """
        seen = {table.name: table for table in tables}
        kept: list[TableCopy] = []
        refused: list[CopyStanding] = []
        for copy in copies:
            if not copy.where:
                kept.append(copy)
                continue
            found = await examine(self._catalog, seen[copy.name], self.schemas[copy.name], copy.where)
            if isinstance(found, CopyStanding):
                refused.append(found)
                cursor = checkpoint.cursors.get(copy.name)
                if cursor is not None and not cursor.settled:
                    kept += self._made([publication.given_up(copy.name, cursor)], tables, checkpoint)
                continue
            copy.rows_estimated = found or copy.rows_estimated
            kept.append(copy)
        return kept, refused

    def _made(
        self, plans: Sequence[publication.CopyPlan], tables: Sequence[TableSeen], checkpoint: Checkpoint | None
    ) -> list[TableCopy]:
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
                rows_estimated=0 if copy.where else rows[copy.table],
                schema=self.schemas[copy.table] if copy.where else None,
                backfill=copy.backfill,
                part=bool(copy.where),
                where=copy.where,
                following=copy.following,
                paused=copy.table in self._paused,
                whole_before=not copy.entered and copy.cursor is None and _is_whole(copy.table, checkpoint),
            )
            for copy in plans
        ]

    def note(self, least: Mapping[str, int]) -> str:
        """Return the publication's comment: from which copy on those of a table count."""
        return publication.written(publication.Note(pointsman=self._pipeline_id, copies=dict(least)))


def _is_whole(table: str, checkpoint: Checkpoint | None) -> bool:
    """Say whether the destination has all of a table, as the stream brought it."""
    return checkpoint is not None and table in checkpoint.tables_copied and table not in checkpoint.unsettled
