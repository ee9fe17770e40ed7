"""The law of a transform: a pure function on one table's schema, and on batches of that table.

Keys and positions are never touched, so a sink's guarantees hold whatever transforms do.
"""

from typing import Protocol

from dataplane.batch import ChangeBatch, TableSchema


class Transform(Protocol):
    """Maps the batches of one table; batches of other tables never reach it."""

    table: str

    def schema(self, table: TableSchema) -> TableSchema:
        """Return the schema after the transform.

        Raises:
            Permanent: it names a column that the table does not have, or would change a key column.
        """
        ...

    def apply(self, batch: ChangeBatch) -> ChangeBatch:
        """Return the batch after the transform; its table is that of `schema`."""
        ...
