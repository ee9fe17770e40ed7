"""Which changes must wait behind a dead letter, so that every key's changes keep their order: pure, for every sink.

A key that has a dead letter is parked: what comes later for it joins its letters, until they are replayed or dropped. A
change of a key touches two of them, and parks both. Keys are known by a digest of their table and their text: a source
always names a row by the same text.

Called by sinks while there are dead letters, and by the replay. `parked` grows as rows are found to be behind.
"""

import hashlib
from collections.abc import Sequence

import msgspec
import numpy as np
import numpy.typing as npt

from dataplane.batch import ChangeBatch, TableSchema

DIGEST_BYTES = 16

Numbers = npt.NDArray[np.int64]

_encode = msgspec.json.Encoder().encode


def digest(table: TableSchema, key: Sequence[str | None]) -> bytes:
    """Return what a key is known by."""
    return hashlib.blake2b(
        _encode((table.schema, table.name, key)), digest_size=DIGEST_BYTES, usedforsecurity=False
    ).digest()


class Keys:
    """The digests of a batch's keys: each row's own, and the one before where the row changed its key."""

    def __init__(self, batch: ChangeBatch) -> None:
        table = batch.table
        columns = [batch.rows.column(at).to_pylist() for at, column in enumerate(table.columns) if column.key]
        self.new = [digest(table, key) for key in zip(*columns, strict=True)]
        self.old: dict[int, bytes] = {}
        if batch.old_keys is not None and batch.key_changed is not None:
            former = [column.to_pylist() for column in batch.old_keys.columns]
            for row in np.flatnonzero(batch.key_changed).tolist():
                self.old[row] = digest(table, [column[row] for column in former])

    @property
    def all(self) -> set[bytes]:
        """Every key that the batch touches."""
        return {*self.new, *self.old.values()}

    def of(self, row: int) -> tuple[bytes, ...]:
        """Return the keys that a row touches: one, or two."""
        old = self.old.get(row)
        return (self.new[row],) if old is None else (self.new[row], old)

    def is_behind(self, row: int, parked: set[bytes]) -> bool:
        """Say whether a row touches a parked key."""
        return any(key in parked for key in self.of(row))


def part(keys: Keys, parked: set[bytes]) -> tuple[Numbers, Numbers]:
    """Return the numbers of the rows that may go on, and of those that are behind; their keys are parked as well."""
    behind: list[int] = []
    kept: list[int] = []
    for row in range(len(keys.new)):
        if keys.is_behind(row, parked):
            behind.append(row)
            parked.update(keys.of(row))
        else:
            kept.append(row)
    return np.array(kept, dtype=np.int64), np.array(behind, dtype=np.int64)
