"""How far copies are, as people see it: rows and bytes so far, about how many rows there are, and the time left.

In flow the copies that are not complete, in the order in which they are read, and the rate of the session; out flow numbers.
A copy that is paused has no time left that anybody could tell, and holds up no other. Pure; called by `copying`.
"""

from collections.abc import Sequence

from dataplane.sources.port import SnapshotProgress, TableProgress
from dataplane.sources.postgres.table_copy import TableCopy


def of(tables: Sequence[TableCopy], rows_per_second: float) -> SnapshotProgress:
    """Return how far `tables` are; `rows_per_second` is 0 while nothing was read."""
    told: list[TableProgress] = []
    ahead = 0
    for table in tables:
        estimated = table.rows if table.read else max(table.rows, table.rows_estimated)
        ahead += 0 if table.waits else estimated - table.rows
        told.append(
            TableProgress(
                table=table.name,
                rows=table.rows,
                rows_estimated=estimated,
                bytes=table.bytes,
                seconds_left=ahead / rows_per_second if rows_per_second and not table.waits else None,
                part=table.part,
                paused=table.waits,
            )
        )
    all_wait = all(each.paused for each in told)
    return SnapshotProgress(
        rows=sum(each.rows for each in told),
        rows_estimated=sum(each.rows_estimated for each in told),
        bytes=sum(each.bytes for each in told),
        seconds_left=ahead / rows_per_second if rows_per_second and not all_wait else None,
        tables=tuple(told),
    )
