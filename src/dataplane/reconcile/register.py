"""What is known of comparisons, kept at the destination beside the checkpoints: progress, counts and the rows' keys.

A run that is killed goes on from here, on whichever node, and counts nothing twice: what a step found is committed
together with the place it came to, and a row's repair together with its count. Keys never leave the customer's side:
the node sends the counts. `pointsman.reconcile_rows` holds `KEYS_KEPT_MAX` keys of a table's newest run at most.
"""

from collections.abc import Sequence

import psycopg
from msgspec import Struct, structs

from contracts.codes import Code
from contracts.reconciling import ReconcileState
from dataplane.failures import RetryLater
from dataplane.reconcile.proof import Kind
from dataplane.reconcile.walking import Key
from dataplane.sinks.postgres.checkpoints import SETUP_LOCK

KEYS_KEPT_MAX = 10_000

SETUP = (
    "CREATE SCHEMA IF NOT EXISTS pointsman",
    """CREATE TABLE IF NOT EXISTS pointsman.reconciles (
        pipeline_id text NOT NULL,
        table_name text NOT NULL,
        number bigint NOT NULL,
        repair boolean NOT NULL,
        state text NOT NULL,
        code text,
        sql_state text,
        runner text NOT NULL,
        stage integer NOT NULL DEFAULT 1,
        after text[],
        rows_compared bigint NOT NULL DEFAULT 0,
        rows_missing bigint NOT NULL DEFAULT 0,
        rows_extra bigint NOT NULL DEFAULT 0,
        rows_different bigint NOT NULL DEFAULT 0,
        rows_unsettled bigint NOT NULL DEFAULT 0,
        rows_repaired bigint NOT NULL DEFAULT 0,
        seconds double precision NOT NULL DEFAULT 0,
        started_at timestamptz NOT NULL DEFAULT now(),
        updated_at timestamptz NOT NULL DEFAULT now(),
        PRIMARY KEY (pipeline_id, table_name)
    )""",
    """CREATE TABLE IF NOT EXISTS pointsman.reconcile_rows (
        pipeline_id text NOT NULL,
        table_name text NOT NULL,
        number bigint NOT NULL,
        kind text NOT NULL,
        key text[] NOT NULL,
        repaired boolean NOT NULL,
        found_at timestamptz NOT NULL DEFAULT now()
    )""",
    "CREATE INDEX IF NOT EXISTS reconcile_rows_of ON pointsman.reconcile_rows (pipeline_id, table_name)",
)
IS_SET_UP = "SELECT to_regclass('pointsman.reconcile_rows_of') IS NOT NULL"

_FIELDS = """number, repair, state, code, sql_state, stage, after, rows_compared, rows_missing, rows_extra,
    rows_different, rows_unsettled, rows_repaired, seconds"""
_CLAIM = f"""INSERT INTO pointsman.reconciles AS held (pipeline_id, table_name, number, repair, state, runner)
    VALUES (%(pipeline)s, %(table)s, %(number)s, %(repair)s, 'running', %(runner)s)
    ON CONFLICT (pipeline_id, table_name) DO UPDATE SET runner = excluded.runner
    RETURNING {_FIELDS}"""  # noqa: S608
_RESET = f"""UPDATE pointsman.reconciles SET number = %(number)s, repair = %(repair)s, state = 'running', code = NULL,
        sql_state = NULL, stage = 1, after = NULL, rows_compared = 0, rows_missing = 0, rows_extra = 0,
        rows_different = 0, rows_unsettled = 0, rows_repaired = 0, seconds = 0, started_at = now(), updated_at = now()
    WHERE pipeline_id = %(pipeline)s AND table_name = %(table)s RETURNING {_FIELDS}"""  # noqa: S608
_FORGET_ROWS = "DELETE FROM pointsman.reconcile_rows WHERE pipeline_id = %(pipeline)s AND table_name = %(table)s"
_ADVANCE = """UPDATE pointsman.reconciles SET stage = %(stage)s, after = %(after)s, state = %(state)s,
        code = %(code)s, sql_state = %(sql_state)s, rows_compared = rows_compared + %(rows_compared)s,
        rows_missing = rows_missing + %(rows_missing)s, rows_extra = rows_extra + %(rows_extra)s,
        rows_different = rows_different + %(rows_different)s, rows_unsettled = rows_unsettled + %(rows_unsettled)s,
        rows_repaired = rows_repaired + %(rows_repaired)s, seconds = seconds + %(seconds)s, updated_at = now()
    WHERE pipeline_id = %(pipeline)s AND table_name = %(table)s AND runner = %(runner)s"""
_KEEP = """INSERT INTO pointsman.reconcile_rows (pipeline_id, table_name, number, kind, key, repaired)
    SELECT %(pipeline)s, %(table)s, %(number)s, %(kind)s, %(key)s, %(repaired)s
    WHERE (SELECT count(*) FROM pointsman.reconcile_rows WHERE pipeline_id = %(pipeline)s AND table_name = %(table)s)
        < %(most)s"""


class Counts(Struct, frozen=True, kw_only=True):
    """What was counted, since the run's start or since it was last written down."""

    rows_compared: int = 0
    rows_missing: int = 0
    rows_extra: int = 0
    rows_different: int = 0
    rows_unsettled: int = 0
    rows_repaired: int = 0
    seconds: float = 0.0

    def plus(self, other: "Counts") -> "Counts":
        """Return the sum."""
        mine, theirs = structs.asdict(self), structs.asdict(other)
        return Counts(**{name: mine[name] + theirs[name] for name in mine})


class FoundRow(Struct, frozen=True):
    """A row that differed, by its key."""

    kind: Kind
    key: Key
    repaired: bool


def counted(rows: Sequence[FoundRow]) -> Counts:
    """Return how many rows of each kind there are."""
    of = {kind: sum(row.kind is kind for row in rows) for kind in Kind}
    return Counts(
        rows_missing=of[Kind.MISSING],
        rows_extra=of[Kind.EXTRA],
        rows_different=of[Kind.DIFFERENT],
        rows_repaired=sum(row.repaired for row in rows),
    )


class Run(Struct, frozen=True, kw_only=True):
    """How far the comparison of one table has come. `stage` 1 walks the source, 2 the destination, from `after` on."""

    number: int
    repair: bool
    state: ReconcileState
    code: str | None
    sql_state: str | None
    stage: int
    after: Key | None
    counts: Counts


class Register:
    """The record of one table's comparison. `runner` is this process: another one that claims it ends our writing."""

    def __init__(
        self, connection: psycopg.Connection[tuple[object, ...]], *, pipeline_id: str, table: str, runner: str
    ) -> None:
        self._connection = connection
        self._table = table
        self._names = {"pipeline": pipeline_id, "table": table, "runner": runner}

    def claim(self, number: int, *, repair: bool) -> Run:
        """Begin run `number`, or go on with it; what is known of an older one is let go."""
        set_up(self._connection)
        asked = {**self._names, "number": number, "repair": repair}
        with self._connection.transaction():
            run = _run(self._connection.execute(_CLAIM, asked).fetchone())
            if run.number < number:
                run = _run(self._connection.execute(_RESET, asked).fetchone())
                self._connection.execute(_FORGET_ROWS, asked)
        return run

    def advance(self, run: Run, found: Counts, rows: Sequence[FoundRow]) -> None:
        """Write where the run stands, and add what was found since; in the caller's transaction, if there is one.

        Raises:
            RetryLater: another process has claimed the run.
        """
        standing = {
            "stage": run.stage,
            "after": list(run.after) if run.after is not None else None,
            "state": run.state.value,
            "code": run.code,
            "sql_state": run.sql_state,
        }
        with self._connection.transaction():
            cursor = self._connection.execute(_ADVANCE, {**self._names, **standing, **structs.asdict(found)})
            if cursor.rowcount != 1:
                raise RetryLater(Code.SINK_FENCED, "another process compares this table now", table=self._table)
            if rows:
                with self._connection.cursor() as writer:
                    writer.executemany(_KEEP, [self._kept(run.number, row) for row in rows[:KEYS_KEPT_MAX]])

    def _kept(self, number: int, row: FoundRow) -> dict[str, object]:
        return {
            **self._names,
            "number": number,
            "kind": row.kind.value,
            "key": list(row.key),
            "repaired": row.repaired,
            "most": KEYS_KEPT_MAX,
        }


def set_up(connection: psycopg.Connection[tuple[object, ...]]) -> None:
    """Make the tables where they are missing; two processes that do so at once take turns."""
    if connection.execute(IS_SET_UP).fetchone() == (True,):
        return
    with connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (SETUP_LOCK,))
        for statement in SETUP:
            connection.execute(statement.encode())


def _run(row: Sequence[object] | None) -> Run:
    assert row is not None
    number, repair, state, code, sql_state, stage, after, *counts = row
    names = Counts.__struct_fields__
    return Run(
        number=int(str(number)),
        repair=bool(repair),
        state=ReconcileState(state),
        code=None if code is None else str(code),
        sql_state=None if sql_state is None else str(sql_state),
        stage=int(str(stage)),
        after=tuple(str(part) for part in after) if isinstance(after, list) else None,
        counts=Counts(**dict(zip(names, counts, strict=True))),  # type: ignore[arg-type]
    )
