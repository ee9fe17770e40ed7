"""What a person does with a pipeline's dead letters, at the destination: look at them, apply them again, let them go.

Called by `pointsman node dlq` on the customer's side. Replay and drop hold the checkpoint's row for as long as their one
transaction lasts, so the running sink waits between two of its own and can neither overtake nor be overtaken; when it goes
on, it looks up what is parked still.

Correctness of a replay rests on the order: as long as a key has letters, every later change of it is one too. So all
letters of a key, oldest first, end in its newest state. That is why a choice of letters always grows to whole keys, also
over changes of a key, and why a letter that is refused again leaves those behind it where they are.

While a table is copied, a chunk may take away the row that a letter should change: the chunk's row is a letter then, behind
it. What such a letter would have changed is in the later one, so it is let go with those that were applied.
"""

from collections.abc import Collection, Iterator, Sequence

import psycopg
from msgspec import Struct

from contracts.codes import Code
from contracts.v2 import ConnectionDocument
from dataplane import postgres
from dataplane.batch import TableSchema
from dataplane.failures import Failure, Permanent, RetryLater
from dataplane.postgres import Revealable
from dataplane.sinks.letters import MESSAGE_CHARACTERS_MAX, Cause, DeadLetter, batch_of
from dataplane.sinks.postgres import careful, letter_table, rows, tables
from dataplane.sinks.postgres.delivery import failure
from dataplane.sinks.postgres.letter_table import Stored
from dataplane.sinks.postgres.opening import SETTINGS
from dataplane.sinks.postgres.session import RowsMissed, Session, Statement, StatementFailed
from dataplane.sinks.postgres.statements import TableStatements

LETTERS_AT_ONCE = 500
"""So many letters are in memory at a time; of the others only their keys."""

_HOLD = "SELECT 1 FROM pointsman.checkpoints WHERE pipeline_id = %s FOR UPDATE"
_ARE_THERE = "SELECT to_regclass('pointsman.dead_letters') IS NOT NULL"
_CHOSEN = """pipeline_id = %s AND (%s::text[] IS NULL OR table_schema || '.' || table_name = ANY (%s))
    AND (%s::bigint[] IS NULL OR id = ANY (%s)) AND (%s::text IS NULL OR code = %s)"""
_COUNT = f"SELECT count(*) FROM pointsman.dead_letters WHERE {_CHOSEN}"  # noqa: S608
_LIST = f"SELECT {letter_table.FIELDS} FROM pointsman.dead_letters WHERE {_CHOSEN} ORDER BY id LIMIT %s"  # noqa: S608
_KEYS = f"SELECT id, key_digest, old_key_digest FROM pointsman.dead_letters WHERE {_CHOSEN}"  # noqa: S608
_OF_KEYS = """SELECT id, key_digest, old_key_digest FROM pointsman.dead_letters WHERE pipeline_id = %s
    AND (key_digest = ANY (%s) OR old_key_digest = ANY (%s))"""
_BY_ID = f"SELECT {letter_table.FIELDS} FROM pointsman.dead_letters WHERE id = ANY (%s) ORDER BY id"  # noqa: S608
_WHOLE_AFTER = """SELECT old_key_digest IS NULL FROM pointsman.dead_letters WHERE pipeline_id = %s AND id > %s
    AND (key_digest = %s OR old_key_digest = %s) AND (old_key_digest IS NOT NULL OR op <> 'update' OR unchanged = '{}')
    ORDER BY id LIMIT 1"""
"""The first later change of a key that is not only a part of its row; of one key, or of two."""
_REFUSED_AGAIN = """UPDATE pointsman.dead_letters SET attempts = attempts + 1, code = %s, sql_state = %s, column_name = %s,
    message = %s WHERE id = %s"""

_MARK = Statement(b"SAVEPOINT pm_letter")
_RELEASE = Statement(b"RELEASE SAVEPOINT pm_letter")
_UNDO = (Statement(b"ROLLBACK TO SAVEPOINT pm_letter"), _RELEASE)


class Choice(Struct, frozen=True, kw_only=True):
    """Which letters are meant; without anything all of the pipeline's."""

    tables: Sequence[str] | None = None
    """`schema.table`."""
    ids: Sequence[int] | None = None
    code: str | None = None

    def parameters(self, pipeline_id: str) -> tuple[object, ...]:
        """Return what the statements take."""
        tables = None if self.tables is None else list(self.tables)
        ids = None if self.ids is None else list(self.ids)
        return (pipeline_id, tables, tables, ids, ids, self.code, self.code)


class Replayed(Struct, frozen=True, kw_only=True):
    """What came of a replay: letters that were applied, that were refused again, and that wait behind one of those."""

    applied: int = 0
    refused: int = 0
    behind: int = 0


class LetterDesk:
    """One pipeline's dead letters, for as long as a command lasts. Use it with `async with`."""

    def __init__(self, connection: ConnectionDocument, password: Revealable | None, *, pipeline_id: str) -> None:
        self._document = connection
        self._password = password
        self._pipeline_id = pipeline_id
        self._session: Session | None = None

    async def __aenter__(self) -> "LetterDesk":
        """Connect.

        Raises:
            Failure: the destination does not answer, or does not let us in.
        """
        info = postgres.conninfo(
            self._document, self._password, application_name="pointsman dead letters", settings=SETTINGS
        )
        try:
            self._session = Session(await psycopg.AsyncConnection.connect(info, autocommit=True))
        except psycopg.Error as error:
            raise failure(error) from error
        return self

    async def __aexit__(self, *_: object) -> None:
        """Let go; what was not committed never was."""
        if self._session is not None:
            await self._session.close()

    async def count(self, choice: Choice) -> int:
        """Return how many letters are meant."""
        if not (await self._execute(_ARE_THERE))[0][0]:
            return 0
        return _number((await self._execute(_COUNT, choice.parameters(self._pipeline_id)))[0][0])

    async def oldest(self, choice: Choice, limit: int) -> Sequence[Stored]:
        """Return the oldest letters that are meant."""
        if not await self.count(choice):
            return []
        found = await self._execute(_LIST, (*choice.parameters(self._pipeline_id), limit))
        known: dict[bytes, TableSchema] = {}
        return [letter_table.stored(row, known) for row in found]

    async def drop(self, choice: Choice) -> int:
        """Let go of the letters that are meant, and return how many they were.

        Raises:
            Failure: the destination does not answer, or the pipeline is in the middle of a long transaction.
        """
        await self._begin()
        ids = [_number(row[0]) for row in await self._execute(_KEYS, choice.parameters(self._pipeline_id))]
        for chunk in _chunks(ids):
            await self._run(letter_table.remove(self._pipeline_id, chunk, "dropped"))
        await self._execute("COMMIT")
        return len(ids)

    async def replay(self, choice: Choice) -> Replayed:
        """Apply the letters that are meant, and all others of their keys, oldest first, in one transaction.

        Raises:
            Failure: the destination does not answer, or what failed is not about one row; nothing was changed then.
        """
        await self._begin()
        applied = refused = behind = 0
        parked: set[bytes] = set()
        shapes: dict[str, tuple[TableSchema, TableStatements]] = {}
        known: dict[bytes, TableSchema] = {}
        for chunk in _chunks(sorted(await self._whole_keys(choice))):
            done: list[int] = []
            for each in [letter_table.stored(row, known) for row in await self._execute(_BY_ID, (chunk,))]:
                if parked.intersection(each.letter.keys):
                    behind += 1
                    parked.update(each.letter.keys)
                    continue
                cause = await self._apply(each.letter, await self._statements(each.letter.table, shapes))
                if cause is None or (cause is careful.MISSING and await self._is_overtaken(each)):
                    done.append(each.id)
                    continue
                refused += 1
                parked.update(each.letter.keys)
                message = cause.message[:MESSAGE_CHARACTERS_MAX]
                said = (cause.code.value, cause.sql_state, cause.column, message, each.id)
                await self._execute(_REFUSED_AGAIN, said)
            applied += len(done)
            if done:
                await self._run(letter_table.remove(self._pipeline_id, done, "replayed"))
        await self._execute("COMMIT")
        return Replayed(applied=applied, refused=refused, behind=behind)

    async def _begin(self) -> None:
        """Open the transaction and hold the pipeline's checkpoint: its sink waits from here on."""
        await self._execute("BEGIN")
        if not await self._execute(_HOLD, (self._pipeline_id,)):
            raise Permanent(Code.DEAD_LETTERS, "the pipeline has no checkpoint at this destination")

    async def _whole_keys(self, choice: Choice) -> set[int]:
        """Return the ids of the letters that are meant and of every other letter that shares a key with them."""
        ids: set[int] = set()
        keys: set[bytes] = set()
        found = await self._execute(_KEYS, choice.parameters(self._pipeline_id))
        while True:
            ids |= {_number(row[0]) for row in found}
            fresh = {key for row in found for key in row[1:] if isinstance(key, bytes)} - keys
            if not fresh:
                return ids
            keys |= fresh
            found = await self._execute(_OF_KEYS, (self._pipeline_id, [*fresh], [*fresh]))

    async def _statements(
        self, table: TableSchema, known: dict[str, tuple[TableSchema, TableStatements]]
    ) -> TableStatements:
        """Return how a letter's table is written as it is now. Its types may have been mended: the server judges values."""
        held = known.get(table.table)
        if held is not None and held[0] is table:
            return held[1]
        assert self._session is not None
        found = await tables.read(self._session.connection, table)
        if found is None:
            raise Permanent(Code.SINK_TABLE_MISMATCH, "the table is gone from the destination", table=table.table)
        for column in table.columns:
            if column.name not in found.types:
                raise _mismatch(table, f"the destination lacks the column {column.name}", column.name)
        equality = found.uniques.get(frozenset(table.key))
        if equality is None:
            raise _mismatch(table, f"the destination has no unique index on exactly ({', '.join(table.key)})", None)
        made = TableStatements(table, "pm$letters", equality)
        known[table.table] = (table, made)
        return made

    async def _apply(self, letter: DeadLetter, table: TableStatements) -> Cause | None:
        """Apply one letter; return why it was refused, or None."""
        assert self._session is not None
        statements = [statement for _, statement in rows.statements(batch_of(letter), table)]
        try:
            await self._session.exchange([_MARK, *statements, _RELEASE])
        except StatementFailed as failed:
            error = failed.error
            refusal = failure(error, table=letter.table.table)
            if not careful.is_about_a_row(error):
                raise refusal from None
            cause = Cause(
                code=refusal.code,
                sql_state=error.sqlstate,
                column=error.diag.column_name,
                message=str(refusal.args[0]),
            )
            await self._session.run(_UNDO)
            return cause
        except RowsMissed:
            # Nothing was touched that would have to be undone.
            return careful.MISSING
        return None

    async def _is_overtaken(self, each: Stored) -> bool:
        """Say whether a later letter makes the whole row anew, or deletes it, so that this one's part of it is not missed."""
        key = each.letter.keys[0]
        if len(each.letter.keys) > 1:
            return False
        found = await self._execute(_WHOLE_AFTER, (self._pipeline_id, each.id, key, key))
        return bool(found and found[0][0])

    async def _run(self, statement: Statement) -> None:
        assert self._session is not None
        try:
            await self._session.run([statement])
        except psycopg.Error as error:
            raise _failure(error) from error

    async def _execute(self, query: str, parameters: Sequence[object] = ()) -> list[tuple[object, ...]]:
        assert self._session is not None
        try:
            return await self._session.execute(query, parameters)
        except psycopg.Error as error:
            raise _failure(error) from error


def _failure(error: psycopg.Error) -> Failure:
    if isinstance(error, psycopg.errors.LockNotAvailable):
        return RetryLater(Code.SINK_UNREACHABLE, "the pipeline is in the middle of a long transaction: try again later")
    return failure(error)


def _mismatch(table: TableSchema, message: str, column: str | None) -> Permanent:
    return Permanent(Code.SINK_TABLE_MISMATCH, message, table=table.table, column=column)


def _chunks(ids: Collection[int]) -> Iterator[list[int]]:
    held = list(ids)
    for start in range(0, len(held), LETTERS_AT_ONCE):
        yield held[start : start + LETTERS_AT_ONCE]


def _number(value: object) -> int:
    assert isinstance(value, int)
    return value
