"""Leaves columns out of a table: as if they did not exist at the source. Pure."""

from collections.abc import Sequence
from dataclasses import replace

import pyarrow as pa

from dataplane.batch import ChangeBatch, TableSchema
from dataplane.transforms.columns import positions


class Drop:
    """Leaves `columns` of `table` out."""

    def __init__(self, table: str, columns: Sequence[str]) -> None:
        self.table = table
        self._columns = tuple(columns)

    def schema(self, table: TableSchema) -> TableSchema:
        """Return the schema without the columns."""
        dropped = positions(table, self._columns)
        return replace(
            table, columns=tuple(column for number, column in enumerate(table.columns) if number not in dropped)
        )

    def apply(self, batch: ChangeBatch) -> ChangeBatch:
        """Return the batch without the columns; what is said of the others by number moves with them."""
        dropped = positions(batch.table, self._columns)
        kept = [number for number in range(len(batch.table.columns)) if number not in dropped]
        place = {number: at for at, number in enumerate(kept)}
        return replace(
            batch,
            table=self.schema(batch.table),
            rows=pa.record_batch(
                [batch.rows.column(number) for number in kept],
                names=[batch.table.columns[number].name for number in kept],
            ),
            unchanged={place[number]: flags for number, flags in batch.unchanged.items() if number in place},
        )
