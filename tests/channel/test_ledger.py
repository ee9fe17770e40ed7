"""The boundary ledger holds everything that left a node, and shows when somebody changed it."""

import errno
import gzip
import json
import random
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from tests.channel.conftest import TestNode
from tests.channel.servers import until

from contracts import v2
from contracts.codes import Code
from contracts.envelope import decode_report, open_signed
from contracts.keys import KeyPair, Role
from dataplane.link.ledger import Ledger, LedgerDamaged, Tally, check, entries, newest_number, tallies
from dataplane.link.uplink import SequenceCounter, Uplink

KEY = KeyPair.generate(Role.USER)
OWN = frozenset({KEY.public})
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


Gate = Callable[..., Uplink]


@pytest.fixture
def gate(folder: Path) -> Gate:
    """Make the gate of a node whose process has just started; the one before it was killed."""

    def start(**limits: int) -> Uplink:
        ledger = Ledger(folder / "ledger", clock=lambda: NOW, **limits)
        return Uplink("node-1", KEY, SequenceCounter(folder), ledger, contract=2)

    return start


def _error(count: int) -> v2.ErrorReport:
    return v2.ErrorReport(code=Code.WORKER_EXITED, at=NOW, count=count)


def _counts(folder: Path) -> list[int]:
    found = []
    for entry in entries(folder / "ledger"):
        signed = open_signed(bytes(entry.sealed))
        report = decode_report(bytes(signed.body), signed.contract)
        assert isinstance(report.message, v2.ErrorReport)
        found.append(report.message.count)
    return found


def test_every_message_is_noted_before_anybody_gets_it(folder: Path, gate: Gate) -> None:
    """The entry holds the very bytes that left, and who reads them sees the message."""
    uplink = gate()
    sent = [uplink.seal(_error(count))[1] for count in range(1, 4)]
    uplink.seal(v2.SyncRequest())
    noted = list(entries(folder / "ledger"))
    assert [bytes(entry.sealed) for entry in noted[:3]] == sent
    assert [(entry.number, entry.type) for entry in noted] == [(1, "error"), (2, "error"), (3, "error"), (4, "sync")]
    assert tallies(folder / "ledger")["error"] == Tally(3, sum(map(len, sent)))
    assert check(folder / "ledger", keys=OWN) == (4, [])


def test_what_cannot_be_noted_does_not_leave(folder: Path, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a full disk nobody gets the sealed message; afterwards the chain goes on without a hole."""
    uplink = gate()
    uplink.seal(_error(1))
    write = Ledger._write

    def half(ledger: Ledger, line: bytes) -> None:
        write(ledger, line[: len(line) // 2])
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr(Ledger, "_write", half)
    with pytest.raises(OSError, match="no space left"):
        uplink.seal(_error(2))
    monkeypatch.undo()
    uplink.seal(_error(3))
    assert _counts(folder) == [1, 3]
    assert check(folder / "ledger", keys=OWN) == (2, [])


def test_a_process_that_is_killed_goes_on_where_it_was(folder: Path, gate: Gate) -> None:
    """A torn last line never left: it is cut off, and numbers, hashes and counts go on."""
    for count in range(1, 6):
        gate(segment_bytes_max=1200).seal(_error(count))
        newest = max((folder / "ledger").glob("*.jsonl"))
        with newest.open("ab") as file:
            file.write(b'{"number":9,"torn')
    assert _counts(folder) == [1, 2, 3, 4, 5]
    assert check(folder / "ledger", keys=OWN) == (5, [])
    assert tallies(folder / "ledger")["error"].messages == 5


def test_counts_and_chain_outlive_what_is_let_go(folder: Path, gate: Gate) -> None:
    """The oldest segments go at the bound; what they held is still counted, and what is left still verifies."""
    uplink = gate(segment_bytes_max=2000, segments_max=2)
    for count in range(1, 101):
        uplink.seal(_error(count))
    left = _counts(folder)
    assert left[-1] == 100
    assert 1 < left[0] < 100
    assert left == list(range(left[0], 101))
    assert tallies(folder / "ledger")["error"].messages == 100
    assert check(folder / "ledger", keys=OWN) == (len(left), [])
    assert [entry.number for entry in entries(folder / "ledger", after=97)] == [98, 99, 100]
    assert newest_number(folder / "ledger") == 100


def test_a_damaged_end_is_not_written_over(folder: Path, gate: Gate) -> None:
    """A newest segment that cannot be read stops what goes up, because the chain could not go on from it."""
    gate().seal(_error(1))
    (segment,) = (folder / "ledger").glob("*.jsonl")
    segment.write_bytes(segment.read_bytes() + b"not JSON\n")
    with pytest.raises(LedgerDamaged):
        gate().seal(_error(2))


def _edit(lines: list[dict[str, Any]], random_: random.Random) -> None:
    line = random_.choice(lines[1:])
    line["sealed"]["body"]["message"]["count"] += 1


def _remove(lines: list[dict[str, Any]], random_: random.Random) -> None:
    del lines[random_.randrange(1, len(lines) - 1)]


def _swap(lines: list[dict[str, Any]], random_: random.Random) -> None:
    at = random_.randrange(1, len(lines) - 1)
    lines[at], lines[at + 1] = lines[at + 1], lines[at]


def _insert(lines: list[dict[str, Any]], random_: random.Random) -> None:
    lines.insert(random_.randrange(1, len(lines)), dict(random_.choice(lines[1:])))


@pytest.mark.parametrize("tamper", [_edit, _remove, _swap, _insert], ids=lambda each: each.__name__.strip("_"))
@pytest.mark.parametrize("seed", range(10))
def test_tampering_shows(
    folder: Path, gate: Gate, tamper: Callable[[list[dict[str, Any]], random.Random], None], seed: int
) -> None:
    """An entry that is edited, taken out, moved or put in is found, wherever it stands, compressed or not."""
    random_ = random.Random(seed)
    uplink = gate(segment_bytes_max=random_.choice([2000, 1 << 20]))
    for count in range(1, 21):
        uplink.seal(_error(count))
    segments = [path for path in sorted((folder / "ledger").iterdir()) if len(_lines(path)) > 3]
    path = random_.choice(segments)
    lines = _lines(path)
    tamper(lines, random_)
    data = b"".join(json.dumps(line, separators=(",", ":")).encode() + b"\n" for line in lines)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    assert check(folder / "ledger", keys=OWN)[1]


def test_a_foreign_signature_shows(folder: Path, gate: Gate) -> None:
    """A whole ledger that somebody else wrote is not this node's."""
    gate().seal(_error(1))
    stranger = frozenset({KeyPair.generate(Role.USER).public})
    assert [finding.number for finding in check(folder / "ledger", keys=stranger)[1]] == [1]


def _lines(path: Path) -> list[dict[str, Any]]:
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return [json.loads(line) for line in data.splitlines()]


async def test_all_that_a_real_node_sends_is_in_its_ledger(make_node: Any) -> None:
    """Whatever arrived above carries a number that the node's own ledger holds."""
    node: TestNode = await make_node()
    await until(lambda: node.link.synced_at is not None)
    await node.link.send_fact(_error(1))
    await until(lambda: node.link.facts_waiting == 0)
    folder = node.folder / "link" / "ledger"
    kinds = {entry.type for entry in entries(folder)}
    assert {"sync", "error"} <= kinds
    assert check(folder, keys=frozenset({node.key.public}))[1] == []
