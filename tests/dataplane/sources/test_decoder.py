"""The decoder across rows gives what one that reads row by row gives, however the stream is cut; odd bytes are refused."""

import contextlib
import struct
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.dataplane.sources import reference
from tests.dataplane.sources.reference import OMITTED, Decoded, Reference

from contracts.codes import Code
from dataplane.batch import ChangeSet, Column, Position, TableSchema, Truncate
from dataplane.failures import Permanent
from dataplane.sources.postgres.decoder import Decoder, Undescribed
from dataplane.sources.postgres.framing import Cutter, copy_data
from dataplane.sources.postgres.messages import Messages, Relation
from dataplane.sources.postgres.transactions import Assembler, Piece

OPS = "IUD"
TABLES = {1: "orders", 2: "items", 3: "notes"}


def schema_of(seen: Relation) -> TableSchema:
    return TableSchema(
        seen.schema, seen.name, tuple(Column(each.name, "text", each.type_oid, each.key, True) for each in seen.columns)
    )


def decoded(decoder: Decoder, piece: Piece) -> ChangeSet | None:
    """Decode one piece, and describe what it asks for."""
    try:
        return decoder.decode(piece)
    except Undescribed as undescribed:
        for seen in undescribed.relations:
            decoder.learn(seen, schema_of(seen))
        return decoder.decode(piece)


def as_read(payloads: Sequence[bytes]) -> list[Messages]:
    """Return messages as two reads of a socket find them, the first of which ended within a frame."""
    frames = b"".join(map(copy_data, payloads))
    cutter = Cutter()
    return [cutter.cut(frames[: len(frames) // 3]).messages, cutter.cut(frames[len(frames) // 3 :]).messages]


def decode(
    payloads: Sequence[bytes], *, chunk: int = 1_000_000, piece: int = 1_000_000, decoder: Decoder | None = None
) -> list[ChangeSet]:
    """Feed the stream in chunks, as it would arrive."""
    decoder = decoder or Decoder([f"public.{name}" for name in TABLES.values()])
    assembler = Assembler(piece_bytes_max=1 << 30, piece_messages_max=piece)
    sets = []
    for start in range(0, len(payloads), chunk):
        part = payloads[start : start + chunk]
        for cut in assembler.cut(as_read(part), sum(map(len, part))):
            change = decoded(decoder, cut)
            if change is not None:
                sets.append(change)
    assert assembler.idle
    return sets


def flat(sets: Sequence[ChangeSet]) -> list[Decoded]:
    """Write the sets in the reference's form, in the order of positions."""
    out: list[Decoded] = []
    for change in sets:
        for item in change.items:
            if isinstance(item, Truncate):
                out.append(Decoded("T", item.table.name, tuple(item.position), change.commit_time))
                continue
            item.rows.validate(full=True)
            old_keys = item.old_keys.to_pylist() if item.old_keys is not None else []
            for number, row in enumerate(item.rows.to_pylist()):
                values: list[object] = list(row.values())
                for index, flags in item.unchanged.items():
                    if flags[number]:
                        assert values[index] is None
                        values[index] = OMITTED
                changed = item.key_changed is not None and item.key_changed[number]
                out.append(
                    Decoded(
                        OPS[item.ops[number]],
                        item.table.name,
                        (int(item.commit_lsns[number]), int(item.ordinals[number])),
                        int(item.commit_times[number]),
                        tuple(values),
                        tuple(old_keys[number].values()) if changed else None,
                    )
                )
    return sorted(out, key=lambda each: each.position)


def timeless(rows: Sequence[Decoded]) -> list[Decoded]:
    """A truncate's own time is not kept."""
    return [Decoded(each.op, each.table, each.position, 0, each.row, each.old_key) for each in rows]


texts = st.one_of(
    st.none(),
    st.text(max_size=12).map(str.encode),
    st.sampled_from([b"", b"N", b"\\N", b"t\0\0\0\1", b"\xff\xfe", "ümlaut €".encode(), b"x" * 300]),
)
keys = st.text("abc", min_size=1, max_size=3).map(str.encode)


@st.composite
def streams(draw: st.DrawFn) -> list[bytes]:
    """Draw a stream as a server would send it."""
    payloads: list[bytes] = []
    shapes: dict[int, list[tuple[str, bool]]] = {}
    lsn = 0
    for _ in range(draw(st.integers(1, 6))):
        lsn += draw(st.integers(8, 1 << 40))
        commit_time = draw(st.integers(-(1 << 50), 1 << 50))
        payloads.append(reference.begin(lsn, commit_time))
        for _ in range(draw(st.integers(0, 12))):
            table = draw(st.sampled_from(sorted(TABLES)))
            if table not in shapes or draw(st.integers(0, 9)) == 0:
                others = draw(st.integers(0, 3))
                shapes[table] = [("id", True), *((f"c{number}", False) for number in range(others))]
                if draw(st.booleans()):
                    shapes[table].insert(draw(st.integers(0, len(shapes[table]))), ("part", True))
                payloads.append(reference.relation(table, TABLES[table], shapes[table]))
            payloads.append(draw(changes(table, shapes[table])))
        payloads.append(reference.commit(lsn, commit_time))
    return payloads


@st.composite
def changes(draw: st.DrawFn, table: int, shape: list[tuple[str, bool]]) -> bytes:
    """Draw one change of a row, or a truncate."""
    new = [draw(keys) if key else draw(texts) for _, key in shape]
    match draw(st.sampled_from(["I", "I", "U", "UK", "UO", "DK", "DO", "T"])):
        case "I":
            return reference.insert(table, new)
        case "U":
            return reference.update(table, _omitted(draw, new, shape))
        case "UK":
            old = [draw(keys) if key else None for _, key in shape]
            return reference.update(table, _omitted(draw, new, shape), ("K", old))
        case "UO":
            old = [draw(keys) if key else draw(texts) for _, key in shape]
            omitted = [OMITTED if draw(st.booleans()) else value for value in new]
            return reference.update(table, omitted, ("O", old))
        case "DK":
            return reference.delete(
                table, "K", [value if key else None for value, (_, key) in zip(new, shape, strict=True)]
            )
        case "DO":
            return reference.delete(table, "O", new)
        case _:
            return reference.truncate(table)


def _omitted(draw: st.DrawFn, new: list[bytes | None], shape: list[tuple[str, bool]]) -> list[object]:
    return [OMITTED if not key and draw(st.booleans()) else value for value, (_, key) in zip(new, shape, strict=True)]


class TestAgainstTheReference:
    """Random streams."""

    @settings(max_examples=80, deadline=None)
    @given(streams(), st.integers(1, 40), st.integers(1, 40))
    def test_every_cut_gives_the_same_rows(self, payloads: list[bytes], chunk: int, piece: int) -> None:
        """Rows, positions, times, old keys and unchanged values are those of the reference."""
        expected = Reference().decode(payloads)
        assert timeless(flat(decode(payloads))) == timeless(expected)
        cut = decode(payloads, chunk=chunk, piece=piece)
        assert timeless(flat(cut)) == timeless(expected)
        rows = [row for row in flat(cut) if row.op != "T"]
        assert [row.commit_time for row in rows] == [row.commit_time for row in expected if row.op != "T"]

    @settings(max_examples=50, deadline=None)
    @given(streams(), st.integers(1, 40), st.integers(1, 5))
    def test_sets_are_whole_transactions_or_parts_of_one(self, payloads: list[bytes], chunk: int, piece: int) -> None:
        """Every begin has its end before the next begin, and first and last are the positions of the rows."""
        inside = False
        for change in decode(payloads, chunk=chunk, piece=piece):
            assert change.begins is not inside
            inside = not change.ends
            rows = flat([change])
            if rows:
                assert change.first == rows[0].position
                assert change.last == rows[-1].position
            assert (change.commit_end_lsn > 0) is change.ends
            if change.ends:
                assert change.commit_end_lsn >= change.last.lsn + 8
            else:
                assert len({row.position[0] for row in rows}) == 1
        assert not inside

    @settings(max_examples=80, deadline=None)
    @given(streams(), st.data())
    def test_broken_bytes_are_refused_or_decoded_but_never_crash(
        self, payloads: list[bytes], data: st.DataObject
    ) -> None:
        """A changed or a missing byte gives Permanent, or rows of a valid message; never another error."""
        index = data.draw(st.integers(0, len(payloads) - 1))
        message = bytearray(payloads[index])
        at = data.draw(st.integers(25, len(message) - 1))
        if data.draw(st.booleans()):
            message[at] = data.draw(st.integers(0, 255))
        else:
            del message[at:]
        broken = [*payloads[:index], bytes(message), *payloads[index + 1 :]]
        decoder = Decoder([f"public.{name}" for name in TABLES.values()])
        assembler = Assembler(piece_bytes_max=1 << 30, piece_messages_max=1_000)
        with contextlib.suppress(Permanent):
            for cut in assembler.cut([Messages.of(broken)], sum(map(len, broken))):
                decoded(decoder, cut)


ITEMS = reference.relation(2, "items", [("id", True), ("name", False)])


class TestMessages:
    """What single messages do."""

    def test_an_unchanged_value_is_marked_and_not_null(self) -> None:
        """The flags say which row, and its value in the batch is null."""
        (change,) = decode(
            [
                reference.begin(8),
                ITEMS,
                reference.update(2, [b"1", OMITTED]),
                reference.update(2, [b"2", None]),
                reference.commit(8),
            ]
        )
        (batch,) = change.items
        assert not isinstance(batch, Truncate)
        assert batch.unchanged[1].tolist() == [True, False]
        assert batch.rows.column(1).to_pylist() == [None, None]

    def test_an_odd_byte_keeps_its_row_and_is_counted(self) -> None:
        """What is not UTF-8 comes as an escape."""
        decoder = Decoder(["public.items"])
        (change,) = decode(
            [
                reference.begin(8),
                ITEMS,
                reference.insert(2, [b"1", b"caf\xe9"]),
                reference.insert(2, [b"2", "é".encode()]),
                reference.commit(8),
            ],
            decoder=decoder,
        )
        (batch,) = change.items
        assert not isinstance(batch, Truncate)
        assert batch.rows.column(1).to_pylist() == ["caf\\xe9", "é"]
        assert decoder.undecodable_values == 1

    def test_a_table_that_left_the_pipeline_is_left_out(self) -> None:
        """Its rows still stand in the log from before it left; positions are counted as if they were given."""
        (change,) = decode(
            [
                reference.begin(8),
                reference.relation(9, "gone", [("id", True)]),
                reference.insert(9, [b"1"]),
                ITEMS,
                reference.insert(2, [b"1", b"a"]),
                reference.truncate(9),
                reference.commit(8),
            ]
        )
        assert [each.table for each in flat([change])] == ["items"]
        assert flat([change])[0].position == (8, 1)
        assert change.last == Position(8, 2)

    def test_what_a_copy_holds_is_left_out(self) -> None:
        """Rows of a table that were committed before its snapshot are not given; later ones are."""
        decoder = Decoder(["public.items"])
        decoder.skip_before("public.items", 100)
        payloads = []
        for lsn in (50, 100):
            payloads += [
                reference.begin(lsn),
                *([ITEMS] if lsn == 50 else []),
                reference.insert(2, [b"%d" % lsn, None]),
                reference.commit(lsn),
            ]
        assert [row.row[0] for row in flat(decode(payloads, decoder=decoder))] == ["100"]

    def test_a_large_transaction_whose_first_part_is_left_out_still_begins_and_ends(self) -> None:
        """The set with the first row begins it, and one without rows ends it."""
        gone = [reference.insert(9, [b"1"])] * 4
        payloads = [
            reference.begin(8),
            reference.relation(9, "gone", [("id", True)]),
            ITEMS,
            *gone,
            reference.insert(2, [b"1", b"a"]),
            *gone,
            reference.commit(8),
        ]
        sets = decode(payloads, chunk=1, piece=3)
        assert [(change.begins, change.ends, change.row_count) for change in sets] == [
            (True, False, 1),
            (False, True, 0),
        ]
        assert sets[1].commit_end_lsn == 16

    def test_empty_transactions_give_nothing(self) -> None:
        """A server before PostgreSQL 15 sends them."""
        assert decode([reference.begin(8), reference.commit(8), reference.begin(16), reference.commit(16)]) == []

    def test_a_changed_table_begins_a_new_batch(self) -> None:
        """Rows before and after ADD COLUMN never share one."""
        wider = reference.relation(2, "items", [("id", True), ("name", False), ("more", False)])
        (change,) = decode(
            [
                reference.begin(8),
                ITEMS,
                reference.insert(2, [b"1", b"a"]),
                reference.commit(8),
                reference.begin(16),
                wider,
                reference.insert(2, [b"2", b"b", b"c"]),
                reference.commit(16),
            ]
        )
        assert [len(item.table.columns) for item in change.items] == [2, 3]
        assert change.transactions == 2

    @pytest.mark.parametrize(
        "message",
        [
            reference.HEADER + b"?",
            reference.HEADER + b"B\0",
            reference.insert(2, [b"1"]),
            reference.insert(77, [b"1", b"a"]),
            reference.insert(2, [b"1", b"a"]) + b"x",
            reference.HEADER
            + b"I"
            + struct.pack(">I", 2)
            + b"N"
            + struct.pack(">H", 2)
            + b"t"
            + struct.pack(">I", 0xFFFFFFF0),
            reference.HEADER + b"I" + struct.pack(">I", 2) + b"N" + struct.pack(">H", 2) + b"bb",
            reference.HEADER,
        ],
        ids=["unknown", "short", "columns", "undescribed", "long", "length", "binary", "empty"],
    )
    def test_what_is_not_of_the_protocol_is_refused(self, message: bytes) -> None:
        """Nothing is guessed."""
        with pytest.raises(Permanent) as refused:
            decode([reference.begin(8), ITEMS, message, reference.commit(8)])
        assert refused.value.code is Code.SOURCE_PROTOCOL
