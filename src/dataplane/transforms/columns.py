"""Which columns a transform may touch: those that exist and are no part of the key."""

from collections.abc import Sequence

from contracts.codes import Code
from dataplane.batch import TableSchema
from dataplane.failures import Permanent


def positions(table: TableSchema, names: Sequence[str]) -> frozenset[int]:
    """Return the numbers of the named columns.

    Raises:
        Permanent: TRANSFORM_COLUMN_MISSING or TRANSFORM_KEY_TOUCHED, naming table and column.
    """
    places = {column.name: number for number, column in enumerate(table.columns)}
    for name in names:
        if name not in places:
            raise Permanent(
                Code.TRANSFORM_COLUMN_MISSING, f"the table has no column {name}", table=table.table, column=name
            )
        if table.columns[places[name]].key:
            raise Permanent(Code.TRANSFORM_KEY_TOUCHED, f"{name} is a part of the key", table=table.table, column=name)
    return frozenset(places[name] for name in names)
