"""The table that holds the shapes which a person has accepted, in the destination: its SQL, and rows to `Known` and back.

One row for each table of a pipeline that is to pause at a changed shape. Written apart from rows, under the fence. Pure.
"""

from collections.abc import Iterable, Sequence

import msgspec

from dataplane.batch import TableSchema
from dataplane.sinks.drift import Known, Shape
from dataplane.sinks.postgres.session import Statement

SETUP = (
    """CREATE TABLE IF NOT EXISTS pointsman.shapes (
        pipeline_id text NOT NULL,
        table_schema text NOT NULL,
        table_name text NOT NULL,
        columns jsonb NOT NULL,
        stopped_columns jsonb,
        stopped_resumes bigint NOT NULL DEFAULT 0,
        PRIMARY KEY (pipeline_id, table_schema, table_name)
    )""",
)
"""What is made where it is missing."""

LOAD = """SELECT table_schema, table_name, columns, stopped_columns, stopped_resumes FROM pointsman.shapes
    WHERE pipeline_id = %s"""

FORGET = "DELETE FROM pointsman.shapes WHERE pipeline_id = %s"

_WRITE = b"""INSERT INTO pointsman.shapes
    (pipeline_id, table_schema, table_name, columns, stopped_columns, stopped_resumes) VALUES ($1, $2, $3, $4, $5, $6)
    ON CONFLICT (pipeline_id, table_schema, table_name) DO UPDATE SET columns = EXCLUDED.columns,
        stopped_columns = EXCLUDED.stopped_columns, stopped_resumes = EXCLUDED.stopped_resumes"""
_FORGET = FORGET.replace("%s", "$1").encode()


def write(pipeline_id: str, table: TableSchema, known: Known) -> Statement:
    """Write down what is known of a table."""
    return Statement(
        _WRITE,
        (
            pipeline_id.encode(),
            table.schema.encode(),
            table.name.encode(),
            msgspec.json.encode(known.shape),
            None if known.stopped is None else msgspec.json.encode(known.stopped),
            b"%d" % known.stopped_resumes,
        ),
    )


def forget(pipeline_id: str) -> Statement:
    """Let go of all shapes of a pipeline."""
    return Statement(_FORGET, (pipeline_id.encode(),))


def known(rows: Iterable[Sequence[object]]) -> dict[str, Known]:
    """Return what rows of `LOAD` hold, by `schema.table`."""
    return {
        f"{schema}.{name}": Known(
            shape=msgspec.convert(columns, Shape),
            stopped=None if stopped is None else msgspec.convert(stopped, Shape),
            stopped_resumes=int(str(resumes)),
        )
        for schema, name, columns, stopped, resumes in rows
    }
