"""The boundary ledger: everything that ever left this node for the control plane, on the customer's disk, in a chain.

The uplink hands in each sealed message before it can leave; `pointsman node ledger` lists, counts, checks and exports
them. A message that cannot be noted does not leave: with a full disk nothing goes up, and rows flow on.

An entry is one line of JSON with the sealed message whole, so it shows what left and that this node signed it. Its hash
covers itself and the entry before, so a line that is edited, taken out or put elsewhere shows. Lines lie in segments of
bounded size; one that is full is compressed, and the oldest goes once there are too many. Each segment begins with the hash
and the counts of all that came before it, so the chain and the counts outlive what was let go.

A torn last line is a message that never left, and is cut off. Entries reach the disk within a second of being written, so
a machine that loses its power may lose those of its last second; a process that is killed loses none.
"""

import gzip
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from contracts.envelope import EnvelopeError, Purpose, open_signed, verify

FOLDER = "ledger"
SEGMENT_BYTES_MAX = 8 << 20
SEGMENTS_MAX = 256
"""A busy node writes some 20 MiB a day, a twelfth of it once compressed: this is at least three months."""
SYNC_SECONDS = 1.0
GENESIS = "0" * 64
"""Stands for the hash before the first entry."""
FINDINGS_MAX = 100


class Tally(Struct, frozen=True):
    """How many messages of one type, and how many bytes they had, sealed."""

    messages: int = 0
    bytes: int = 0


class Head(Struct, frozen=True, kw_only=True):
    """The first line of a segment: where the chain stood, and what had left before."""

    number: int
    """That of the segment's first entry."""
    previous: str
    tallies: dict[str, Tally]


class Entry(Struct, frozen=True, kw_only=True):
    """One message that left. `number` counts from 1 without a gap; `hash` covers all other fields and `previous`."""

    number: int
    at: datetime
    type: str
    sealed: msgspec.Raw
    """The signed report, the very bytes that left."""
    previous: str
    hash: str = ""


class Finding(Struct, frozen=True):
    """Something that does not hold. `number` is that of the entry where it shows."""

    number: int
    problem: str


class LedgerDamaged(OSError):
    """The newest segment cannot be read, so the chain cannot go on. Nothing leaves until a person has looked."""


_HEADS = msgspec.json.Decoder(Head)
_ENTRIES = msgspec.json.Decoder(Entry)


def entry_hash(entry: Entry) -> str:
    """Return the SHA-256 in hex of everything in `entry` but its hash."""
    return hashlib.sha256(msgspec.json.encode(replace(entry, hash=""))).hexdigest()


class Ledger:
    """The ledger of one node, for writing. One process at a time: the agent. Read at the first `note`, never held open."""

    def __init__(
        self,
        folder: Path,
        *,
        segment_bytes_max: int = SEGMENT_BYTES_MAX,
        segments_max: int = SEGMENTS_MAX,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._folder = folder
        self._segment_bytes_max = segment_bytes_max
        self._segments_max = segments_max
        self._clock = clock
        self._path: Path | None = None
        self._size = 0
        self._number = 1
        self._previous = GENESIS
        self._tallies: dict[str, Tally] = {}
        self._synced_at = 0.0

    def note(self, kind: str, sealed: bytes) -> None:
        """Write down one sealed message. Only once this has returned it may leave.

        Raises:
            OSError: it could not be written.
            LedgerDamaged: what is there cannot be continued.
        """
        if self._path is None:
            self._open()
        entry = Entry(
            number=self._number, at=self._clock(), type=kind, sealed=msgspec.Raw(sealed), previous=self._previous
        )
        digest = entry_hash(entry)
        line = msgspec.json.encode(replace(entry, hash=digest)) + b"\n"
        try:
            self._write(line)
        except OSError:
            self._path = None  # a part of the line may be there: opening cuts it off
            raise
        self._number, self._previous = self._number + 1, digest
        self._tallies[kind] = _plus(self._tallies.get(kind, Tally()), len(sealed))
        if self._size >= self._segment_bytes_max:
            self._roll()

    def _open(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        open_ones = sorted(self._folder.glob("*.jsonl"))
        for path in open_ones[:-1]:
            _compress(path)  # it was full, and the process ended before this
        if open_ones:
            self._continue(open_ones[-1])
        elif closed := _segments(self._folder):
            self._follow(closed[-1])
        else:
            self._begin()

    def _continue(self, path: Path) -> None:
        whole = 0
        head: Head | None = None
        try:
            for line in path.read_bytes().splitlines(keepends=True):
                if not line.endswith(b"\n"):
                    break
                whole += len(line)
                if head is None:
                    head = _HEADS.decode(line)
                    self._number, self._previous, self._tallies = head.number, head.previous, dict(head.tallies)
                else:
                    self._pass(_ENTRIES.decode(line))
        except msgspec.DecodeError as error:
            raise LedgerDamaged(f"{path} is damaged") from error
        if head is None:
            path.unlink()
            self._open()
            return
        os.truncate(path, whole)
        self._path, self._size = path, whole

    def _follow(self, path: Path) -> None:
        """Begin a segment behind the closed one at `path`."""
        try:
            head, entries = _read(path)
            self._number, self._previous, self._tallies = head.number, head.previous, dict(head.tallies)
            for entry in entries:
                self._pass(entry)
        except (msgspec.DecodeError, OSError, EOFError) as error:
            raise LedgerDamaged(f"{path} is damaged") from error
        self._begin()

    def _pass(self, entry: Entry) -> None:
        self._number, self._previous = entry.number + 1, entry.hash
        self._tallies[entry.type] = _plus(self._tallies.get(entry.type, Tally()), len(bytes(entry.sealed)))

    def _begin(self) -> None:
        self._path, self._size = self._folder / f"{self._number:020d}.jsonl", 0
        self._write(
            msgspec.json.encode(Head(number=self._number, previous=self._previous, tallies=self._tallies)) + b"\n"
        )

    def _write(self, line: bytes) -> None:
        assert self._path is not None
        now = time.monotonic()
        with self._path.open("ab", buffering=0) as file:
            written = file.write(line)
            if written != len(line):
                raise OSError(f"only {written} of {len(line)} bytes were written")
            if now >= self._synced_at + SYNC_SECONDS:
                os.fsync(file.fileno())
                self._synced_at = now
        self._size += len(line)

    def _roll(self) -> None:
        assert self._path is not None
        full = self._path
        self._begin()
        _compress(full)
        for old in _segments(self._folder)[: -self._segments_max]:
            old.unlink()


def entries(folder: Path, *, after: int = 0) -> Iterator[Entry]:
    """Give the entries with numbers beyond `after` that are still here, in order. The agent may be writing meanwhile.

    Raises:
        msgspec.DecodeError: a line is damaged; `check` says which.
    """
    paths = _segments(folder)
    for at, path in enumerate(paths):
        if path is paths[-1] or _first_number(paths[at + 1]) > after + 1:
            yield from (entry for entry in _read(path)[1] if entry.number > after)


def newest_number(folder: Path) -> int:
    """Return the number of the newest entry, 0 without one; only the newest segment is read.

    Raises:
        msgspec.DecodeError: a line of it is damaged.
    """
    paths = _segments(folder)
    if not paths:
        return 0
    head, inside = _read(paths[-1])
    return head.number - 1 + sum(1 for _ in inside)


def tallies(folder: Path) -> dict[str, Tally]:
    """Return what has left in all, by type of message, also what is no longer here."""
    paths = _segments(folder)
    if not paths:
        return {}
    head, inside = _read(paths[-1])
    found = dict(head.tallies)
    for entry in inside:
        found[entry.type] = _plus(found.get(entry.type, Tally()), len(bytes(entry.sealed)))
    return found


def check(folder: Path, *, keys: frozenset[str]) -> tuple[int, list[Finding]]:
    """Check every entry that is here: its hash, its place in the chain, and that one of `keys` signed the message.

    Returns:
        How many entries were looked at, and every finding, FINDINGS_MAX at most.
    """
    count = 0
    findings: list[Finding] = []
    expected: int | None = None
    previous = GENESIS
    for path in _segments(folder):
        try:
            head, inside = _read(path)
            if expected is None:
                expected, previous = head.number, head.previous
            findings.extend(_follows(head.number, head.previous, expected, previous))
            for entry in inside:
                count += 1
                findings.extend(_follows(entry.number, entry.previous, expected, previous))
                if entry_hash(entry) != entry.hash:
                    findings.append(Finding(entry.number, "was edited: its hash does not match its content"))
                findings.extend(_unsigned(entry, keys))
                expected, previous = entry.number + 1, entry.hash
        except (msgspec.DecodeError, OSError, EOFError):
            findings.append(
                Finding(expected or _first_number(path), f"segment {path.name} cannot be read from here on")
            )
            expected = None
        if len(findings) >= FINDINGS_MAX:
            break
    return count, findings[:FINDINGS_MAX]


def _follows(number: int, before: str, expected: int, previous: str) -> list[Finding]:
    if number != expected:
        return [Finding(number, f"stands where number {expected} belongs")]
    if before != previous:
        return [Finding(number, "does not follow from the entry before it")]
    return []


def _unsigned(entry: Entry, keys: frozenset[str]) -> list[Finding]:
    try:
        verify(open_signed(bytes(entry.sealed)), keys=keys, purpose=Purpose.REPORT)
    except EnvelopeError as error:
        return [Finding(entry.number, f"the message is not this node's: {error}")]
    return []


def _plus(tally: Tally, size: int) -> Tally:
    return Tally(tally.messages + 1, tally.bytes + size)


def _segments(folder: Path) -> list[Path]:
    """Return the segments, oldest first. One that is just being compressed is there twice and counts once."""
    found = {path.name.partition(".")[0]: path for path in folder.glob("*.jsonl.gz")}
    found |= {path.name.partition(".")[0]: path for path in folder.glob("*.jsonl")}
    return [found[number] for number in sorted(found)]


def _first_number(path: Path) -> int:
    return int(path.name.partition(".")[0])


def _read(path: Path) -> tuple[Head, Iterator[Entry]]:
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except FileNotFoundError:  # compressed since its name was read
        data = gzip.decompress(path.with_name(path.name + ".gz").read_bytes())
    lines = data.splitlines(keepends=True)
    if path.suffix != ".gz" and lines and not lines[-1].endswith(b"\n"):
        lines.pop()  # being written, or torn
    if not lines:
        raise msgspec.DecodeError("the segment is empty")
    return _HEADS.decode(lines[0]), map(_ENTRIES.decode, lines[1:])


def _compress(path: Path) -> None:
    draft = path.with_name(path.name + ".new")
    with draft.open("wb") as file:
        file.write(gzip.compress(path.read_bytes(), mtime=0))
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path.with_name(path.name + ".gz"))
    path.unlink()
