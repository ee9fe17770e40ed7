"""Get a session ready: check the server, decide between starting over, resuming and GAP, and make what is missing.

In flow the checkpoint and what the server shows; out flows where the stream begins and what must be copied before.
Called by the source's `open`, once for each session.

Starting over, in this order: publication; the checkpoint names the slot; the slot; the copy of every table as it was at
the slot's consistent point. A crash at any point leaves a checkpoint without a whole snapshot, and the next session drops
what it finds and starts over again.

A table that was added later is copied at a moment that the stream has still to reach: its rows from before that moment
are left out of the stream, the copy stands in the stream at that moment, and nothing else has to stop for it. A table
that somebody asked to be copied again is treated like it. When that holds for all tables, the pipeline starts over.
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
from dataplane.sources.postgres.snapshot import Snapshot, export


@dataclass(slots=True)
class Copy:
    """A snapshot that is to be read, and of which tables. `first` says that it is that of a new slot: the stream follows."""

    snapshot: Snapshot
    first: bool
    tables: list[tuple[TableSeen, TableSchema]] = field(default_factory=list)
    done: bool = False


@dataclass(slots=True)
class Prepared:
    """Where a session begins. `position` and `confirmed` are those of the checkpoint, `start` is where the stream begins."""

    slot: str
    start: int
    position: Position
    confirmed: int
    copied: set[str]


class Preparation:
    """Prepares one session. `copy` and `schemas` are set as soon as there are any, also when `run` fails later."""

    def __init__(
        self,
        catalog: Catalog,
        replication: ReplicationConnection,
        *,
        conninfo: str,
        pipeline_id: str,
        tables: Sequence[str],
        resyncs: Mapping[str, int],
        failover: bool = False,
    ) -> None:
        self.copy: Copy | None = None
        self.schemas: dict[str, TableSchema] = {}
        self.publication = object_name(pipeline_id)
        self._catalog = catalog
        self._replication = replication
        self._conninfo = conninfo
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
        return await self._resume(decision, checkpoint, tables, checkpoints)

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
        copy = await self._begin_copy(slot, tables, first=True)
        return Prepared(slot, copy.snapshot.lsn, START, 0, set())

    async def _resume(
        self,
        decision: Resume,
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
            note = self.note(dict.fromkeys(plan.added, 0))
            await self._catalog.publish(self.publication, tables, exists=True, comment=note)
        if plan.added:
            added = [table for table in tables if table.name in plan.added]
            copy = await self._begin_copy(f"{decision.slot.name}_copy", added, first=False)
            copying = dict.fromkeys(plan.added, copy.snapshot.lsn)
            await self._catalog.note(self.publication, self.note(copying))
        return Prepared(
            slot=decision.slot.name,
            start=decision.lsn,
            position=decision.position,
            confirmed=decision.confirmed,
            copied=set(self._names) - set(plan.added),
        )

    def note(self, copying: dict[str, int]) -> str:
        """Return the publication's comment while `copying` are being copied."""
        return publication.written(publication.Note(pointsman=self._pipeline_id, copying=copying))

    async def _begin_copy(self, slot: str, tables: Sequence[TableSeen], *, first: bool) -> Copy:
        """Make a slot, which is only temporary when tables are added, and take over the snapshot that it exports."""
        version = await self._catalog.version()
        lsn, name = await asyncio.to_thread(
            export,
            self._replication,
            slot,
            temporary=not first,
            version=version,
            failover=first and self._failover,
        )
        self.copy = copy = Copy(Snapshot(self._conninfo, lsn), first)
        await asyncio.to_thread(copy.snapshot.begin, name, tables)
        await asyncio.to_thread(self._replication.end_session)
        # Only now DDL is locked out: the columns are those of the rows that will be read.
        for table in tables:
            schema = await self._catalog.schema(table)
            self.schemas[table.name] = schema
            copy.tables.append((table, schema))
        return copy
