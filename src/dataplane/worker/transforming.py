"""The transforms of a pipeline, applied to whole sets: between the source and whatever it is delivered to.

Called by sessions on the source's side. A batch meets the transforms of its table in the order of the document; the
schema that a truncate carries is mapped as well, so that a sink makes the table as the rows will be.
"""

import dataclasses
from collections.abc import Sequence

from dataplane.batch import ChangeBatch, ChangeSet, TableSchema, Truncate
from dataplane.transforms.port import Transform


class Transforms:
    """The transforms of a pipeline, applied in their order to the batches of their tables."""

    def __init__(self, transforms: Sequence[Transform]) -> None:
        self._of: dict[str, list[Transform]] = {}
        for transform in transforms:
            self._of.setdefault(transform.table, []).append(transform)
        self._mapped: dict[str, tuple[TableSchema, TableSchema]] = {}

    def __call__(self, change: ChangeSet) -> ChangeSet:
        """Return the set with every batch and every schema transformed."""
        if not self._of:
            return change
        items = tuple(self._item(item) if item.table.table in self._of else item for item in change.items)
        return dataclasses.replace(change, items=items)

    def schema(self, table: TableSchema) -> TableSchema:
        """Return what the rows of a table look like after its transforms."""
        return self._schema(table, self._of.get(table.table, ()))

    def _item(self, item: ChangeBatch | Truncate) -> ChangeBatch | Truncate:
        transforms = self._of[item.table.table]
        if isinstance(item, Truncate):
            return dataclasses.replace(item, table=self._schema(item.table, transforms))
        for transform in transforms:
            item = transform.apply(item)
        return item

    def _schema(self, table: TableSchema, transforms: Sequence[Transform]) -> TableSchema:
        known = self._mapped.get(table.table)
        if known is not None and known[0] == table:
            return known[1]
        mapped = table
        for transform in transforms:
            mapped = transform.schema(mapped)
        self._mapped[table.table] = (table, mapped)
        return mapped
