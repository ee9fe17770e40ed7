"""What the destination's register holds of a pipeline's comparisons, keys included: for people on the customer's side.

Asked by `pointsman node reconcile show`, on the node: it takes the documents and secrets that the node itself uses. What
it returns never leaves this machine by any message.
"""

from datetime import datetime
from pathlib import Path

import psycopg
from msgspec import Struct
from psycopg.rows import class_row

from contracts.names import resource_id
from dataplane import config, secrets
from dataplane.link.store import DocumentStore
from dataplane.reconcile import destination_end, register
from dataplane.sinks.postgres.delivery import failure

PIPELINE_KIND = "Pipeline"


class ShownRun(Struct, kw_only=True):
    """One table's newest comparison."""

    table: str
    number: int
    repair: bool
    state: str
    code: str | None
    rows_compared: int
    rows_missing: int
    rows_extra: int
    rows_different: int
    rows_unsettled: int
    rows_repaired: int
    seconds: float
    started_at: datetime
    updated_at: datetime


class ShownRow(Struct, kw_only=True):
    """A row that differed. `key` are its values, in the order of the key's columns."""

    table: str
    kind: str
    key: list[str]
    repaired: bool
    found_at: datetime


class UnknownPipeline(Exception):
    """The node holds no document of that name."""


def read(folder: Path, pipeline: str, table: str | None, limit: int) -> tuple[list[ShownRun], list[ShownRow]]:
    """Return the newest comparison of each table (or of `table`), and up to `limit` of the rows that differed.

    Raises:
        UnknownPipeline: the node has never been told of it.
        FileNotFoundError: nobody has joined from `folder`.
        Failure: a secret is missing, or the destination does not answer.
    """
    node = config.read(folder)
    store = DocumentStore(folder / "documents")
    stored = store.pipelines().get(pipeline)
    if stored is None:
        raise UnknownPipeline(pipeline)
    sink = stored.document.sink.connection
    connections = store.connections()
    if sink not in connections:
        raise UnknownPipeline(sink)
    document = connections[sink]
    password = secrets.password(document.secrets, node.secrets_folder)
    pipeline_id = str(resource_id(node.tenant, PIPELINE_KIND, pipeline))
    info = destination_end.conninfo(document, password, "pointsman node reconcile show")
    try:
        with psycopg.connect(info, autocommit=True) as connection:
            if connection.execute(register.IS_SET_UP).fetchone() != (True,):
                return [], []
            return _runs(connection, pipeline_id, table), _rows(connection, pipeline_id, table, limit)
    except psycopg.Error as error:
        raise failure(error) from error


def _runs(connection: psycopg.Connection[tuple[object, ...]], pipeline_id: str, table: str | None) -> list[ShownRun]:
    names = ", ".join(name for name in ShownRun.__struct_fields__ if name != "table")
    cursor = connection.cursor(row_factory=class_row(ShownRun))
    return cursor.execute(
        f'SELECT table_name AS "table", {names} FROM pointsman.reconciles'  # noqa: S608 - names of our own
        " WHERE pipeline_id = %s AND (%s::text IS NULL OR table_name = %s) ORDER BY table_name",
        (pipeline_id, table, table),
    ).fetchall()


def _rows(
    connection: psycopg.Connection[tuple[object, ...]], pipeline_id: str, table: str | None, limit: int
) -> list[ShownRow]:
    cursor = connection.cursor(row_factory=class_row(ShownRow))
    return cursor.execute(
        'SELECT table_name AS "table", kind, key, repaired, found_at FROM pointsman.reconcile_rows'
        " WHERE pipeline_id = %s AND (%s::text IS NULL OR table_name = %s) ORDER BY table_name, kind, key LIMIT %s",
        (pipeline_id, table, table, limit),
    ).fetchall()
