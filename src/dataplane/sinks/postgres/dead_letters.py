"""What the sink knows of its pipeline's dead letters, and how it adds to them: in the transaction of the set.

While there are none, nothing is asked and nothing costs. The session's own knowledge errs on one side only: nobody else
adds letters while it holds the fence, but a person may replay or drop some, so what it takes for parked is looked up
again in each transaction, under the lock of the checkpoint's row. One statement for each set does that, with the keys of
the tables that may have letters.

`Parking` is the view of one attempt at one set: keys that are parked, and letters that are waiting to be written.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from contracts.codes import Code
from contracts.delivery import OnRefused
from contracts.v2 import PipelineSink
from dataplane.batch import ChangeBatch, ChangeSet, TableSchema
from dataplane.failures import Permanent
from dataplane.sinks import parking
from dataplane.sinks.letters import BEHIND, DeadLetter, letter
from dataplane.sinks.postgres import letter_table
from dataplane.sinks.postgres.session import Session
from dataplane.sinks.postgres.writing import Writer
from dataplane.sinks.replay import pick


@dataclass
class Parking:
    """The parked keys of each table, while one set is written."""

    keys: dict[str, set[bytes]] = field(default_factory=dict)

    def of(self, table: TableSchema) -> set[bytes]:
        """Return a table's parked keys; what is added to them is parked as well."""
        return self.keys.setdefault(table.table, set())

    def forget(self, table: TableSchema) -> None:
        """Note that the table's letters are gone."""
        self.keys.pop(table.table, None)

    def part(self, batch: ChangeBatch) -> tuple[ChangeBatch | None, list[DeadLetter]]:
        """Return what of a batch may go on, None when nothing may, and the letters that the rest makes."""
        parked = self.keys.get(batch.table.table)
        if not parked:
            return batch, []
        keys = parking.Keys(batch)
        kept, behind = parking.part(keys, parked)
        if not len(behind):
            return batch, []
        letters = [letter(batch, row, keys.of(row), BEHIND) for row in behind.tolist()]
        return (pick(batch, kept) if len(kept) else None), letters


@dataclass
class Tally:
    """What all sessions of one sink know together: of which tables there are letters, and how many."""

    tables: set[tuple[str, str]] = field(default_factory=set)
    count: int = 0
    """How many there are: never fewer than that, and exact after `look`."""
    total: int = 0
    """How many there were since the session began."""
    pending: int = 0
    """How many more are written in transactions that are open."""


class DeadLetters:
    """The dead letters of one pipeline, as a session of its sink sees them. `tally` is that of all its sessions."""

    def __init__(self, session: Session, pipeline_id: str, settings: PipelineSink, tally: Tally) -> None:
        self._session = session
        self._pipeline_id = pipeline_id
        self._limit = settings.dead_letters_max
        self.takes = settings.on_refused is OnRefused.DEAD_LETTER
        """Whether a refused row becomes a letter. Rows behind letters become some in any case."""
        self.tally = tally
        self._added = 0
        self._added_before = 0

    @property
    def may_be(self) -> bool:
        """Whether the pipeline may have any."""
        return bool(self.tally.tables)

    async def look(self, *, keeping: bool = False) -> None:
        """Find out how many there are, and of which tables. `keeping` those that open transactions may add to."""
        found = await self._session.execute(letter_table.COUNT, (self._pipeline_id,))
        before = self.tally.tables if keeping else set()
        self.tally.tables = before | {(str(schema), str(name)) for schema, name, _ in found}
        self.tally.count = sum(int(str(count)) for _, _, count in found)

    async def parked(self, change: ChangeSet) -> Parking:
        """Find out which keys of a set are parked. The checkpoint's row must be held already."""
        touched: dict[str, set[bytes]] = {}
        for item in change.items:
            if isinstance(item, ChangeBatch) and (item.table.schema, item.table.name) in self.tally.tables:
                touched.setdefault(item.table.table, set()).update(parking.Keys(item).all)
        if not touched:
            return Parking()
        asked = set().union(*touched.values())
        (answer,) = await self._session.exchange([letter_table.parked(self._pipeline_id, asked)])
        values = (answer.get_value(row, 0) for row in range(answer.ntuples))
        found = {bytes.fromhex(value.decode()[2:]) for value in values if value is not None}
        return Parking({table: keys & found for table, keys in touched.items()})

    async def add(self, writer: Writer, letters: Iterable[DeadLetter]) -> None:
        """Queue letters to be written in their place among the set's statements.

        Raises:
            Permanent: DEAD_LETTERS_FULL.
        """
        for each in letters:
            if self.tally.count + self.tally.pending >= self._limit:
                await self._check_limit(writer, each)
            writer.add(letter_table.insert(self._pipeline_id, each))
            self.tally.tables.add((each.table.schema, each.table.name))
            self._added += 1
            self.tally.pending += 1

    async def _check_limit(self, writer: Writer, refused: DeadLetter) -> None:
        await writer.flush()
        # Some may have been replayed, dropped or cleared since they were counted.
        await self.look(keeping=True)
        self.tally.count -= self._added
        if self.tally.count + self.tally.pending >= self._limit:
            raise Permanent(
                Code.DEAD_LETTERS_FULL,
                f"{self._limit} dead letters are there already: {refused.cause.message}",
                table=refused.table.table,
                column=refused.cause.column,
                sql_state=refused.cause.sql_state,
            )

    def spares(self, table: TableSchema) -> str | None:
        """Return whose letters may be about rows of the table: this pipeline's; None where there are none."""
        return self._pipeline_id if (table.schema, table.name) in self.tally.tables else None

    def clear(self, writer: Writer, table: TableSchema, outcome: str) -> None:
        """Queue that a table's letters go: every change that they hold is without effect from here on."""
        if (table.schema, table.name) in self.tally.tables:
            writer.add(letter_table.clear(self._pipeline_id, table, outcome))

    def begin(self, *, continued: bool) -> None:
        """Note that an attempt at a set begins; a part of a large transaction is undone to where it began."""
        kept = self._added_before if continued else 0
        self.tally.pending -= self._added - kept
        self._added = kept

    def written(self, *, committed: bool) -> None:
        """Note that a set was written, and with its transaction's end that its letters are there."""
        self._added_before = self._added
        if committed:
            self.tally.count += self._added
            self.tally.total += self._added
            self.tally.pending -= self._added
            self._added = self._added_before = 0
