"""Transactions that are sent in progress give what protocol 1 gives for them, wherever they wait until they commit."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.dataplane.sources import reference
from tests.dataplane.sources.reference import Reference
from tests.dataplane.sources.test_decoder import TABLES, as_read, changes, decoded, flat, timeless

from contracts.codes import Code
from dataplane.batch import ChangeSet
from dataplane.failures import Permanent, RetryLater
from dataplane.sources.postgres.decoder import Decoder
from dataplane.sources.postgres.messages import Messages
from dataplane.sources.postgres.replication import stream_options
from dataplane.sources.postgres.spill import SLOT_BYTES, Chunk, Spill, SpillFile
from dataplane.sources.postgres.streamed import StreamedTransactions
from dataplane.sources.postgres.transactions import Assembler

SHAPES = {1: [("id", True), ("a", False)], 2: [("id", True)], 3: [("x", False), ("id", True), ("y", False)]}


def assembler_over(room: SpillFile, *, memory: int = 1 << 20, piece: int = 1_000) -> Assembler[Chunk]:
    """An assembler that takes transactions in progress."""
    streamed = StreamedTransactions(room, memory_bytes_max=memory, piece_bytes_max=1 << 30, piece_messages_max=piece)
    return Assembler(piece_bytes_max=1 << 30, piece_messages_max=piece, streamed=streamed)


def feed(assembler: Assembler[Chunk], payloads: Sequence[bytes], *, chunk: int = 1_000_000) -> list[ChangeSet]:
    """Feed a stream in chunks, as it would arrive."""
    decoder = Decoder([f"public.{name}" for name in TABLES.values()])
    sets = []
    for start in range(0, len(payloads), chunk):
        part = payloads[start : start + chunk]
        for piece in assembler.cut(as_read(part), sum(map(len, part))):
            change = decoded(decoder, piece)
            if change is not None:
                sets.append(change)
    assert assembler.idle
    return sets


@dataclass
class Transaction:
    """What one transaction does: messages, each with the number of its part; parts that are undone, and where."""

    xid: int
    lsn: int
    in_progress: bool
    messages: list[tuple[int, int, bytes]] = field(default_factory=list)
    """The part, the table (0 for a logical message) and the message."""
    undone: dict[int, int] = field(default_factory=dict)
    """Maps a part to the number of messages that stand before its abort."""


@st.composite
def transactions(draw: st.DrawFn) -> list[Transaction]:
    """Draw transactions in the order in which they commit."""
    made = []
    for number in range(draw(st.integers(1, 5))):
        xid = 100 * (number + 1)
        each = Transaction(xid, 1000 * (number + 1), draw(st.booleans()))
        for _ in range(draw(st.integers(0, 10))):
            living = [part for part in (xid, xid + 1, xid + 2) if part not in each.undone]
            part = draw(st.sampled_from(living))
            if draw(st.integers(0, 9)) == 0:
                each.messages.append((part, 0, reference.message("other", b"x" * 50, lsn=3)))
                continue
            table = draw(st.sampled_from(sorted(TABLES)))
            each.messages.append((part, table, draw(changes(table, SHAPES[table]))))
            if len(living) > 1 and draw(st.integers(0, 5)) == 0:
                each.undone[draw(st.sampled_from(living[1:]))] = len(each.messages)
        made.append(each)
    return made


def _described(table: int) -> bytes:
    return reference.relation(table, TABLES[table], SHAPES[table])


def plain(each: Transaction) -> list[bytes]:
    """The transaction as protocol 1 sends it."""
    payloads = [reference.begin(each.lsn, each.lsn)]
    for part, table, message in each.messages:
        if part not in each.undone:
            payloads += [_described(table), message] if table else [message]
    return [*payloads, reference.commit(each.lsn, each.lsn)]


def blocks(each: Transaction, sizes: Sequence[int]) -> list[list[bytes]]:
    """The transaction as it is sent in progress, cut into streams and what stands between them."""
    out: list[list[bytes]] = []
    cuts = sorted({min(size, len(each.messages)) for size in (0, *sizes)} | set(each.undone.values()))
    for start, stop in zip(cuts, [*cuts[1:], len(each.messages)], strict=True):
        parallel = each.xid % 200 == 0
        out += [
            [reference.stream_abort(each.xid, part, parallel=parallel)]
            for part, at in each.undone.items()
            if at == start
        ]
        block = [reference.stream_start(each.xid, first=start == 0)]
        for part, table, message in each.messages[start:stop]:
            block += [reference.inside(part, _described(table))] if table else []
            block.append(reference.inside(part, message))
        out.append([*block, reference.stream_stop()])
    out += [[reference.stream_abort(each.xid, part)] for part, at in each.undone.items() if at == len(each.messages)]
    return out


@st.composite
def streams(draw: st.DrawFn) -> tuple[list[bytes], list[bytes]]:
    """Draw the same transactions as protocol 1 sends them and as they are sent in progress, mixed with each other."""
    made = draw(transactions())
    first: list[bytes] = []
    second: list[bytes] = []
    waiting = [
        (each, blocks(each, draw(st.lists(st.integers(1, 10), max_size=3)))) for each in made if each.in_progress
    ]
    for each in made:
        first += plain(each)
        for other, rest in waiting:
            keep = 0 if other is each else draw(st.integers(0, len(rest)))
            while len(rest) > keep:
                second += rest.pop(0)
        if not each.in_progress:
            second += plain(each)
            continue
        second.append(reference.stream_commit(each.xid, each.lsn, each.lsn))
        waiting = [(other, rest) for other, rest in waiting if other is not each]
    if draw(st.booleans()):
        gone = Transaction(9000, 0, True, [(9000, 1, reference.insert(1, [b"1", b"gone"]))])
        second = [*blocks(gone, [])[0], *second, reference.stream_abort(9000, 9000)]
    return first, second


class TestAgainstProtocol1:
    """Random transactions, by either protocol."""

    @settings(max_examples=50, deadline=None)
    @given(streams(), st.integers(1, 30), st.integers(1, 20), st.sampled_from([0, 200, 1 << 20]))
    def test_both_protocols_give_the_same_rows_at_the_same_positions(
        self, both: tuple[list[bytes], list[bytes]], chunk: int, piece: int, memory: int
    ) -> None:
        """Undone parts leave nothing; it does not matter how the stream is cut, or what waits on disk."""
        first, second = both
        room = Spill(free_bytes_min=0).open()
        sets = feed(assembler_over(room, memory=memory, piece=piece), second, chunk=chunk)
        assert timeless(flat(sets)) == timeless(Reference().decode(first))
        assert room.used_bytes == 0
        room.close()
        inside = False
        for change in sets:
            assert change.begins is not inside
            inside = not change.ends
            assert change.first <= change.last
        ends = [change.commit_end_lsn for change in sets if change.ends]
        assert ends == sorted(ends)

    @settings(max_examples=50, deadline=None)
    @given(streams(), st.data())
    def test_broken_bytes_are_refused_or_decoded_but_never_crash(
        self, both: tuple[list[bytes], list[bytes]], data: st.DataObject
    ) -> None:
        """A changed, a missing or a repeated message gives Permanent, or rows; never another error, nor an endless loop."""
        payloads = list(both[1])
        index = data.draw(st.integers(0, len(payloads) - 1))
        match data.draw(st.sampled_from(["byte", "cut", "drop", "twice", "swap"])):
            case "byte":
                message = bytearray(payloads[index])
                message[data.draw(st.integers(25, len(message) - 1))] = data.draw(st.integers(0, 255))
                payloads[index] = bytes(message)
            case "cut":
                payloads[index] = payloads[index][: data.draw(st.integers(0, len(payloads[index]) - 1))]
            case "drop":
                del payloads[index]
            case "twice":
                payloads.insert(index, payloads[index])
            case _:
                payloads[index], payloads[-1] = payloads[-1], payloads[index]
        room = Spill(free_bytes_min=0).open()
        decoder = Decoder([f"public.{name}" for name in TABLES.values()])
        with contextlib.suppress(Permanent):
            for piece in assembler_over(room, memory=300, piece=5).cut(
                [Messages.of(payloads)], sum(map(len, payloads))
            ):
                decoded(decoder, piece)
        room.close()


def opened(xid: int, *messages: bytes, relation: int = 2) -> list[bytes]:
    """A stream of a transaction in progress, its table described first."""
    inner = [_described(relation), *messages]
    return [reference.stream_start(xid), *(reference.inside(xid, each) for each in inner), reference.stream_stop()]


class TestDescriptions:
    """A table is described once in each transaction in progress; what holds afterwards is the newest."""

    def test_a_description_that_came_later_holds_after_an_older_transaction_ends(self) -> None:
        """Its own rows are read as they were written, and those of later transactions as they are now."""
        wider = reference.relation(2, "items", [("id", True), ("more", False)])
        payloads = [
            *opened(7, reference.insert(2, [b"1"])),
            reference.begin(8),
            wider,
            reference.insert(2, [b"2", b"b"]),
            reference.commit(8),
            reference.stream_commit(7, 16),
            reference.begin(24),
            reference.insert(2, [b"3", b"c"]),
            reference.commit(24),
        ]
        rows = flat(feed(assembler_over(Spill().open()), payloads))
        assert [row.row for row in rows] == [("2", "b"), ("1",), ("3", "c")]

    def test_the_newest_of_two_transactions_in_progress_holds(self) -> None:
        """Whichever of them commits first."""
        wider = reference.relation(2, "items", [("id", True), ("more", False)])
        payloads = [
            *opened(7, reference.insert(2, [b"1"])),
            reference.stream_start(9),
            reference.inside(9, wider),
            reference.inside(9, reference.insert(2, [b"2", b"b"])),
            reference.stream_stop(),
            reference.stream_commit(9, 8),
            reference.stream_commit(7, 16),
            reference.begin(24),
            reference.insert(2, [b"3", b"c"]),
            reference.commit(24),
        ]
        rows = flat(feed(assembler_over(Spill().open()), payloads))
        assert [row.row for row in rows] == [("2", "b"), ("1",), ("3", "c")]


class TestMessages:
    """What `pg_logical_emit_message` writes tells how far the stream has come, and nothing else."""

    def test_ours_are_heard_and_those_of_others_are_not(self) -> None:
        """The newest one is kept, wherever it stands; no row gets another number for it."""
        payloads = [
            reference.begin(8),
            _described(2),
            reference.message("pointsman", b"1", lsn=5),
            reference.insert(2, [b"1"]),
            reference.message("outbox", b"secret", lsn=6),
            reference.insert(2, [b"2"]),
            reference.commit(8),
            *opened(7, reference.message("pointsman", b"2", lsn=20), reference.insert(2, [b"3"])),
            reference.message("outbox", b"secret", lsn=30, transactional=False),
            reference.stream_commit(7, 40),
        ]
        assembler = assembler_over(Spill().open())
        rows = flat(feed(assembler, payloads))
        assert [tuple(row.position) for row in rows] == [(8, 0), (8, 1), (40, 0)]
        assert assembler.heard is not None
        assert (assembler.heard.lsn, assembler.heard.content) == (20, b"2")
        assert assembler.reached == 48

    @pytest.mark.parametrize("in_progress", [False, True])
    def test_a_message_alone_says_how_far_the_stream_has_come(self, in_progress: bool) -> None:
        """One outside of transactions by its own position, one of a transaction by that transaction's end."""
        assembler = assembler_over(Spill().open())
        assert feed(assembler, [reference.message("pointsman", b"", lsn=77, transactional=False)]) == []
        assert assembler.reached == 77
        beat = reference.message("pointsman", b"", lsn=90)
        if in_progress:
            payloads = [reference.stream_start(7), reference.inside(7, beat), reference.stream_stop()]
            payloads.append(reference.stream_commit(7, 100))
        else:
            payloads = [reference.begin(100), beat, reference.commit(100)]
        assert feed(assembler, payloads) == []
        assert assembler.reached == 108

    def test_a_large_message_is_not_kept(self) -> None:
        """Neither while its transaction is open, nor while that is in progress."""
        huge = reference.message("outbox", bytes(5 << 20), lsn=6)
        assembler = assembler_over(Spill().open(), memory=10 << 20)
        assert list(assembler.cut([Messages.of([reference.begin(8), huge])], len(huge))) == []
        assert assembler.waiting_bytes < 1000
        assert len(list(assembler.cut([Messages.of([reference.commit(8)])], 51))) == 1
        list(assembler.cut([Messages.of([reference.stream_start(7), reference.inside(7, huge)])], len(huge)))
        assert assembler.waiting_bytes < 1000

    @pytest.mark.parametrize("cut", [26, 30, 35, 40, -1])
    def test_a_message_that_is_cut_is_refused(self, cut: int) -> None:
        """Nothing is guessed of it."""
        payload = reference.message("pointsman", b"content")[:cut]
        with pytest.raises(Permanent) as refused:
            list(assembler_over(Spill().open()).cut([Messages.of([payload])], len(payload)))
        assert refused.value.code is Code.SOURCE_PROTOCOL


class TestRoom:
    """What waits on disk."""

    def test_memory_is_bounded_and_room_is_used_again(self, tmp_path: Path) -> None:
        """The file has no name, so a killed worker leaves nothing, and is as large as what was open at one time."""
        room = Spill(tmp_path, free_bytes_min=0).open()
        assembler = assembler_over(room, memory=1 << 20)
        used = []
        for number in range(4):
            rows = [reference.insert(2, [b"%d" % n + b"x" * 1000]) for n in range(4_000)]
            sets = feed(assembler, [*opened(7 + number, *rows), reference.stream_abort(7 + number, 99)], chunk=100)
            assert sets == []
            assert assembler.waiting_bytes < 2 << 20
            assert list(tmp_path.iterdir()) == []
            used.append(room.used_bytes)
            sets = feed(assembler, [reference.stream_commit(7 + number, 8 * (number + 1))])
            assert sum(change.row_count for change in sets) == 4_000
            assert room.used_bytes == 0
        assert max(used) <= 8 * SLOT_BYTES * 4
        room.close()

    @pytest.mark.parametrize("full", ["room", "disk", "folder"])
    def test_a_full_disk_is_said_and_kept_in_mind(self, tmp_path: Path, full: str) -> None:
        """The next session asks for nothing in progress, until some time has passed."""
        now = [0.0]
        spill = Spill(
            tmp_path / "missing" if full == "folder" else tmp_path,
            bytes_max=SLOT_BYTES if full == "room" else 1 << 40,
            free_bytes_min=1 << 60 if full == "disk" else 0,
            clock=lambda: now[0],
        )
        room = spill.open()
        assembler = assembler_over(room, memory=0)
        rows = [reference.insert(2, [b"x" * SLOT_BYTES])] * 2
        assert spill.is_available
        with pytest.raises(RetryLater) as refused:
            feed(assembler, opened(7, *rows))
        room.close()
        assert refused.value.code is Code.SOURCE_SPILL_FAILED
        assert not spill.is_available
        now[0] = 3600.0
        assert spill.is_available


@pytest.mark.parametrize(
    ("version", "in_progress", "protocol"),
    [
        (140022, True, "proto_version '2', streaming 'on'"),
        (150019, True, "proto_version '2', streaming 'on'"),
        (160000, True, "proto_version '4', streaming 'parallel'"),
        (180006, True, "proto_version '4', streaming 'parallel'"),
        (180006, False, "proto_version '1'"),
    ],
)
def test_the_protocol_is_that_of_the_server(version: int, in_progress: bool, protocol: str) -> None:
    """Messages are asked for in each of them, two-phase commit in none."""
    assert stream_options(version, "p", in_progress=in_progress) == (
        f"{protocol}, publication_names '\"p\"', messages 'true'"
    )
