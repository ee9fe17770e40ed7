"""The law of a buffer, as tests that every member runs: those of the registry, and the one in memory that fakes use.

A rig gives the law two ends of one pipeline's buffer as often as it asks, and can lose what the buffer holds.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Protocol

import pytest
from msgspec.structs import replace
from tests.dataplane.buffers.changes import ids_of, inserts, large_transaction, same, transaction

from contracts.codes import Code
from dataplane.batch import START, ChangeSet, Position
from dataplane.buffers.port import BufferReader, BufferWriter, SessionReplaced
from dataplane.checkpoint import Checkpoint, CheckpointStore, Progress, SourceIdentity
from dataplane.failures import Permanent, RetryLater

IDENTITY = SourceIdentity(system_identifier="1", timeline=1, database="shop", slot="pm_1", publication="pm_1")
SECONDS_MAX = 20.0


class Rig(Protocol):
    """How the law gets hold of one kind of buffer."""

    def writer(self) -> BufferWriter: ...

    def reader(self) -> BufferReader: ...

    async def lose(self) -> None:
        """Lose everything that the buffer holds."""
        ...

    size_bytes_max: int


class Store:
    """A checkpoint in memory; `failure` is raised by every call when it is set."""

    def __init__(self) -> None:
        self.checkpoint: Checkpoint | None = None
        self.failure: Exception | None = None
        self.calls: list[str] = []

    async def load(self) -> Checkpoint | None:
        self._called("load")
        return self.checkpoint

    async def begin(self, source: SourceIdentity) -> None:
        self._called("begin")
        self.checkpoint = checkpoint_at(START, source=source)

    async def advance(self, confirmed_through: int) -> None:
        self._called(f"advance {confirmed_through}")

    async def follow(self, source: SourceIdentity, confirmed_through: int) -> None:
        self._called(f"follow {source.timeline} {confirmed_through}")

    async def forget(self) -> None:
        self._called("forget")
        self.checkpoint = None

    def _called(self, what: str) -> None:
        self.calls.append(what)
        if self.failure is not None:
            raise self.failure


def checkpoint_at(position: Position, source: SourceIdentity = IDENTITY) -> Checkpoint:
    return Checkpoint(
        epoch=1,
        source=source,
        position=position,
        confirmed_through=position.lsn,
        snapshot_done=True,
        tables_owned=[],
        tables_copied=[],
    )


def progress_at(change: ChangeSet) -> Progress:
    return Progress(
        position=change.last,
        confirmed_through=change.commit_end_lsn,
        commit_time=change.commit_time,
        rows=change.row_count,
        transactions=change.transactions,
    )


async def take(sets: AsyncIterator[ChangeSet], count: int) -> list[ChangeSet]:
    async with asyncio.timeout(SECONDS_MAX):
        return [await anext(sets) for _ in range(count)]


async def listen(writer: BufferWriter) -> None:
    """Hear of progress until the session ends."""
    async with asyncio.timeout(SECONDS_MAX):
        async for _ in writer.progress():
            pass


class Halves:
    """A rig's two ends, opened as the two processes of a pipeline would, and all closed at the end."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.store = Store()
        self._open: list[BufferWriter | BufferReader] = []

    async def reader(self) -> tuple[BufferReader, AsyncIterator[ChangeSet]]:
        reader = self.rig.reader()
        self._open.append(reader)
        await reader.open(self.store)
        return reader, reader.take()

    async def writer(self) -> tuple[BufferWriter, CheckpointStore]:
        writer = self.rig.writer()
        self._open.append(writer)
        async with asyncio.timeout(SECONDS_MAX):
            return writer, await writer.open()

    async def both(self) -> tuple[BufferWriter, CheckpointStore, BufferReader, AsyncIterator[ChangeSet]]:
        """A session of both halves: the reader is restarted as its process would when the session is a new one."""
        writing = asyncio.create_task(self.writer())
        while True:
            reader, sets = await self.reader()
            following = asyncio.ensure_future(anext(sets))
            await asyncio.wait({writing, following}, return_when=asyncio.FIRST_COMPLETED, timeout=SECONDS_MAX)
            if writing.done():
                writer, checkpoints = await writing
                return writer, checkpoints, reader, _resume(following, sets)
            with pytest.raises(SessionReplaced):
                await following
            await reader.close()

    async def close(self) -> None:
        for end in self._open:
            await end.close()
            await end.close()


async def _resume(first: "asyncio.Future[ChangeSet]", rest: AsyncIterator[ChangeSet]) -> AsyncIterator[ChangeSet]:
    try:
        yield await first
    finally:
        first.cancel()
    async for change in rest:
        yield change


class BufferLaw:
    """Subclass it with a fixture `rig`."""

    @pytest.fixture
    async def halves(self, rig: Rig) -> AsyncIterator[Halves]:
        halves = Halves(rig)
        yield halves
        await halves.close()

    async def test_sets_come_out_as_they_went_in_and_in_order(self, halves: Halves) -> None:
        """Whole transactions, large ones in parts, and sets larger than any message arrive equal and in order."""
        writer, _, reader, sets = await halves.both()
        sent = [transaction(10, [1]), *large_transaction(20, [[1, 2], [3], [4]]), transaction(30, [5], "y" * 600_000)]
        puts = [asyncio.create_task(writer.put(change)) for change in sent]
        got = await take(sets, len(sent))
        await asyncio.gather(*puts)
        assert all(same(one, other) for one, other in zip(sent, got, strict=True))
        await reader.done(progress_at(got[-1]))

    async def test_the_checkpoint_travels_through_the_buffer(self, halves: Halves) -> None:
        """Each call of the source's half is made on the sink's checkpoint, and its answer comes back."""
        _, checkpoints, _, _ = await halves.both()
        assert await checkpoints.load() is None
        await checkpoints.begin(IDENTITY)
        assert await checkpoints.load() == checkpoint_at(START)
        await checkpoints.advance(77)
        await checkpoints.follow(replace(IDENTITY, timeline=2), 70)
        await checkpoints.forget()
        assert await checkpoints.load() is None
        assert [call for call in halves.store.calls if call != "load"] == [
            "begin",
            "advance 77",
            "follow 2 70",
            "forget",
        ]

    @pytest.mark.parametrize("family", [RetryLater, Permanent])
    async def test_a_failure_of_the_checkpoint_travels_too(self, halves: Halves, family) -> None:
        """The source's half gets the sink's failure with its family, code and names."""
        _, checkpoints, _, _ = await halves.both()
        code = Code.SINK_FENCED if family is RetryLater else Code.SINK_RIGHTS_MISSING
        halves.store.failure = family(code, "no", table="public.orders", sql_state="42501")
        with pytest.raises(family) as caught:
            await checkpoints.begin(IDENTITY)
        assert (caught.value.code, caught.value.table, caught.value.sql_state) == (code, "public.orders", "42501")

    async def test_progress_travels_back_newest_only(self, halves: Halves) -> None:
        """The source's half hears of the newest durable position; older ones may be left out."""
        writer, _, reader, sets = await halves.both()
        heard = writer.progress()
        for lsn in (10, 20, 30):
            put = asyncio.create_task(writer.put(transaction(lsn, [lsn])))
            (change,) = await take(sets, 1)
            await put
            await reader.done(progress_at(change))
        async with asyncio.timeout(SECONDS_MAX):
            lsns = []
            while not lsns or lsns[-1] != 31:
                lsns.append((await anext(heard)).confirmed_through)
        assert lsns == sorted(lsns)

    async def test_put_waits_while_the_buffer_is_full(self, halves: Halves) -> None:
        """A buffer holds no more than its bound; when the sink has made something durable, there is room again."""
        writer, _, reader, sets = await halves.both()
        size = halves.rig.size_bytes_max // 5
        changes = [transaction(lsn, [lsn], "y" * size) for lsn in range(10, 20)]
        puts = asyncio.gather(*(asyncio.create_task(writer.put(change)) for change in changes))
        done, _ = await asyncio.wait({puts}, timeout=0.5)
        assert not done
        got = []
        for _ in changes:
            got += await take(sets, 1)
            await reader.done(progress_at(got[-1]))
        async with asyncio.timeout(SECONDS_MAX):
            await puts
        assert [change.last.lsn for change in got] == list(range(10, 20))

    async def test_a_set_larger_than_the_buffer_passes(self, halves: Halves) -> None:
        """One set with a value beyond the buffer's bound arrives whole, and what follows it too."""
        writer, _, reader, sets = await halves.both()
        large = transaction(10, [1], "y" * (halves.rig.size_bytes_max * 2))
        puts = [asyncio.create_task(writer.put(change)) for change in (large, transaction(20, [2]))]
        got = await take(sets, 1)
        await reader.done(progress_at(got[0]))
        got += await take(sets, 1)
        await asyncio.gather(*puts)
        assert same(got[0], large)
        assert ids_of(got[1]) == [2]

    async def test_nothing_follows_a_set_that_was_given_up(self, halves: Halves) -> None:
        """A put is cancelled while others wait behind it: none of them gets in, or it would hide a hole."""
        writer, _, reader, sets = await halves.both()
        size = halves.rig.size_bytes_max // 5
        puts = [asyncio.create_task(writer.put(transaction(lsn, [lsn], "y" * size))) for lsn in range(10, 20)]
        await asyncio.wait(puts, timeout=0.5)
        given_up = next(number for number, put in enumerate(puts) if not put.done()) + 1
        puts[given_up].cancel()
        got: list[ChangeSet] = []
        with contextlib.suppress(RetryLater, TimeoutError):
            async with asyncio.timeout(1):
                async for change in sets:
                    got.append(change)
                    await reader.done(progress_at(change))
        outcomes = await asyncio.gather(*puts, return_exceptions=True)
        assert all(isinstance(outcome, RetryLater) for outcome in outcomes[given_up + 1 :])
        lsns = [change.last.lsn for change in got]
        assert lsns == list(range(10, 10 + len(lsns)))
        assert len(lsns) <= given_up

    async def test_a_transaction_larger_than_the_buffer_passes(self, halves: Halves) -> None:
        """Nothing of it is durable before its end, and still it must not stop at the buffer's bound."""
        writer, _, reader, sets = await halves.both()
        parts = large_transaction(10, [[number] for number in range(12)], "y" * (halves.rig.size_bytes_max // 5))
        puts = asyncio.gather(*(asyncio.create_task(writer.put(part)) for part in parts))
        got = await take(sets, len(parts))
        await puts
        assert [ids_of(part) for part in got] == [[number] for number in range(12)]
        await reader.done(progress_at(got[-1]))

    async def test_a_new_reader_goes_on_where_the_destination_stands(self, halves: Halves) -> None:
        """The sink's half restarts alone: what was put and is not durable comes again, in order, with no new session."""
        writer, _, reader, sets = await halves.both()
        puts = [asyncio.create_task(writer.put(transaction(lsn, [lsn]))) for lsn in range(10, 16)]
        got = await take(sets, 4)
        await asyncio.gather(*puts)
        await reader.done(progress_at(got[1]))
        halves.store.checkpoint = checkpoint_at(got[1].last)
        await reader.close()
        _, sets = await halves.reader()
        again = await take(sets, 1)
        while again[-1].last.lsn < 15:
            again += await take(sets, 1)
        lsns = [change.last.lsn for change in again]
        assert lsns == list(range(lsns[0], 16))
        assert lsns[0] <= 12
        put = asyncio.create_task(writer.put(transaction(16, [16])))
        assert [ids_of(change) for change in await take(sets, 1)] == [[16]]
        await put

    async def test_a_new_writer_replaces_what_the_old_one_left(self, halves: Halves) -> None:
        """The source's half restarts alone: the reader is told, and then sees the new session's sets only."""
        writer, _, reader, sets = await halves.both()
        await asyncio.gather(*(writer.put(transaction(lsn, [lsn], "old")) for lsn in range(10, 13)))
        await take(sets, 1)
        await writer.close()
        writing = asyncio.create_task(halves.writer())
        with pytest.raises(SessionReplaced):
            await take(sets, 5)
        await reader.close()
        _, sets = await halves.reader()
        following = asyncio.ensure_future(anext(sets))
        new, _ = await writing
        await new.put(transaction(10, [1], "new"))
        async with asyncio.timeout(SECONDS_MAX):
            assert ids_of(await following) == [1]

    async def test_an_older_writer_gets_nothing_in(self, halves: Halves) -> None:
        """Once another session has begun, a writer that was frozen and wakes up is refused."""
        old, _, reader, sets = await halves.both()
        await old.put(transaction(10, [10]))
        await take(sets, 1)
        writing = asyncio.create_task(halves.writer())
        with pytest.raises(SessionReplaced):
            await take(sets, 1)
        await reader.close()
        _, sets = await halves.reader()
        following = asyncio.ensure_future(anext(sets))
        new, _ = await writing
        with pytest.raises(RetryLater):
            async with asyncio.timeout(SECONDS_MAX):
                await old.put(transaction(11, [666]))
        await new.put(transaction(10, [1]))
        await new.put(transaction(11, [2]))
        async with asyncio.timeout(SECONDS_MAX):
            assert [ids_of(await following), ids_of(await anext(sets))] == [[1], [2]]

    async def test_a_lost_buffer_ends_both_sessions_and_the_next_ones_work(self, halves: Halves) -> None:
        """Losing everything that it holds is a retry for both halves, and never silence."""
        writer, _, reader, sets = await halves.both()
        await writer.put(transaction(10, [10]))
        await take(sets, 1)
        await halves.rig.lose()
        with pytest.raises(RetryLater):
            async with asyncio.timeout(SECONDS_MAX):
                await asyncio.gather(writer.put(transaction(11, [11])), anext(sets))
        await writer.close()
        await reader.close()
        writer, _, _, sets = await halves.both()
        put = asyncio.create_task(writer.put(transaction(10, [1])))
        assert [ids_of(change) for change in await take(sets, 1)] == [[1]]
        await put

    async def test_a_reader_that_finds_nothing_asks_for_a_new_session(self, halves: Halves) -> None:
        """The buffer was lost while the sink's half was away: the source's half is told to replay."""
        writer, _, reader, _ = await halves.both()
        await reader.close()
        await halves.rig.lose()
        _, sets = await halves.reader()
        following = asyncio.ensure_future(anext(sets))
        with pytest.raises(RetryLater):
            async with asyncio.timeout(SECONDS_MAX):
                await anext(writer.progress())
        following.cancel()
        with contextlib.suppress(asyncio.CancelledError, RetryLater):
            await following

    async def test_what_the_destination_does_not_hold_is_never_passed_over(self, halves: Halves) -> None:
        """The reader's checkpoint is older than what the buffer still has: it asks for a replay and gives nothing."""
        writer, _, reader, sets = await halves.both()
        heard = writer.progress()
        await asyncio.gather(*(asyncio.create_task(writer.put(transaction(lsn, [lsn]))) for lsn in range(10, 20)))
        got = await take(sets, 10)
        await reader.done(progress_at(got[7]))
        async with asyncio.timeout(SECONDS_MAX):
            while (await anext(heard)).confirmed_through != 18:
                pass
        await self.until_forgotten(halves, 3)
        await reader.close()
        halves.store.checkpoint = checkpoint_at(Position(11, 0))  # a destination that was restored from a backup
        _, sets = await halves.reader()
        following = asyncio.ensure_future(anext(sets))
        with pytest.raises(SessionReplaced):
            async with asyncio.timeout(SECONDS_MAX):
                await anext(heard)
        assert not following.done()
        following.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await following

    async def test_a_snapshot_that_was_cut_is_replayed(self, halves: Halves) -> None:
        """Positions within a snapshot do not say what was copied, so a reader never resumes within one on its own."""
        writer, _, reader, sets = await halves.both()
        await asyncio.gather(*(asyncio.create_task(writer.put(part)) for part in _snapshots()))
        got = await take(sets, 4)
        await reader.done(progress_at(got[1]))
        await self.until_forgotten(halves, 3)
        halves.store.checkpoint = checkpoint_at(got[1].last)
        await reader.close()
        _, sets = await halves.reader()
        following = asyncio.ensure_future(anext(sets))
        with pytest.raises(SessionReplaced):
            await listen(writer)
        assert not following.done()
        following.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await following

    async def test_removing_leaves_nothing_behind(self, halves: Halves) -> None:
        """After `remove` the buffer holds nothing for the pipeline, and removing again is no error."""
        writer, _, _, _ = await halves.both()
        await writer.put(transaction(10, [10]))
        await writer.remove()
        await writer.remove()
        await self.until_forgotten(halves, 0)

    async def until_forgotten(self, halves: Halves, messages: int) -> None:
        """Wait until the buffer holds no more than so many messages."""
        raise NotImplementedError


def _snapshots() -> list[ChangeSet]:
    """Two tables' snapshots in two parts each; the second one's positions are smaller."""
    parts = []
    for table, ordinals in (("public.a", (100, 200)), ("public.b", (1, 2))):
        for number, ordinal in enumerate(ordinals):
            position = Position(5, ordinal)
            parts.append(
                ChangeSet(
                    items=(inserts(5, [ordinal]),),
                    first=position,
                    last=position,
                    begins=number == 0,
                    ends=number == 1,
                    commit_end_lsn=0,
                    commit_time=0,
                    transactions=number,
                    snapshot_of=table,
                    snapshot_ends=table == "public.b" and number == 1,
                )
            )
    return parts
