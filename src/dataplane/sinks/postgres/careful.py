"""Writes a batch row by row where refused rows are taken out: the rest goes on, and every key keeps its order.

Rows go out in runs, each behind a savepoint. Where the destination refuses one, the run is undone, what came before that
row is sent again, and the next run begins behind it: a set in which every row is refused costs two sends of each, not
its square. A refused row parks its key, and later rows of that key are not even tried.

Only refusals of a row are taken: its value, a constraint, a trigger, the row that an update should have found. All else
(a table that is gone, a right that is missing, a full disk, a lost connection) hits every row alike, and is raised.
"""

from collections.abc import Awaitable, Callable

import psycopg

from contracts.codes import Code
from dataplane.batch import ChangeBatch
from dataplane.sinks import parking
from dataplane.sinks.letters import BEHIND, Cause, DeadLetter, letter
from dataplane.sinks.postgres import rows
from dataplane.sinks.postgres.session import RowsMissed, Session, Statement, StatementFailed
from dataplane.sinks.postgres.statements import TableStatements

RUN_ROWS_MAX = 500

LETTER_CLASSES = ("21", "22", "23", "44", "54", "P0")
"""Classes of SQLSTATE that are about one row: cardinality, data, integrity, WITH CHECK OPTION, size limits, triggers."""

_MARK = Statement(b"SAVEPOINT pm_run")
_RELEASE = Statement(b"RELEASE SAVEPOINT pm_run")
_UNDO = Statement(b"ROLLBACK TO SAVEPOINT pm_run")

Blame = Callable[[psycopg.Error, ChangeBatch, int], Awaitable[Cause]]
"""Says why the destination refused a row. It leaves the transaction as it was."""

MISSING = Cause(code=Code.SINK_ROW_MISSING, message="an update that did not carry every value found no row of that key")


class RefusedBatch(Exception):
    """A statement failed for a reason that is not its row's: `error` says which, `row` where."""

    def __init__(self, error: psycopg.Error, row: int) -> None:
        super().__init__(str(error))
        self.error = error
        self.row = row


def is_about_a_row(error: psycopg.Error) -> bool:
    """Say whether another row might be taken where this one was refused."""
    return (error.sqlstate or "")[:2] in LETTER_CLASSES


async def write(
    session: Session,
    batch: ChangeBatch,
    table: TableStatements,
    parked: set[bytes],
    blame: Blame,
    *,
    unsettled: bool = False,
) -> list[DeadLetter]:
    """Write the rows that the destination takes, and return the letters that the others make, in order.

    `parked` are the keys that have letters already; those of refused rows join them. In an
    `unsettled` table an update may find no row.

    Raises:
        RefusedBatch: what failed is not about one row.
        psycopg.Error: the connection was lost.
    """
    keys = parking.Keys(batch)
    changes: list[list[Statement]] = [[] for _ in range(len(batch))]
    for row, statement in rows.statements(batch, table, unsettled=unsettled):
        changes[row].append(statement)
    letters: list[DeadLetter] = []
    start = 0
    while start < len(batch):
        run, behind, end = _run(keys, parked, start)
        refused = await _send(session, run, changes)
        if refused is not None:
            place, error = refused
            end = run[place] + 1
        # Behind what was parked before this run; nothing that was decided after the refused row counts.
        letters += [letter(batch, row, keys.of(row), BEHIND) for row in behind if row < end]
        for row in behind:
            if row < end:
                parked.update(keys.of(row))
        if refused is not None:
            cause = MISSING if error is None else await blame(error, batch, run[place])
            letters.append(letter(batch, run[place], keys.of(run[place]), cause))
            parked.update(keys.of(run[place]))
        start = end
    return letters


def _run(keys: parking.Keys, parked: set[bytes], start: int) -> tuple[list[int], list[int], int]:
    """Return the rows to try from `start` on, those among them that are behind, and where the next run starts."""
    run: list[int] = []
    behind: list[int] = []
    here: set[bytes] = set()
    row = start
    while row < len(keys.new) and len(run) < RUN_ROWS_MAX:
        if keys.is_behind(row, parked) or keys.is_behind(row, here):
            behind.append(row)
            here.update(keys.of(row))
        else:
            run.append(row)
        row += 1
    return run, behind, row


async def _send(
    session: Session, run: list[int], changes: list[list[Statement]]
) -> tuple[int, psycopg.Error | None] | None:
    """Send a run. Return the place of the first row that was refused and the error; None when all were taken.

    The rows before it are written then. Without an error the row is one that should have been there.
    """
    if not run:
        return None
    statements = [statement for row in run for statement in changes[row]]
    places = [place for place, row in enumerate(run) for _ in changes[row]]
    await session.run([_MARK])
    error: psycopg.Error | None = None
    try:
        await session.exchange(statements)
    except StatementFailed as failed:
        place, error = places[failed.index], failed.error
        if not is_about_a_row(error):
            raise RefusedBatch(error, run[place]) from error
    except RowsMissed as missed:
        place = places[missed.index]
    else:
        await session.run([_RELEASE])
        return None
    await session.run([_UNDO, _RELEASE])
    # Before a row that was refused one may have missed its row, which only shows when all were run.
    earlier = await _send(session, run[:place], changes)
    return (place, error) if earlier is None else earlier
