"""The heads of the control plane's audit log that this node was given: kept here, so that history cannot be written anew.

Each answer to a sync brings the newest head, signed. Whoever has the control plane's keys can write a new history and sign
its head, but cannot make it end in a hash that was given out before: `pointsman audit verify --checkpoint FILE` takes this
file and compares. One envelope a line, oldest first; a head that says nothing new is not written.

The file is bounded. When it is full, every second line of its older half goes: what a line vouches for is everything before
it, so the line behind it vouches for the same and more. The link writes; `pointsman node checkpoints` reads.
"""

import os
from pathlib import Path

from msgspec import Struct

from contracts.audit import Checkpoint, open_checkpoint
from contracts.envelope import EnvelopeError, open_signed

FILE_NAME = "checkpoints.jsonl"
KEPT_MAX = 2_000
"""About 1.2 MB."""


class Kept(Struct, frozen=True):
    """A head as it was given, and what it says."""

    sealed: str
    checkpoint: Checkpoint


class WentBack(Exception):
    """The head is before the one that was kept last, or another one for the same entry. It is kept as well."""


class Checkpoints:
    """The heads that one node keeps. `folder` is the link's. Read at the first `take`."""

    def __init__(self, folder: Path, *, kept_max: int = KEPT_MAX) -> None:
        self._path = folder / FILE_NAME
        self._kept_max = kept_max
        self._kept: list[Kept] | None = None

    def take(self, sealed: str, *, tenant: str, keys: frozenset[str]) -> bool:
        """Keep a head if it is new; return whether it was.

        Raises:
            EnvelopeError: no trusted key signed it, or it is another tenant's.
            WentBack: it contradicts what was kept last.
            OSError: it could not be written.
        """
        checkpoint = open_checkpoint(sealed, keys)
        if checkpoint.tenant != tenant:
            raise EnvelopeError("the checkpoint of another tenant")
        if self._kept is None:
            self._kept = read(self._path)
            if self._path.exists() and not self._path.read_bytes().endswith(b"\n"):
                self._write(self._kept)  # a torn line would swallow the next one
        last = self._kept[-1].checkpoint if self._kept else None
        if last is not None and (last.sequence, last.hash) == (checkpoint.sequence, checkpoint.hash):
            return False
        if len(self._kept) >= self._kept_max:
            self._thin(self._kept)
        with self._path.open("a") as file:
            file.write(sealed + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._kept.append(Kept(sealed, checkpoint))
        if last is not None and checkpoint.sequence <= last.sequence:
            raise WentBack(f"entry {checkpoint.sequence} after entry {last.sequence}")
        return True

    def _thin(self, kept: list[Kept]) -> None:
        half = len(kept) // 2
        self._kept = [*kept[1:half:2], *kept[half:]]
        self._write(self._kept)

    def _write(self, kept: list[Kept]) -> None:
        draft = self._path.with_name(f".{FILE_NAME}.new")
        with draft.open("w") as file:
            file.writelines(each.sealed + "\n" for each in kept)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(self._path)


def read(path: Path) -> list[Kept]:
    """Return the heads in a file, oldest first; a line that is torn or no checkpoint is passed over.

    Their signatures were checked when they came, and whoever verifies an audit log checks them again.
    """
    found = []
    try:
        lines = path.read_text().splitlines()
    except (FileNotFoundError, UnicodeDecodeError):
        return []
    for line in lines:
        try:
            found.append(Kept(line, open_checkpoint(line, open_signed(line).key)))
        except EnvelopeError:
            continue
    return found
