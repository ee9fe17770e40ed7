"""Changes as statements for single rows, in order: for small sets, where that costs least, and when care is needed.

In flows a batch; out flows one statement for each row, or two for a changed key. Nothing is merged, so what happens at
the destination is what happened at the source, step by step. Pure.
"""

from collections.abc import Iterator

import pyarrow as pa

from dataplane.batch import ChangeBatch, Op
from dataplane.sinks.postgres.session import Statement
from dataplane.sinks.postgres.statements import TableStatements

FEW = 16
"""Up to so many values, encoding them one by one costs less than a call into Arrow."""


def statements(
    batch: ChangeBatch, table: TableStatements, *, unsettled: bool = False
) -> Iterator[tuple[int, Statement]]:
    """Give each row's statements with the row's number in the batch.

    A row that an update needs and does not find is an error, but in an `unsettled` table: there it comes with its chunk.
    """
    found = None if unsettled else 1
    columns = [values(batch.rows.column(number)) for number in range(batch.rows.num_columns)]
    keys = [number for number, column in enumerate(batch.table.columns) if column.key]
    rest = [number for number, column in enumerate(batch.table.columns) if not column.key]
    changed, old = batch.key_changed, batch.old_keys
    old_keys = [values(old.column(place)) for place in range(len(keys))] if old is not None else []
    deletes = (batch.ops == Op.DELETE).tolist()
    unchanged = [(column, flags) for column, flags in batch.unchanged.items() if flags.any()]
    for row, deleted in enumerate(deletes):
        key = [columns[number][row] for number in keys]
        if deleted:
            yield row, Statement(table.delete_row, key)
            continue
        moved = changed is not None and bool(changed[row])
        former = [part[row] for part in old_keys] if moved else key
        left = {column for column, flags in unchanged if flags[row]}
        if left:
            sent = [number for number in (*(keys if moved else ()), *rest) if number not in left]
            new = [columns[number][row] for number in sent]
            if sent:
                yield row, Statement(table.update_row(tuple(sent)), [*new, *former], rows=found)
            continue
        if moved:
            yield row, Statement(table.delete_row, former)
        yield row, Statement(table.upsert_row, [column[row] for column in columns])


def values(column: pa.Array) -> list[bytes | None]:
    """Return a string column's values as the bytes that go to the server."""
    if len(column) <= FEW:
        return [None if value is None else value.encode() for value in column.to_pylist()]
    binary = pa.large_binary() if pa.types.is_large_string(column.type) else pa.binary()
    taken: list[bytes | None] = column.view(binary).to_pylist()
    return taken
