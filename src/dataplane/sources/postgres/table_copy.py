"""One table's copy: how far it has been read, and what its next chunk needs to know of it.

In flow the plan and the cursor that the destination holds; out flow the state that `copying` moves from chunk to chunk.
Made by the preparation of a session. No I/O.
"""

from dataclasses import dataclass, field

from contracts.backfilling import Backfill, Condition, removes
from dataplane.batch import Key, KeyRange, Position, TableSchema, Truncate
from dataplane.checkpoint import Cursor


@dataclass(slots=True)
class TableCopy:
    """One table's copy, and how far it has been read: all of it, or a `part` of a table that is whole.

    `fresh` until its first chunk. Until then the stream's rows of a table that is copied as a whole are left out.
    """

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
    backfill: int = 0
    part: bool = False
    where: tuple[Condition, ...] = ()
    following: Backfill | None = None
    """A copy of a part that was asked for while this copy of the whole was on its way; it comes next."""
    paused: bool = False
    """No chunk of it is read in this session."""
    whole_before: bool = False
    """The table is whole and followed the stream when the session began."""

    def __post_init__(self) -> None:
        cursor = self.cursor
        if cursor is not None:
            self.index, self.key = cursor.chunks, cursor.key
            self.last = None if cursor.last is None else tuple(cursor.last)
            self.rows, self.bytes, self.through, self.moment = cursor.rows, cursor.bytes, cursor.through, cursor.moment
            self.read, self.settled, self.part = cursor.read, cursor.settled, cursor.part

    @property
    def fresh(self) -> bool:
        """Whether none of its chunks was given."""
        return self.index == 0

    @property
    def is_exact(self) -> bool:
        """Whether it is one chunk, and so a state that the source had. A part never is: the rows around it are of earlier."""
        return self.read and self.index == 1 and not self.part

    @property
    def needs_values(self) -> bool:
        """Whether updates that the stream brings may need values that they do not carry."""
        return not (self.settled or self.is_exact or (self.fresh and self.paused and self.whole_before))

    @property
    def streams(self) -> bool:
        """Whether the stream's rows of it go on, although no chunk was given: what is at the destination follows them."""
        return self.part or (self.paused and self.whole_before)

    @property
    def waits(self) -> bool:
        """Whether somebody has to say that it goes on."""
        return self.paused and not self.read

    def empties(self, schema: TableSchema) -> bool:
        """Say whether a chunk takes the place of what the destination has there, and else goes over it."""
        key_types = {column.name: column.type for column in schema.columns if column.key}
        return not self.part or removes(self.where, key_types)

    def is_indivisible(self, schema: TableSchema) -> bool:
        """Say whether it comes in one transaction if ranges of its key do not mean the same at the destination."""
        return self.empties(schema) if self.part else self.whole

    def start_over_from_another_server(self, *, began: bool) -> None:
        """Begin a new copy. What a copy of a part that `began` has brought can only be undone by a copy of the whole."""
        self.start_over()
        if self.part and began:
            self.part, self.where, self.whole, self.schema = False, (), True, None

    def go_on(self) -> None:
        """Begin the part that was asked for meanwhile, if there is one: the copy of the whole is settled."""
        following, self.following = self.following, None
        if following is None:
            return
        schema = self.schema
        self.start_over()
        self.schema, self.part, self.settled = schema, True, False
        self.backfill, self.where = following.number, following.where

    def start_over(self) -> None:
        """Begin a new copy."""
        self.copy += 1
        self.index = self.rows = self.bytes = 0
        self.last, self.key, self.schema, self.read, self.moment = None, [], None, False, None


def clearing(table: TableCopy, schema: TableSchema, only: KeyRange | None) -> tuple[Truncate, ...]:
    """Return what empties the chunk's place: its range, or before the first chunk all of the table."""
    if table.part:
        part = Truncate(schema, Position(0, 0), only=only or KeyRange(None, None), where=table.where)
        return (part,) if table.empties(schema) else ()
    if table.fresh:
        return (Truncate(schema, Position(0, 0), for_snapshot=True, only=only),)
    return () if only is None else (Truncate(schema, Position(0, 0), only=only),)
