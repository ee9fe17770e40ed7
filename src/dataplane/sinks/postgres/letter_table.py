"""The tables of dead letters in the destination: their SQL, and rows to `DeadLetter` and back. Pure.

`pointsman.dead_letters` has one row for each letter, in the order in which a key's letters must be applied (`id`).
`pointsman.dead_letter_history` says what became of letters that are not there any more, by table and number.
Everybody who touches a pipeline's letters holds its checkpoint's row first: the sink, the replay and the drop.
"""

from collections.abc import Collection, Sequence

import msgspec

from contracts.codes import Code
from dataplane.batch import Column, Op, Position, TableSchema
from dataplane.sinks.letters import MESSAGE_CHARACTERS_MAX, Cause, DeadLetter
from dataplane.sinks.postgres.checkpoints import text_array
from dataplane.sinks.postgres.session import Statement

SETUP = (
    """CREATE TABLE IF NOT EXISTS pointsman.dead_letters (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        pipeline_id text NOT NULL,
        table_schema text NOT NULL,
        table_name text NOT NULL,
        op text NOT NULL,
        key jsonb NOT NULL,
        old_key jsonb,
        row_values jsonb NOT NULL,
        unchanged text[] NOT NULL,
        columns jsonb NOT NULL,
        code text NOT NULL,
        sql_state text,
        column_name text,
        message text NOT NULL,
        position_lsn bigint NOT NULL,
        position_ordinal bigint NOT NULL,
        commit_time timestamptz NOT NULL,
        at timestamptz NOT NULL DEFAULT now(),
        attempts integer NOT NULL DEFAULT 1,
        key_digest bytea NOT NULL,
        old_key_digest bytea
    )""",
    """CREATE INDEX IF NOT EXISTS dead_letters_of_key ON pointsman.dead_letters (pipeline_id, key_digest)""",
    """CREATE INDEX IF NOT EXISTS dead_letters_of_old_key ON pointsman.dead_letters (pipeline_id, old_key_digest)
        WHERE old_key_digest IS NOT NULL""",
    """CREATE TABLE IF NOT EXISTS pointsman.dead_letter_history (
        at timestamptz NOT NULL DEFAULT now(),
        pipeline_id text NOT NULL,
        table_schema text NOT NULL,
        table_name text NOT NULL,
        outcome text NOT NULL,
        letters bigint NOT NULL,
        first_id bigint NOT NULL,
        last_id bigint NOT NULL
    )""",
)
"""What is made where it is missing."""

FIELDS = """id, table_schema, table_name, op, old_key, row_values, unchanged, columns, code, sql_state, column_name,
    message, position_lsn, position_ordinal, (extract(epoch FROM commit_time) * 1000000)::bigint, at, attempts, key_digest,
    old_key_digest"""

COUNT = """SELECT table_schema, table_name, count(*) FROM pointsman.dead_letters WHERE pipeline_id = %s GROUP BY 1, 2"""

_INSERT = b"""INSERT INTO pointsman.dead_letters (pipeline_id, table_schema, table_name, op, key, old_key, row_values,
    unchanged, columns, code, sql_state, column_name, message, position_lsn, position_ordinal, commit_time, attempts,
    key_digest, old_key_digest)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15,
        timestamptz 'epoch' + $16::float8 * interval '1 microsecond', $17, $18, $19)"""

_PARKED = b"""SELECT key_digest FROM pointsman.dead_letters WHERE pipeline_id = $1 AND key_digest = ANY ($2::bytea[])
    UNION SELECT old_key_digest FROM pointsman.dead_letters
        WHERE pipeline_id = $1 AND old_key_digest = ANY ($2::bytea[])"""

_GONE = """WITH gone AS (DELETE FROM pointsman.dead_letters WHERE {} RETURNING id, table_schema, table_name)
    INSERT INTO pointsman.dead_letter_history
        (pipeline_id, table_schema, table_name, outcome, letters, first_id, last_id)
    SELECT $1, table_schema, table_name, $2, count(*), min(id), max(id) FROM gone GROUP BY table_schema, table_name"""

_CLEAR = _GONE.format("pipeline_id = $1 AND table_schema = $3 AND table_name = $4").encode()
_CLEAR_ALL = _GONE.format("pipeline_id = $1").encode()
_REMOVE = _GONE.format("pipeline_id = $1 AND id = ANY ($3::bigint[])").encode()


class Stored(msgspec.Struct, frozen=True, kw_only=True):
    """A letter as it lies there."""

    id: int
    letter: DeadLetter
    at: object
    attempts: int


def insert(pipeline_id: str, each: DeadLetter) -> Statement:
    """Write a letter down."""
    cause, position = each.cause, each.position
    return Statement(
        _INSERT,
        (
            pipeline_id.encode(),
            each.table.schema.encode(),
            each.table.name.encode(),
            each.op.name.lower().encode(),
            msgspec.json.encode(each.key),
            None if each.old_key is None else msgspec.json.encode(each.old_key),
            msgspec.json.encode(each.row),
            text_array(each.unchanged),
            msgspec.json.encode([(column.name, column.type, column.key) for column in each.table.columns]),
            cause.code.value.encode(),
            _or_null(cause.sql_state),
            _or_null(cause.column),
            cause.message[:MESSAGE_CHARACTERS_MAX].encode(),
            b"%d" % position.lsn,
            b"%d" % position.ordinal,
            b"%d" % each.commit_time,
            b"0" if cause.code is Code.BEHIND_DEAD_LETTER else b"1",
            b"\\x" + each.keys[0].hex().encode(),
            b"\\x" + each.keys[1].hex().encode() if len(each.keys) > 1 else None,
        ),
    )


def parked(pipeline_id: str, keys: Collection[bytes]) -> Statement:
    """Ask which of the keys have letters."""
    return Statement(_PARKED, (pipeline_id.encode(), digests(keys)))


def clear(pipeline_id: str, table: TableSchema, outcome: str) -> Statement:
    """Let go of a table's letters: it was emptied, or is copied again."""
    return Statement(_CLEAR, (pipeline_id.encode(), outcome.encode(), table.schema.encode(), table.name.encode()))


def clear_all(pipeline_id: str, outcome: str) -> Statement:
    """Let go of all letters: the pipeline is removed."""
    return Statement(_CLEAR_ALL, (pipeline_id.encode(), outcome.encode()))


def remove(pipeline_id: str, ids: Collection[int], outcome: str) -> Statement:
    """Let go of letters by their ids."""
    return Statement(
        _REMOVE, (pipeline_id.encode(), outcome.encode(), b"{" + b",".join(b"%d" % each for each in ids) + b"}")
    )


def stored(row: Sequence[object], known: dict[bytes, TableSchema]) -> Stored:
    """Return the letter that a row of `FIELDS` holds. `known` keeps tables, so that equal ones are one object."""
    (
        id_, schema, name, op, old_key, values, unchanged, columns, code, sql_state, column, message,
        lsn, ordinal, commit_time, at, attempts, key_digest, old_key_digest,
    ) = row  # fmt: skip
    shape = msgspec.json.encode((schema, name, columns))
    table = known.get(shape)
    if table is None:
        made = tuple(Column(str(n), str(t), 0, bool(k), not k) for n, t, k in columns)  # type: ignore[attr-defined]
        table = known[shape] = TableSchema(str(schema), str(name), made)
    keys = (key_digest,) if old_key_digest is None else (key_digest, old_key_digest)
    return Stored(
        id=_number(id_),
        at=at,
        attempts=_number(attempts),
        letter=DeadLetter(
            table=table,
            op=Op[str(op).upper()],
            row=values,  # type: ignore[arg-type]
            old_key=old_key,  # type: ignore[arg-type]
            unchanged=tuple(unchanged),  # type: ignore[arg-type]
            position=Position(_number(lsn), _number(ordinal)),
            commit_time=_number(commit_time),
            keys=keys,  # type: ignore[arg-type]
            cause=Cause(
                code=_code(str(code)),
                sql_state=None if sql_state is None else str(sql_state),
                column=None if column is None else str(column),
                message=str(message),
            ),
        ),
    )


def digests(keys: Collection[bytes]) -> bytes:
    """Return keys as the text of a bytea array."""
    return b"{" + b",".join(b'"\\\\x' + key.hex().encode() + b'"' for key in keys) + b"}"


def _or_null(value: str | None) -> bytes | None:
    return None if value is None else value.encode()


def _number(value: object) -> int:
    assert isinstance(value, int)
    return value


def _code(word: str) -> Code:
    try:
        return Code(word)
    except ValueError:
        return Code.INTERNAL  # written by a newer node
