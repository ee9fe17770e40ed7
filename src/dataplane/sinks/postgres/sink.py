"""Delivers changes to a PostgreSQL database, rows and checkpoint in one transaction: effectively once.

In flow sets of whole transactions, or parts of a large one, from a worker's loop; out flows what became durable. Tables
keep their schema and name, are made when a snapshot of them begins, and get new columns when a batch has them. All
decisions are made in `merging`, `rows`, `tables` and `replay`; `delivery` tells the server of them in order.

With `consistency: key` and a parallelism above 1 the rows of a set may go over several connections (`lanes`), and only the
checkpoint comes after them all: exactly once for every key, but not as the source's transactions.

A session lives from `open` to `close`, on one connection otherwise. A transaction lives from a set with `begins` to one with
`ends`, and holds the lock of the checkpoint's row from its first statement, so nobody can take the pipeline over in
the middle of it; who does so ends our session first. After a failure nothing is left open and the session is over:
the next one starts from the checkpoint, also when nobody knows whether a COMMIT that was sent has happened.
"""

import asyncio
from collections.abc import Sequence
from typing import NoReturn

import psycopg
from msgspec.structs import replace

from contracts.codes import Code
from contracts.delivery import Consistency, OnSchemaChange
from contracts.v2 import ConnectionDocument, PipelineSink
from dataplane import postgres
from dataplane.batch import ChangeSet, Truncate
from dataplane.checkpoint import Checkpoint, Progress, SourceIdentity
from dataplane.failures import Failure, Permanent, RetryLater
from dataplane.postgres import Revealable
from dataplane.sinks import durable, replay
from dataplane.sinks.drift import ShapeGuard
from dataplane.sinks.lanes import Ahead
from dataplane.sinks.ownership import Claimed, Ownership
from dataplane.sinks.port import SinkGauges
from dataplane.sinks.postgres import checkpoints, lane_table, letter_table, opening, shape_table
from dataplane.sinks.postgres.checkpoints import FENCED_SQL_STATE, Fence
from dataplane.sinks.postgres.dead_letters import DeadLetters, Tally
from dataplane.sinks.postgres.delivery import Delivery, failure
from dataplane.sinks.postgres.lane_table import LaneFence
from dataplane.sinks.postgres.lanes import Lane, Lanes
from dataplane.sinks.postgres.session import Session, Statement
from dataplane.sinks.postgres.shapes import Shapes


class PostgresSink:
    """A sink on one PostgreSQL database, under the law of `sinks.port`.

    `pipeline_id` names the checkpoint, `ownership` says who claims it. `settings` are the pipeline's own;
    without them a refused row stops the pipeline, and new columns are added.
    """

    def __init__(
        self,
        connection: ConnectionDocument,
        password: Revealable | None,
        *,
        pipeline_id: str,
        ownership: Ownership,
        settings: PipelineSink | None = None,
    ) -> None:
        self._settings = settings or PipelineSink(connection=connection.name)
        self._document = connection
        self._password = password
        self._pipeline_id = pipeline_id
        self._ownership = ownership
        self._turn = asyncio.Lock()
        self._session: Session | None = None
        self._delivery: Delivery | None = None
        self._fence = Fence(pipeline_id, 0)
        self._identity = ("", "")
        self._durable = durable.nothing(0)
        self._failure: Failure | None = None
        self._letters: DeadLetters | None = None
        self._shapes: Shapes | None = None
        self._guard: ShapeGuard | None = None
        self._lanes: Lanes | None = None
        self._rows = 0
        self._transactions = 0
        self._chunk = 0

    async def open(self) -> Checkpoint | None:
        """Connect, make what is missing, end the sessions of older owners and claim the pipeline."""
        await self.close()
        try:
            self._session = session = await self._connect()
            await opening.set_up(session)
            row = await self._claim(session)
            ((system, database),) = await session.execute(checkpoints.IDENTITY)
        except psycopg.Error as error:
            await self.close()
            raise failure(error) from error
        except Failure:
            await self.close()
            raise
        self._fence = Fence(self._pipeline_id, int(str(row[0])))
        self._ownership.epoch = self._fence.epoch
        self._identity = (str(system), str(database))
        self._letters = DeadLetters(session, self._pipeline_id, self._settings, Tally())
        self._shapes = self._make_shapes(session)
        self._lanes = self._make_lanes(session, self._shapes)
        held = await self._with_lanes(checkpoints.checkpoint(row))
        self._durable = held or durable.nothing(self._fence.epoch)
        await self._look()
        await self._load_shapes()
        self._delivery = Delivery(session, self._fence, self._shapes, self._letters)
        self._failure = None
        self._rows = self._transactions = self._chunk = 0
        return held

    async def _connect(self) -> Session:
        name = opening.application_name(self._pipeline_id)
        info = postgres.conninfo(self._document, self._password, application_name=name, settings=opening.SETTINGS)
        connection = await psycopg.AsyncConnection.connect(info, autocommit=True, prepare_threshold=None)
        return Session(connection)

    def _make_shapes(self, session: Session) -> Shapes:
        system, database = self._identity
        ignores = self._settings.on_schema_change is OnSchemaChange.IGNORE
        return Shapes(session, system=system, database=database, ignores=ignores)

    def _make_lanes(self, session: Session, shapes: Shapes) -> Lanes:
        divides = self._settings.consistency is Consistency.KEY
        count = self._settings.parallelism if divides else 1
        return Lanes(self._pipeline_id, self._fence.epoch, count, shapes, session, self._make_lane)

    async def _make_lane(self, fence: LaneFence, session: Session | None) -> Lane:
        """Make a lane on a new session, or on the sink's own."""
        assert self._letters is not None
        assert self._shapes is not None
        if session is not None:
            return Lane(fence, session, Delivery(session, fence, self._shapes, self._letters))
        session = await self._connect()
        letters = DeadLetters(session, self._pipeline_id, self._settings, self._letters.tally)
        return Lane(fence, session, Delivery(session, fence, self._make_shapes(session), letters))

    async def _with_lanes(self, held: Checkpoint | None) -> Checkpoint | None:
        """Return the checkpoint with what lanes have beyond it, which nothing can change while we hold the fence."""
        assert self._lanes is not None
        try:
            ahead = self._lanes.ahead = await self._lanes.load(held)
        except psycopg.Error as error:
            await self.close()
            raise failure(error) from error
        return None if held is None else replace(held, ahead=ahead.furthest)

    async def _claim(self, session: Session) -> Sequence[object]:
        """Claim the checkpoint's row, and return it. Nobody's session is ended before it is known that we may.

        Raises:
            RetryLater: the claim is not ours (Code.SINK_FENCED).
        """
        ownership = self._ownership
        found = await session.execute(checkpoints.OWNER, (self._pipeline_id,))
        held = Claimed(int(str(found[0][0])), str(found[0][1])) if found else None
        ownership.check(held)
        name = opening.application_name(self._pipeline_id)
        await session.execute(checkpoints.SESSIONS_OF_OLDER_OWNERS, (name,))
        judged = held.epoch if held is not None else 0
        mine = (self._pipeline_id, ownership.owner, ownership.takes_over, judged)
        rows = await session.execute(checkpoints.CLAIM, mine)
        if not rows:
            raise RetryLater(Code.SINK_FENCED, "another owner has claimed this pipeline at the same moment")
        return rows[0]

    @property
    def gauges(self) -> SinkGauges:
        """As the port says."""
        letters, shapes = self._letters, self._shapes
        if letters is None or shapes is None:
            return SinkGauges()
        return SinkGauges(
            dead_letters=letters.tally.count,
            dead_letters_total=letters.tally.total,
            columns_ignored=shapes.ignored_count,
        )

    async def look_again(self) -> None:
        """As the port says."""
        async with self._turn:
            self._ready()
            await self._look()

    async def _look(self) -> None:
        assert self._letters is not None
        try:
            await self._letters.look()
        except psycopg.Error as error:
            await self.close()
            raise failure(error) from error

    async def _load_shapes(self) -> None:
        """Find out which shapes were accepted. Without a guard none is remembered: a later one begins anew."""
        assert self._session is not None
        guards = self._settings.on_schema_change is OnSchemaChange.PAUSE
        try:
            found = await self._session.execute(
                shape_table.LOAD if guards else shape_table.FORGET, (self._pipeline_id,)
            )
        except psycopg.Error as error:
            await self.close()
            raise failure(error) from error
        self._guard = ShapeGuard(shape_table.known(found), self._settings.resumes) if guards else None

    async def close(self) -> None:
        """End the session; the server rolls back what is open."""
        session, self._session, self._delivery = self._session, None, None
        lanes, self._lanes = self._lanes, None
        if lanes is not None:
            await lanes.close()
        if session is not None:
            await session.close()

    async def load(self) -> Checkpoint | None:
        """Return the checkpoint as it is durable."""
        async with self._turn:
            self._ready()
            assert self._session is not None
            try:
                found = await self._session.execute(checkpoints.LOAD, (self._pipeline_id,))
            except psycopg.Error as error:
                await self._fail(failure(error))
            held = checkpoints.checkpoint(found[0]) if found else None
            return await self._with_lanes(held)

    async def begin(self, source: SourceIdentity) -> None:
        """Start over with a new source identity. Tables owned stay owned."""
        async with self._turn:
            await self._write_apart(self._fence.begin(source), lane_table.forget(self._pipeline_id))
            self._forget_lanes()
            owned = self._durable.tables_owned
            self._durable = replace(durable.nothing(self._fence.epoch), source=source, tables_owned=owned)

    async def advance(self, confirmed_through: int) -> None:
        """Raise what the source may be told while nothing is in flight. Never lowers it."""
        async with self._turn:
            await self._advance(confirmed_through)

    async def follow(self, source: SourceIdentity, confirmed_through: int) -> None:
        """Go on with the same source under another identity."""
        async with self._turn:
            await self._write_apart(self._fence.follow(source, confirmed_through))
            self._durable = replace(self._durable, source=source, confirmed_through=confirmed_through)

    async def forget(self) -> None:
        """Delete the checkpoint, the dead letters and what comparisons found. Tables and their rows stay."""
        async with self._turn:
            letters = letter_table.clear_all(self._pipeline_id, "pipeline_removed")
            apart = (shape_table.forget(self._pipeline_id), lane_table.forget(self._pipeline_id))
            await self._write_apart(self._fence.forget(), letters, *apart)
            self._forget_lanes()
            await self._forget_comparisons()
            self._ownership.epoch = 0
            self._durable = durable.nothing(self._fence.epoch)

    async def apply(self, change: ChangeSet) -> Progress | None:
        """Apply one set, as the port says."""
        async with self._turn:
            delivery = self._ready()
            unseen = replay.unseen(change, self._durable.position, self._durable.tables_copied, self._durable.cursors)
            if unseen is None:
                return await self._pass_over(change, delivery)
            assert self._lanes is not None
            unseen = self._lanes.unseen(unseen)
            try:
                await self._stop_at_new_shape(unseen, delivery)
                await self._own_snapshot(unseen, delivery)
                after = durable.after(self._durable, unseen)
                await self._deliver(unseen, after, delivery, self._lanes)
            except Failure as refusal:
                await self._fail(refusal)
            except psycopg.Error as error:
                await self._fail(failure(error))
            self._rows += unseen.row_count
            self._transactions += unseen.transactions
            if not unseen.ends:
                return None
            self._durable = after
            self._chunk = durable.newest_chunk(self._chunk, change)
            return self._progress(unseen.commit_time)

    async def _deliver(self, change: ChangeSet, after: Checkpoint, delivery: Delivery, lanes: Lanes) -> None:
        parts = await lanes.divide(change)
        if parts is None:
            await delivery.deliver(change, after, self._durable.unsettled)
            return
        await lanes.deliver(parts, after, self._durable.unsettled)
        await self._write_apart(self._fence.write(after))

    async def _stop_at_new_shape(self, change: ChangeSet, delivery: Delivery) -> None:
        """Where a pipeline is to pause at a changed shape, apply what comes before it, and stop.

        Raises:
            Permanent: SCHEMA_CHANGED, with the table and the column.
        """
        verdict = self._guard.judge(change) if self._guard is not None else None
        if verdict is None:
            return
        stop = verdict.stop
        if stop is not None and verdict.front is not None:
            after = durable.after(self._durable, verdict.front)
            await delivery.deliver(verdict.front, after)
            self._durable = after
        if stop is not None:
            await delivery.abandon()
        learned = [shape_table.write(self._pipeline_id, *each) for each in verdict.learned.values()]
        if stop is not None:
            learned.append(shape_table.write(self._pipeline_id, stop.table, stop.known))
        if delivery.is_open:
            # In the middle of a large transaction; they are written with its rows.
            assert self._session is not None
            await self._session.run(learned)
        else:
            await self._write_apart(self._fence.hold(), *learned)
        if stop is not None:
            where, column = stop.table.table, stop.column
            raise Permanent(Code.SCHEMA_CHANGED, "the table's shape has changed", table=where, column=column)

    def _forget_lanes(self) -> None:
        assert self._lanes is not None
        self._lanes.ahead = Ahead()

    async def _forget_comparisons(self) -> None:
        self._ready()
        assert self._session is not None
        try:
            if (await self._session.execute(checkpoints.HAS_COMPARISONS))[0][0]:
                for statement in checkpoints.FORGET_COMPARISONS:
                    await self._session.execute(statement, (self._pipeline_id,))
        except psycopg.Error as error:
            await self._fail(failure(error))

    def _ready(self) -> Delivery:
        if self._failure is not None:
            raise self._failure
        if self._delivery is None:
            raise RuntimeError("the sink is not open")
        return self._delivery

    async def _fail(self, refusal: Failure) -> NoReturn:
        """Leave nothing open, and refuse whatever comes next: a later set must not overtake the one that failed."""
        self._failure = refusal
        if self._lanes is not None:
            await self._lanes.close()
        if self._delivery is not None:
            await self._delivery.abandon()
        raise refusal

    async def _write_apart(self, *statements: Statement) -> None:
        """Write the checkpoint in a transaction of its own."""
        delivery = self._ready()
        assert self._session is not None
        if delivery.is_open:
            raise RuntimeError("the checkpoint can be written apart only while no transaction is open")
        try:
            await self._session.run(statements)  # one transaction, as they go out together
        except psycopg.Error as error:
            await self._fail(failure(error, fenced=error.sqlstate == FENCED_SQL_STATE))

    async def _advance(self, confirmed_through: int) -> None:
        if confirmed_through > self._durable.confirmed_through:
            await self._write_apart(self._fence.advance(confirmed_through))
            self._durable = replace(self._durable, confirmed_through=confirmed_through)

    async def _pass_over(self, change: ChangeSet, delivery: Delivery) -> Progress | None:
        """Drop a set that is durable already."""
        if not change.ends or delivery.is_open:
            return None
        await self._advance(change.commit_end_lsn)
        self._chunk = durable.newest_chunk(self._chunk, change)
        return self._progress(change.commit_time)

    async def _own_snapshot(self, change: ChangeSet, delivery: Delivery) -> None:
        """Make the tables whose snapshots begin with this set, and note them as ours before any of their rows."""
        for item in change.items:
            if not isinstance(item, Truncate) or not item.for_snapshot:
                continue
            name, owned = item.table.table, self._durable.tables_owned
            await delivery.own(item.table, self._durable.source, owned=name in owned)
            if name not in owned:
                self._durable = replace(self._durable, tables_owned=[*owned, name])

    def _progress(self, commit_time: int) -> Progress:
        rows, transactions = self._rows, self._transactions
        self._rows = self._transactions = 0
        return durable.progress(self._durable, commit_time, rows=rows, transactions=transactions, chunk=self._chunk)
