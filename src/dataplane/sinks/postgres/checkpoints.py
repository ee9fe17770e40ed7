"""The table that holds checkpoints and fences, in the destination: its SQL, and rows to `Checkpoint` and back.

One row for each pipeline, `pointsman.checkpoints`. Its epoch is the fence: taken from a sequence while the row is
locked, so it grows with every claim and none is ever given twice, not even after the row was deleted. Statements that
write compare it and divide by the number of rows that they found: a fenced writer gets an error (22012) that also stops
what follows in the same pipeline, its COMMIT included. Pure; the sink sends these.
"""

from collections.abc import Sequence

import msgspec

from dataplane.batch import BufferMark, Position
from dataplane.checkpoint import Checkpoint, Cursor, SourceIdentity
from dataplane.sinks.postgres.session import Statement

FENCED_SQL_STATE = "22012"

SETUP_LOCK = 0x706F696E74736D  # one number for all of ours: two nodes that set up at once take turns
SETUP = (
    "CREATE SCHEMA IF NOT EXISTS pointsman",
    "CREATE SEQUENCE IF NOT EXISTS pointsman.epochs",
    """CREATE TABLE IF NOT EXISTS pointsman.checkpoints (
        pipeline_id text PRIMARY KEY,
        epoch bigint NOT NULL,
        owner text NOT NULL,
        source_system text,
        source_timeline integer,
        source_database text,
        source_slot text,
        source_publication text,
        position_lsn bigint NOT NULL DEFAULT 0,
        position_ordinal bigint NOT NULL DEFAULT 0,
        confirmed_through bigint NOT NULL DEFAULT 0,
        snapshot_done boolean NOT NULL DEFAULT false,
        tables_owned text[] NOT NULL DEFAULT '{}',
        tables_copied text[] NOT NULL DEFAULT '{}',
        updated_at timestamptz NOT NULL DEFAULT now()
    ) WITH (fillfactor = 20)""",
    "ALTER TABLE pointsman.checkpoints ADD COLUMN IF NOT EXISTS resynced jsonb NOT NULL DEFAULT '{}'",
    "ALTER TABLE pointsman.checkpoints ADD COLUMN IF NOT EXISTS buffer jsonb NOT NULL DEFAULT 'null'",
    "ALTER TABLE pointsman.checkpoints ADD COLUMN IF NOT EXISTS cursors jsonb NOT NULL DEFAULT '{}'",
)
"""What is made where it is missing. The low fill factor keeps the row's frequent updates within its page."""

IS_SET_UP = """SELECT to_regclass('pointsman.epochs') IS NOT NULL
    AND to_regclass('pointsman.dead_letter_history') IS NOT NULL AND to_regclass('pointsman.shapes') IS NOT NULL
    AND to_regclass('pointsman.lanes') IS NOT NULL
    AND (SELECT count(*) FROM pg_attribute
    WHERE attrelid = to_regclass('pointsman.checkpoints') AND attname IN ('resynced', 'buffer', 'cursors')
        AND NOT attisdropped) = 3"""

_FIELDS = """epoch, source_system, source_timeline, source_database, source_slot, source_publication, position_lsn,
    position_ordinal, confirmed_through, snapshot_done, tables_owned, tables_copied, resynced, buffer, cursors"""

CLAIM = f"""INSERT INTO pointsman.checkpoints AS held (pipeline_id, epoch, owner)
    VALUES (%s, nextval('pointsman.epochs'), %s)
    ON CONFLICT (pipeline_id) DO UPDATE
        SET epoch = nextval('pointsman.epochs'), owner = EXCLUDED.owner, updated_at = now()
        WHERE %s OR held.epoch = %s
    RETURNING {_FIELDS}"""  # noqa: S608
"""Parameters: pipeline, owner, whether to claim it whoever holds it, and else the epoch of whom it may be claimed from.

The sequence is read under the row's lock, so two that claim at once get their order. No row: someone else was quicker.
"""

OWNER = "SELECT epoch, owner FROM pointsman.checkpoints WHERE pipeline_id = %s"

IDENTITY = "SELECT system_identifier::text, current_database()::text FROM pg_control_system()"

LOAD = f"SELECT {_FIELDS} FROM pointsman.checkpoints WHERE pipeline_id = %s"  # noqa: S608

HAS_COMPARISONS = "SELECT to_regclass('pointsman.reconcile_rows_of') IS NOT NULL"
FORGET_COMPARISONS = (
    "DELETE FROM pointsman.reconcile_rows WHERE pipeline_id = %s",
    "DELETE FROM pointsman.reconciles WHERE pipeline_id = %s",
)
"""What comparisons of both ends (`dataplane.reconcile`) left here of a pipeline, keys among it."""

SESSIONS_OF_OLDER_OWNERS = """SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE application_name = %s AND pid <> pg_backend_pid() AND usename = current_user
        AND datname = current_database()"""
"""Parameter: the application's name. A frozen owner may hold a transaction and its locks for ever; this ends it."""


def checkpoint(row: Sequence[object]) -> Checkpoint | None:
    """Return the checkpoint that a row of `CLAIM` or `LOAD` holds; None for one that was only claimed so far."""
    epoch, system, timeline, database, slot, publication, lsn, ordinal, confirmed, done, owned, copied, *maps = row
    resynced, buffer, cursors = maps
    if system is None and not owned and not _number(lsn) and not _number(confirmed):
        return None
    source = None
    if system is not None:
        source = SourceIdentity(
            system_identifier=str(system),
            timeline=_number(timeline),
            database=str(database),
            slot=str(slot),
            publication=str(publication),
        )
    return Checkpoint(
        epoch=_number(epoch),
        source=source,
        position=Position(_number(lsn), _number(ordinal)),
        confirmed_through=_number(confirmed),
        snapshot_done=bool(done),
        tables_owned=_names(owned),
        tables_copied=_names(copied),
        resynced=_numbers(resynced),
        buffer=msgspec.convert(buffer, BufferMark | None),
        cursors=msgspec.convert(cursors, dict[str, Cursor]),
    )


def _number(value: object) -> int:
    assert isinstance(value, int)
    return value


def _names(value: object) -> list[str]:
    assert isinstance(value, list)
    return [str(name) for name in value]


def _numbers(value: object) -> dict[str, int]:
    assert isinstance(value, dict)
    return {str(name): _number(number) for name, number in value.items()}


def _fenced(change: str) -> bytes:
    return (
        f"WITH mine AS (UPDATE pointsman.checkpoints SET {change}, updated_at = now()"  # noqa: S608
        " WHERE pipeline_id = $1 AND epoch = $2 RETURNING 1) SELECT 1 / count(*) FROM mine"
    ).encode()


_HOLD = b"""SELECT 1 / count(*) FROM (SELECT 1 FROM pointsman.checkpoints
    WHERE pipeline_id = $1 AND epoch = $2 FOR UPDATE) AS mine"""
_WRITE = _fenced(
    "position_lsn = $3, position_ordinal = $4, confirmed_through = greatest(confirmed_through, $5),"
    " snapshot_done = $6, tables_copied = $7, resynced = $8, buffer = $9, cursors = $10"
)
_ADVANCE = _fenced("confirmed_through = greatest(confirmed_through, $3)")
_OWN = _fenced("tables_owned = tables_owned || array[$3]::text[]")
_BEGIN = _fenced(
    "source_system = $3, source_timeline = $4, source_database = $5, source_slot = $6, source_publication = $7,"
    " position_lsn = 0, position_ordinal = 0, confirmed_through = 0, snapshot_done = false, tables_copied = '{}',"
    " resynced = '{}', buffer = 'null', cursors = '{}'"
)
_FOLLOW = _fenced(
    "source_system = $3, source_timeline = $4, source_database = $5, source_slot = $6, source_publication = $7,"
    " confirmed_through = $8"
)
_FORGET = b"""WITH mine AS (DELETE FROM pointsman.checkpoints WHERE pipeline_id = $1 AND epoch = $2 RETURNING 1)
    SELECT 1 / count(*) FROM mine"""


class Fence:
    """The statements of one owner of one pipeline: each fails once a newer owner has claimed it."""

    def __init__(self, pipeline_id: str, epoch: int) -> None:
        self.epoch = epoch
        self._mine = (pipeline_id.encode(), b"%d" % epoch)

    def hold(self) -> Statement:
        """Lock the row: nobody else can claim the pipeline until this transaction ends."""
        return Statement(_HOLD, self._mine)

    def write(self, after: Checkpoint) -> Statement:
        """Write position, confirmed LSN, and how far the tables' copies are. The row stays locked until the transaction ends."""
        position = after.position
        return Statement(
            _WRITE,
            (
                *self._mine,
                b"%d" % position.lsn,
                b"%d" % position.ordinal,
                b"%d" % after.confirmed_through,
                b"t" if after.snapshot_done else b"f",
                text_array(after.tables_copied),
                msgspec.json.encode(after.resynced),
                msgspec.json.encode(after.buffer),
                msgspec.json.encode(after.cursors),
            ),
        )

    def advance(self, confirmed_through: int) -> Statement:
        """Raise what the source may be told."""
        return Statement(_ADVANCE, (*self._mine, b"%d" % confirmed_through))

    def own(self, table: str) -> Statement:
        """Note that the pipeline may empty and fill `table`."""
        return Statement(_OWN, (*self._mine, table.encode()))

    def begin(self, source: SourceIdentity) -> Statement:
        """Start over with another source; tables owned stay owned."""
        return Statement(_BEGIN, (*self._mine, *_identity(source)))

    def follow(self, source: SourceIdentity, confirmed_through: int) -> Statement:
        """Write the same source's new identity; all else stays, but for what it may have been told."""
        return Statement(_FOLLOW, (*self._mine, *_identity(source), b"%d" % confirmed_through))

    def forget(self) -> Statement:
        """Delete the row."""
        return Statement(_FORGET, self._mine)


def _identity(source: SourceIdentity) -> tuple[bytes, ...]:
    return (
        source.system_identifier.encode(),
        b"%d" % source.timeline,
        *(name.encode() for name in (source.database, source.slot, source.publication)),
    )


def text_array(names: Sequence[str]) -> bytes:
    """Return names as the text of an array."""
    quoted = ('"' + name.replace("\\", "\\\\").replace('"', '\\"') + '"' for name in names)
    return ("{" + ",".join(quoted) + "}").encode()
