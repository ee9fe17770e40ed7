"""Facts on their way up: what must arrive, kept on the customer's side until the control plane has committed it.

A fact is sealed and written to the node's own outbox, put into a stream of the leaf, and forwarded from there to the
control plane; only its receipt removes it. The outbox is what counts: the stream may be deleted at any moment and is
filled again from it. What the stream adds is that another node can forward for one that died.

Nothing is lost by a crash in between: a fact may travel twice, and the control plane takes each (node, number) once. The
outbox is bounded: past the bound its facts collapse into one REPORTS_OVERFLOWED, and the next heartbeat says how
everything stands now.
"""

import os
from pathlib import Path

FACTS_MAX = 2_000


class Outbox:
    """The facts of one node that have no receipt yet, one file each, named by the fact's number."""

    def __init__(self, folder: Path, *, facts_max: int = FACTS_MAX) -> None:
        self._folder = folder
        self._facts_max = facts_max
        folder.mkdir(parents=True, exist_ok=True)
        self._sequences = sorted(int(path.stem) for path in folder.glob("*.json") if path.stem.isdigit())

    def __len__(self) -> int:
        return len(self._sequences)

    @property
    def is_full(self) -> bool:
        """Whether the next fact would pass the bound."""
        return len(self._sequences) >= self._facts_max

    def sequences(self) -> list[int]:
        """Return the numbers of the facts that wait, oldest first."""
        return list(self._sequences)

    def add(self, sequence: int, envelope: bytes) -> None:
        """Keep a sealed fact."""
        path = self._path(sequence)
        draft = path.with_suffix(".new")
        with draft.open("wb") as file:
            file.write(envelope)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
        self._sequences.append(sequence)

    def get(self, sequence: int) -> bytes | None:
        """Return a sealed fact; None when it has its receipt."""
        try:
            return self._path(sequence).read_bytes()
        except FileNotFoundError:
            return None

    def remove(self, sequence: int) -> None:
        """Forget a fact that has its receipt. One that is not here is none of ours."""
        if sequence in self._sequences:
            self._sequences.remove(sequence)
            self._path(sequence).unlink(missing_ok=True)

    def clear(self) -> int:
        """Forget all facts and return how many they were: they collapse into one that says so."""
        count = len(self._sequences)
        for sequence in self.sequences():
            self.remove(sequence)
        return count

    def _path(self, sequence: int) -> Path:
        return self._folder / f"{sequence:020d}.json"
