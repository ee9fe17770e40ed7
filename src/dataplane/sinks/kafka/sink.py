"""Delivers changes to Kafka topics, one for each table: records and checkpoint in one Kafka transaction, exactly once.

In flow sets of whole transactions, or parts of a large one, from a worker's loop; out flows what became durable. A
consumer that reads only what is committed sees each change once, and every transaction of the source whole.

The fence is Kafka's own: the producer's transactional id is the pipeline's, and whoever opens it makes every older
producer's writes fail and its open transaction void. Who may open it is asked of `ownership` first, with what the
checkpoint's topic says. After a failure nothing is left open and the session is over: the next one starts from the
checkpoint, also when nobody knows whether a commit that was sent has happened.

What a topic cannot do that a table can: forget rows. Rows that were deleted at the source in a gap, or before a table is
copied again, stay in the topic with no delete after them.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable

from aiokafka import AIOKafkaProducer, errors
from msgspec import UnsetType
from msgspec.structs import replace

from contracts.codes import Code
from contracts.v2 import ConnectionDocument, PipelineSink
from dataplane.batch import ChangeSet, Truncate
from dataplane.checkpoint import Checkpoint, Progress, SourceIdentity
from dataplane.failures import Failure, Permanent
from dataplane.postgres import Revealable
from dataplane.sinks import durable, replay
from dataplane.sinks.kafka import client, positions
from dataplane.sinks.kafka.delivery import BATCH_BYTES_MAX, REQUEST_BYTES_MAX, Delivery
from dataplane.sinks.kafka.positions import Claim
from dataplane.sinks.kafka.topics import Topics
from dataplane.sinks.ownership import Claimed, Ownership
from dataplane.sinks.port import SinkGauges

TRANSACTION_SECONDS_MAX = 900
"""How long a large transaction may take, and how long consumers wait behind one whose owner died for good. Brokers allow
no more unless told otherwise."""
OPEN_SECONDS_MAX = 60
CLOSE_SECONDS_MAX = 5


def _now() -> int:
    return time.time_ns() // 1_000_000


class KafkaSink:
    """A sink on one Kafka cluster, under the law of `sinks.port`.

    `pipeline_id` names checkpoint and transactions, `ownership` says who claims them; `settings` are the pipeline's own.
    `now` gives milliseconds since 1970.
    """

    def __init__(
        self,
        connection: ConnectionDocument,
        password: Revealable | None,
        *,
        pipeline_id: str,
        ownership: Ownership,
        settings: PipelineSink,
        now: Callable[[], int] = _now,
    ) -> None:
        self._document = connection
        self._password = password
        self._pipeline_id = pipeline_id
        self._ownership = ownership
        self._settings = settings
        self._now = now
        self._turn = asyncio.Lock()
        self._producer: AIOKafkaProducer | None = None
        self._topics: Topics | None = None
        self._delivery: Delivery | None = None
        self._failure: Failure | None = None
        self._durable = durable.nothing(0)
        self._open = False
        self._rows = 0
        self._transactions = 0
        self._chunk = 0
        self._begun: set[str] = set()

    @property
    def gauges(self) -> SinkGauges:
        """Nothing: a record that the cluster refuses stops the pipeline."""
        return SinkGauges()

    async def look_again(self) -> None:
        """Nothing is kept at the cluster that a person could change."""

    async def open(self) -> Checkpoint | None:
        """Connect, make the checkpoint's topic if it is missing, fence older owners and claim the pipeline."""
        await self.close()
        try:
            async with asyncio.timeout(OPEN_SECONDS_MAX):
                held = await self._claim()
        except Failure:
            await self.close()
            raise
        except (errors.KafkaError, OSError, TimeoutError) as error:
            await self.close()
            raise client.failure(error) from error
        self._durable = held or durable.nothing(self._ownership.epoch)
        self._failure = None
        self._rows = self._transactions = self._chunk = 0
        self._begun = set()
        return held

    async def _claim(self) -> Checkpoint | None:
        options = client.options(self._document, self._password)
        topics = self._settings.topics
        if isinstance(topics, UnsetType):
            raise Permanent(Code.CONNECTION_UNFIT, "the pipeline names no topics")
        self._topics = Topics(options, topics)
        await self._topics.open(client.kafka_config(self._document).brokers)
        name = positions.topic(self._pipeline_id)
        await self._topics.make(name, 1, positions.SETTINGS)
        seen = await positions.newest(options, name)
        self._ownership.check(_claimed(seen))
        self._producer = producer = AIOKafkaProducer(
            **options,
            transactional_id=f"pointsman.{self._pipeline_id}",
            transaction_timeout_ms=TRANSACTION_SECONDS_MAX * 1000,
            max_batch_size=BATCH_BYTES_MAX,
            max_request_size=REQUEST_BYTES_MAX,
        )
        await producer.start()
        # Whoever wrote before cannot any more, so what is read now is the last that it wrote.
        held = await positions.newest(options, name)
        if held != seen and not self._ownership.takes_over:
            self._ownership.check(_claimed(held))
        epoch = (held.epoch if held is not None else 0) + 1
        self._delivery = Delivery(producer, self._topics, topics.format, topics.prefix, self._now)
        checkpoint = None if held is None or held.checkpoint is None else replace(held.checkpoint, epoch=epoch)
        await producer.begin_transaction()
        await self._commit(Claim(epoch=epoch, owner=self._ownership.owner, checkpoint=checkpoint))
        self._ownership.epoch = epoch
        return checkpoint

    async def load(self) -> Checkpoint | None:
        """Return the checkpoint: nobody else can have written it while the fence holds."""
        async with self._turn:
            self._ready()
            return None if self._durable == durable.nothing(self._durable.epoch) else self._durable

    async def begin(self, source: SourceIdentity) -> None:
        """Start over with a new source identity."""
        fresh = durable.nothing(self._durable.epoch)
        await self._write(replace(fresh, source=source, tables_owned=self._durable.tables_owned))

    async def advance(self, confirmed_through: int) -> None:
        """Raise what the source may be told while nothing is in flight. Never lowers it."""
        if confirmed_through > self._durable.confirmed_through:
            await self._write(replace(self._durable, confirmed_through=confirmed_through))

    async def follow(self, source: SourceIdentity, confirmed_through: int) -> None:
        """Go on with the same source under another identity."""
        await self._write(replace(self._durable, source=source, confirmed_through=confirmed_through))

    async def forget(self) -> None:
        """Delete the checkpoint and its topic. The tables' topics and their records stay."""
        await self._write(durable.nothing(self._durable.epoch))
        async with self._turn, self._guarded():
            assert self._topics is not None
            await self._topics.drop(positions.topic(self._pipeline_id))
            self._durable = durable.nothing(0)
            self._ownership.epoch = 0

    async def apply(self, change: ChangeSet) -> Progress | None:
        """Send a set's records; with `ends`, commit them and the checkpoint."""
        async with self._turn, self._guarded():
            held = self._durable
            unseen = replay.unseen(change, held.position, held.tables_copied, held.cursors)
            if unseen is not None:
                await self._send(unseen)
            if not change.ends or (unseen is None and self._open):
                return None
            if unseen is None:
                held = replace(held, confirmed_through=max(held.confirmed_through, change.commit_end_lsn))
            else:
                owned = sorted({*held.tables_owned, *self._begun})
                held = durable.after(replace(held, tables_owned=owned), unseen)
            await self._commit_checkpoint(held)
            self._begun = set()
            self._chunk = durable.newest_chunk(self._chunk, change)
            progress = durable.progress(
                held, change.commit_time, rows=self._rows, transactions=self._transactions, chunk=self._chunk
            )
            self._rows = self._transactions = 0
            return progress

    async def _send(self, change: ChangeSet) -> None:
        assert self._producer is not None
        assert self._delivery is not None
        if not self._open:
            await self._producer.begin_transaction()
            self._open = True
        source = self._durable.source
        database = source.database if source is not None else ""
        copied = change.snapshot_of is not None
        for item in change.items:
            if not isinstance(item, Truncate):
                await self._delivery.write(item, database=database, copied=copied)
            elif await self._empties(item):
                await self._delivery.empty(item, database=database, commit_time=change.commit_time)
        self._rows += change.row_count
        self._transactions += change.transactions

    async def _empties(self, item: Truncate) -> bool:
        """Say whether all that this pipeline wrote of a table is void; refuse a topic with records that it never wrote.

        Of a chunk of a copy nothing can be said, nor of what matches conditions: a topic has no word for some of its keys.
        """
        assert self._topics is not None
        if not item.for_snapshot:
            return item.only is None
        if item.table.table in self._durable.tables_owned or item.table.table in self._begun:
            return item.only is None
        if await self._topics.has_records(item.table):
            raise Permanent(Code.SINK_TABLE_NOT_EMPTY, "the topic has records of another", table=item.table.table)
        self._begun.add(item.table.table)
        return False

    async def _write(self, held: Checkpoint) -> None:
        """Write the checkpoint in a transaction of its own."""
        async with self._turn, self._guarded():
            assert not self._open, "a transaction of rows is open"
            await self._commit_checkpoint(held)

    async def _commit_checkpoint(self, held: Checkpoint) -> None:
        assert self._producer is not None
        if not self._open:
            await self._producer.begin_transaction()
            self._open = True
        nothing = held == durable.nothing(held.epoch)
        claim = Claim(epoch=held.epoch, owner=self._ownership.owner, checkpoint=None if nothing else held)
        await self._commit(claim)
        self._durable = held
        self._open = False

    async def _commit(self, claim: Claim) -> None:
        assert self._producer is not None
        assert self._delivery is not None
        await self._delivery.put(positions.topic(self._pipeline_id), 0, positions.KEY, positions.encode(claim))
        await self._delivery.settle()
        await self._producer.commit_transaction()

    def _ready(self) -> None:
        if self._failure is not None:
            raise self._failure
        assert self._producer is not None, "the sink is not open"

    @contextlib.asynccontextmanager
    async def _guarded(self) -> AsyncIterator[None]:
        """Turn the client's errors into ours, and end the session with any of them."""
        self._ready()
        try:
            yield
        except Failure as failure:
            self._failure = failure
            await self._let_go()
            raise
        except (errors.KafkaError, OSError) as error:
            self._failure = client.failure(error)
            # The client can abort nothing after such an error; the next owner's claim does.
            self._open = False
            await self._let_go()
            raise self._failure from error

    async def close(self) -> None:
        """End the session; what is open is void once the next owner opens, or after its time."""
        await self._let_go()

    async def _let_go(self) -> None:
        producer, self._producer, topics, self._topics = self._producer, None, self._topics, None
        delivery, self._delivery, was_open, self._open = self._delivery, None, self._open, False
        if producer is not None:
            _take_errors(producer)
            if was_open:
                await _within_bounds(producer.abort_transaction())
            await _within_bounds(producer.stop())
            _take_errors(producer)
        if delivery is not None:
            await _within_bounds(delivery.settle())
        if topics is not None:
            await _within_bounds(topics.close())


def _take_errors(producer: AIOKafkaProducer) -> None:
    """Look at the errors that the client keeps for whoever waits: after a failure nobody does.

    It keeps them for the transaction's end, and for room behind a batch that was never sent. The session's failure has
    said what they say.
    """
    end = producer._txn_manager.wait_for_transaction_end()  # noqa: SLF001
    batches = [batch for queue in producer._message_accumulator._batches.values() for batch in queue]  # noqa: SLF001
    for waiter in [end, *(batch._drain_waiter for batch in batches)]:  # noqa: SLF001
        if waiter is not None and waiter.done() and not waiter.cancelled():
            waiter.exception()


async def _within_bounds(ending: Awaitable[None]) -> None:
    """Wait for what ends a session. It may fail: what it was to tell the cluster, the next owner will."""
    with contextlib.suppress(errors.KafkaError, OSError, TimeoutError):
        async with asyncio.timeout(CLOSE_SECONDS_MAX):
            await ending


def _claimed(claim: Claim | None) -> Claimed | None:
    return Claimed(claim.epoch, claim.owner) if claim is not None else None
