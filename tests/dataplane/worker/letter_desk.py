"""Dead letters of a destination in memory: what its tables would be with them, and their replay by a person."""

from tests.dataplane.worker.origin import PIPELINE, Rows, change_rows

from dataplane.batch import Op
from dataplane.sinks.letters import DeadLetter, batch_of
from dataplane.sinks.memory import Memory


def letters(destination: Memory, table: str) -> list[DeadLetter]:
    """Return a table's letters, oldest first."""
    return [each for each in destination.letters.get(PIPELINE, ()) if each.table.table == table]


def shown(destination: Memory, table: str) -> dict[str, str | None]:
    """Return what a reader sees of a table."""
    return {str(key[0]): row["note"] for key, row in destination.rows(table).items()}


def with_letters(destination: Memory, table: str) -> dict[str, str | None]:
    """Return what a table would be if every letter was applied now."""
    rows = shown(destination, table)
    for each in letters(destination, table):
        key = str(each.row["id"])
        before = rows.pop(key if each.old_key is None else str(each.old_key["id"]), None)
        if each.op is not Op.DELETE:
            rows[key] = before if each.unchanged else each.row["note"]
    return rows


def out_of_order(destination: Memory, table: str) -> str | None:
    """Return a key whose letters do not stand in the source's order, or one of whose changes is there twice."""
    newest: dict[bytes, DeadLetter] = {}
    for each in letters(destination, table):
        for key in each.keys:
            before = newest.get(key)
            # A row of a copy has the position of the last change before it.
            if before is not None and (before.position > each.position or before == each):
                return str(each.key)
            newest[key] = each
    return None


def replay(destination: Memory) -> None:
    """Apply the letters in order; one that is refused again stays, and so do those behind it."""
    tables = {each.table.table for each in destination.letters.get(PIPELINE, ())}
    rows: dict[str, dict[str, str | None]] = {table: shown(destination, table) for table in tables}
    parked: set[bytes] = set()
    left = []
    for each in destination.letters.get(PIPELINE, ()):
        refused = each.op is not Op.DELETE and destination.refuses(each.table.table, each.row)
        if refused or parked.intersection(each.keys):
            parked.update(each.keys)
            left.append(each)
        else:
            change_rows(rows[each.table.table], batch_of(each))
    destination.letters[PIPELINE] = left
    for table, held in rows.items():
        destination.tables[table] = _stored(held)


def _stored(rows: Rows) -> dict[tuple[str | None, ...], dict[str, str | None]]:
    return {(key,): {"id": key, "note": note} for key, note in rows.items()}
