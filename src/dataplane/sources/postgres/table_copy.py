"""One table's copy: how far it has been read, and what its next chunk needs to know of it.

In flow the plan and the cursor that the destination holds; out flow the state that `copying` moves from chunk to chunk.
Made by the preparation of a session. No I/O.
"""

from dataclasses import dataclass, field

from dataplane.batch import Key, KeyRange, Position, TableSchema, Truncate
from dataplane.checkpoint import Cursor


@dataclass(slots=True)
class TableCopy:
    """One table's copy, and how far it has been read. `fresh` until its first chunk: the stream's rows are left out."""

    name: str
    oid: int
    copy: int
    resync: int
    whole: bool
    """It replaces rows that readers see: where ranges do not mean the same there, it comes in one transaction."""
    cursor: Cursor | None = None
    entered: bool = False
    """It came into the publication just now: those that write to it since before must end first."""
    index: int = 0
    last: Key | None = None
    key: list[str] = field(default_factory=list)
    rows: int = 0
    bytes: int = 0
    rows_estimated: int = 0
    through: int = 0
    moment: str | None = None
    read: bool = False
    settled: bool = False
    settled_by: int = 0
    """The number of the transaction that says so."""
    schema: TableSchema | None = None
    barrier: int = 0
    """The stream passes this before the next chunk: what has other columns than the chunk comes before it."""
    not_before: float = 0.0
    older: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        cursor = self.cursor
        if cursor is not None:
            self.index, self.key = cursor.chunks, cursor.key
            self.last = None if cursor.last is None else tuple(cursor.last)
            self.rows, self.bytes, self.through, self.moment = cursor.rows, cursor.bytes, cursor.through, cursor.moment
            self.read, self.settled = cursor.read, cursor.settled

    @property
    def fresh(self) -> bool:
        """Whether none of its chunks was given."""
        return self.index == 0

    @property
    def is_exact(self) -> bool:
        """Whether it is one chunk, and so a state that the source had."""
        return self.read and self.index == 1

    def start_over(self) -> None:
        """Begin a new copy."""
        self.copy += 1
        self.index = self.rows = self.bytes = 0
        self.last, self.key, self.schema, self.read, self.moment = None, [], None, False, None


def clearing(table: TableCopy, schema: TableSchema, only: KeyRange | None) -> tuple[Truncate, ...]:
    """Return what empties the chunk's place: its range, or before the first chunk all of the table."""
    if table.fresh:
        return (Truncate(schema, Position(0, 0), for_snapshot=True, only=only),)
    return () if only is None else (Truncate(schema, Position(0, 0), only=only),)
