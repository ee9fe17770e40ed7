"""The table that says how far each lane of a pipeline is, in the destination: its SQL, and rows to `Ahead`.

`pointsman.lanes` has one row for each lane that ever wrote, and the lane writes it in the transaction of its rows. The
fence is the checkpoint's own: a lane locks that row in share mode and compares its epoch first, so a claim, a repair and a
replay of dead letters wait for every lane, and a lane of an older owner writes nothing. Rows at or before the checkpoint's
position mean nothing. Pure; the sink sends these.
"""

from collections.abc import Collection, Sequence

from dataplane.batch import Position
from dataplane.checkpoint import Checkpoint
from dataplane.sinks.lanes import Ahead
from dataplane.sinks.postgres.checkpoints import Fence, text_array
from dataplane.sinks.postgres.session import Statement

SETUP = (
    """CREATE TABLE IF NOT EXISTS pointsman.lanes (
        pipeline_id text NOT NULL,
        lane integer NOT NULL,
        lanes integer NOT NULL,
        undivided text[] NOT NULL,
        position_lsn bigint NOT NULL,
        position_ordinal bigint NOT NULL,
        PRIMARY KEY (pipeline_id, lane)
    ) WITH (fillfactor = 20)""",
)
"""What is made where it is missing."""

LOAD = """SELECT lane, lanes, undivided, position_lsn, position_ordinal FROM pointsman.lanes WHERE pipeline_id = %s"""

TIED = """WITH parts AS (
        SELECT to_regclass(%s)::oid AS part UNION SELECT relid::oid FROM pg_partition_tree(to_regclass(%s))
    ), keys AS (SELECT array_agg(attnum) AS numbers FROM pg_attribute
        WHERE attrelid = to_regclass(%s) AND attname = ANY (%s) AND NOT attisdropped)
    SELECT EXISTS (SELECT FROM pg_constraint JOIN parts ON part IN (conrelid, confrelid) WHERE contype = 'f')
        OR EXISTS (SELECT FROM pg_index JOIN parts ON part = indrelid, keys
            WHERE indisexclusion OR (indisunique AND CASE WHEN indrelid = to_regclass(%s)
                THEN NOT numbers <@ (indkey::smallint[])[0:indnkeyatts - 1]
                ELSE NOT EXISTS (SELECT FROM pg_inherits WHERE inhrelid = indexrelid) END))
        OR EXISTS (SELECT FROM pg_attribute JOIN pg_collation AS l ON l.oid = attcollation
            WHERE attrelid = to_regclass(%s) AND attname = ANY (%s) AND NOT collisdeterministic)"""
"""Whether rows of different keys are tied at the destination: by a foreign key, by another unique or exclusion constraint
than the key, also one that a partition has by itself, or by a collation under which two texts are equal. Parameters: the table's quoted name and its key."""

_WRITE = b"""WITH mine AS (SELECT FROM pointsman.checkpoints WHERE pipeline_id = $1 AND epoch = $2 FOR SHARE),
    noted AS (INSERT INTO pointsman.lanes (pipeline_id, lane, lanes, undivided, position_lsn, position_ordinal)
        SELECT $1, $3::integer, $4::integer, $5::text[], $6::bigint, $7::bigint FROM mine
        ON CONFLICT (pipeline_id, lane) DO UPDATE SET lanes = EXCLUDED.lanes, undivided = EXCLUDED.undivided,
            position_lsn = EXCLUDED.position_lsn, position_ordinal = EXCLUDED.position_ordinal RETURNING 1)
    SELECT 1 / count(*) FROM noted"""
_FORGET = b"DELETE FROM pointsman.lanes WHERE pipeline_id = $1"


class LaneFence(Fence):
    """The statements of one lane of an owner: what it writes down is its own position, never the checkpoint."""

    def __init__(self, pipeline_id: str, epoch: int, lane: int, lanes: int) -> None:
        super().__init__(pipeline_id, epoch)
        self._lane = (b"%d" % lane, b"%d" % lanes)
        self._undivided = text_array(())

    def divides(self, undivided: Collection[str]) -> None:
        """Note which tables of the next set are not divided."""
        self._undivided = text_array(sorted(undivided))

    def write(self, after: Checkpoint) -> Statement:
        """Hold the fence together with other lanes, and write the lane's position."""
        lsn, ordinal = after.position
        return Statement(_WRITE, (*self._mine, *self._lane, self._undivided, b"%d" % lsn, b"%d" % ordinal))


def forget(pipeline_id: str) -> Statement:
    """Let go of all lanes of a pipeline: no position of theirs means anything any more."""
    return Statement(_FORGET, (pipeline_id.encode(),))


def ahead(rows: Sequence[Sequence[object]], position: Position) -> Ahead:
    """Return what rows of `LOAD` say beyond the checkpoint's `position`. They are all of one set."""
    reached: dict[int, Position] = {}
    lanes, undivided = 1, frozenset[str]()
    for lane, of, tables, lsn, ordinal in rows:
        at = Position(int(str(lsn)), int(str(ordinal)))
        if at <= position:
            continue
        assert isinstance(tables, list)
        reached[int(str(lane))] = at
        lanes, undivided = int(str(of)), frozenset(str(table) for table in tables)
    return Ahead(lanes, reached, undivided)
