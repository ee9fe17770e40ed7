"""What a pipeline's slot keeps of its source's log: measured, and given up at the limit that the pipeline's owner chose.

In flow a connection to the source and the name that the pipeline's slots begin with; out flow measures. Called by the
source while it streams, and by the node's `slot_look` while nobody streams. It loads neither Arrow nor a whole source.

A slot is given up in three steps: the publication's comment says that it will be; the slot is dropped, if at that moment
nobody reads it and it still keeps too much; where it was not, the comment is taken back. So a stream that goes on is never
cut here, and a slot that is gone can be told from one that somebody else dropped, for ever after and by any node.
"""

from collections.abc import Sequence

import msgspec
import psycopg
from psycopg import errors, sql
from psycopg.rows import TupleRow

from dataplane.slot_measure import GIVEN_UP, SlotMeasure, fields_of, measure_query, measured

_COMMENT = "SELECT obj_description(oid, 'pg_publication') FROM pg_publication WHERE pubname = %s"

_TOO_LARGE = """SELECT {what} FROM pg_replication_slots WHERE starts_with(slot_name, %s) AND NOT temporary AND NOT active
    AND slot_type = 'logical' AND database = current_database() AND wal_status <> 'lost'
    AND pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn) >= %s"""


def measure(connection: psycopg.Connection[TupleRow], publication: str) -> SlotMeasure | None:
    """Measure the slots of the pipeline whose publication is named so; None if it never had one.

    Raises:
        psycopg.Error: the server does not answer, or refused it.
    """
    statement = measure_query(connection.info.server_version)
    rows = connection.execute(statement, [f"{publication}_"]).fetchall()
    return measured(rows, None if rows else _comment(connection, publication))


def give_up(connection: psycopg.Connection[TupleRow], publication: str, retain_bytes_max: int) -> bool:
    """Drop the pipeline's slots that nobody reads and that keep `retain_bytes_max` or more. Return whether one was.

    The connection is in autocommit.

    Raises:
        psycopg.Error: the server does not answer, or refused it; what was not dropped is kept.
    """
    parameters = (f"{publication}_", retain_bytes_max)
    rows = connection.execute(_TOO_LARGE.format(what="slot_name"), parameters).fetchall()
    names = [name for (name,) in rows]
    if not names:
        return False
    _note(connection, publication, names)
    dropped: list[str] = []
    drop = f"{_TOO_LARGE.format(what='pg_drop_replication_slot(slot_name)')} AND slot_name = %s"
    try:
        for name in names:
            # Looked at and dropped in one statement; one that somebody has begun to read meanwhile is refused.
            dropped.extend(name for _ in connection.execute(drop, (*parameters, name)))
    except errors.ObjectInUse:
        pass
    finally:
        if len(dropped) < len(names) and not connection.closed:
            _note(connection, publication, dropped)
    return bool(dropped)


def _note(connection: psycopg.Connection[TupleRow], publication: str, names: Sequence[str]) -> None:
    """Write which slots are given up. A publication that is gone cannot say it; the slot's absence then has to."""
    fields = fields_of(_comment(connection, publication))
    fields.pop(GIVEN_UP, None)
    if names:
        fields[GIVEN_UP] = list(names)
    text = msgspec.json.encode(fields).decode()
    statement = sql.SQL("COMMENT ON PUBLICATION {} IS {}").format(sql.Identifier(publication), sql.Literal(text))
    try:
        connection.execute(statement)
    except errors.UndefinedObject:
        return


def _comment(connection: psycopg.Connection[TupleRow], publication: str) -> str | None:
    row = connection.execute(_COMMENT, [publication]).fetchone()
    return row[0] if row else None
