"""What each check of the doctor means to people: its words for every outcome, and the SQL that mends it, as templates.

They are filled by `diagnosis`, on the side of whoever reads: a node never sends words. Templates know the places of
`diagnosis.PLACES`; in SQL, names come already quoted. The reference page of the checks is made from this table.
"""

from collections.abc import Mapping
from typing import Literal, NamedTuple

from contracts.checks import Check, Outcome, State

Side = Literal["both", "source", "destination"]
"""On which end of a pipeline a check is made."""


class Words(NamedTuple):
    """What an outcome means, what to do, and the statements that mend it, as templates."""

    summary: str
    hint: str = ""
    sql: tuple[str, ...] = ()


class Meaning(NamedTuple):
    """A check in words: what is looked at, on which side, and what each outcome that it can have means."""

    title: str
    side: Side
    outcomes: Mapping[Outcome, Words]
    states: Mapping[State, Words] = {}
    """Other words for a warning or problem in which PostgreSQL's own state makes a difference."""


_OK, _WARN, _BAD, _UNKNOWN = Outcome.OK, Outcome.WARNING, Outcome.PROBLEM, Outcome.UNKNOWN
_RELOAD = "SELECT pg_reload_conf()"
_LOOK_AT_SLOTS = (
    "SELECT slot_name, slot_type, database, wal_status, pg_size_pretty(pg_wal_lsn_diff(pg_current_wal_lsn(),"
    " restart_lsn)) AS retained FROM pg_replication_slots WHERE NOT active ORDER BY restart_lsn"
)
_RESTART = "It takes effect when the server is started again."
_AGAIN = "Run `pointsman resync pipeline {pipeline}`: all its tables are copied again."
_NO_KEY = Words(
    "{table} has no key that changes could name a row by.",
    "Publishing it would make its own UPDATE and DELETE fail. If columns are unique already, make them the primary key"
    " instead; the statement below rewrites the table under an exclusive lock.",
    ("ALTER TABLE {quoted_table} ADD COLUMN pointsman_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY",),
)
_HOLDS = Words("Holds for {count} of the tables.")
_MISSED = "The slot of pipeline {pipeline} was invalidated: log that it needed is gone."

MEANINGS: dict[Check, Meaning] = {
    Check.CONNECTS: Meaning(
        "The server answers and accepts the user.",
        "both",
        {_OK: Words("Connected."), _BAD: Words("It does not connect.", "See the code of this finding.")},
    ),
    Check.SERVER_VERSION: Meaning(
        "The server is PostgreSQL 14 or newer.",
        "source",
        {
            _OK: Words("PostgreSQL {version}."),
            _BAD: Words("PostgreSQL {version} is older than 14.", "Upgrade the server."),
        },
    ),
    Check.SERVER_BUGS: Meaning(
        "The minor version has no known bug of logical decoding.",
        "source",
        {
            _OK: Words("No known bug in {version}."),
            _WARN: Words("{version} has a known bug. {bugs}", "Upgrade to the newest minor version."),
        },
    ),
    Check.PRIMARY: Meaning(
        "The server is a primary.",
        "source",
        {
            _OK: Words("It is a primary."),
            _BAD: Words(
                "It is a standby: publications are made on the primary.", "Point the connection at the primary."
            ),
        },
    ),
    Check.WAL_LEVEL: Meaning(
        "wal_level is logical.",
        "source",
        {
            _OK: Words("wal_level is logical."),
            _BAD: Words("wal_level is {state}.", _RESTART, ("ALTER SYSTEM SET wal_level = 'logical'",)),
        },
    ),
    Check.REPLICATION_RIGHT: Meaning(
        "The user may replicate.",
        "source",
        {
            _OK: Words("The user may replicate."),
            _BAD: Words(
                "The user has not the REPLICATION attribute.",
                "A managed service may have a role for it instead, such as rds_replication.",
                ("ALTER ROLE {quoted_user} REPLICATION",),
            ),
        },
    ),
    Check.PUBLICATION_RIGHT: Meaning(
        "The user may make publications in the database.",
        "source",
        {
            _OK: Words("The user may make publications."),
            _BAD: Words(
                "The user may not make publications.",
                "",
                ("GRANT CREATE ON DATABASE {quoted_database} TO {quoted_user}",),
            ),
        },
    ),
    Check.FREE_SLOTS: Meaning(
        "A replication slot is free for each pipeline.",
        "source",
        {
            _OK: Words("{count} of {count_max} replication slots are in use."),
            _WARN: Words(
                "{count} of {count_max} replication slots are in use: one is left, and adding a table needs one more.",
                _RESTART,
                ("ALTER SYSTEM SET max_replication_slots = {more}",),
            ),
            _BAD: Words(
                "{count} of {count_max} replication slots are in use.",
                _RESTART,
                ("ALTER SYSTEM SET max_replication_slots = {more}",),
            ),
        },
    ),
    Check.FREE_WAL_SENDERS: Meaning(
        "A WAL sender is free for each pipeline.",
        "source",
        {
            _OK: Words("{count} of {count_max} WAL senders are in use."),
            _WARN: Words(
                "{count} of {count_max} WAL senders are in use: one is left.",
                _RESTART,
                ("ALTER SYSTEM SET max_wal_senders = {more}",),
            ),
            _BAD: Words(
                "{count} of {count_max} WAL senders are in use.",
                _RESTART,
                ("ALTER SYSTEM SET max_wal_senders = {more}",),
            ),
        },
    ),
    Check.WAL_SENDER_TIMEOUT: Meaning(
        "The server gives up a silent stream, but not too soon.",
        "source",
        {
            _OK: Words("wal_sender_timeout is {duration}."),
            _WARN: Words(
                "wal_sender_timeout is {duration}.",
                "0 keeps a slot held by a session that is gone; a short one cuts streams on a slow network.",
                ("ALTER SYSTEM SET wal_sender_timeout = '60s'", _RELOAD),
            ),
        },
    ),
    Check.SLOT_SIZE_LIMIT: Meaning(
        "The log that a slot may keep is limited.",
        "source",
        {
            _OK: Words("max_slot_wal_keep_size is {size}."),
            _WARN: Words(
                "max_slot_wal_keep_size is unlimited: a pipeline that stands still can fill the server's disk.",
                "Choose what the disk can spare. A slot that needs more is given up, and its pipeline stops in a gap."
                " A limit for one pipeline alone is its `source.log`.",
                ("ALTER SYSTEM SET max_slot_wal_keep_size = '64GB'", _RELOAD),
            ),
        },
    ),
    Check.SLOT_IDLE_LIMIT: Meaning(
        "A slot that nobody reads is not given up too soon (PostgreSQL 18).",
        "source",
        {
            _OK: Words("A slot may be idle for {duration}."),
            _WARN: Words(
                "A slot that was idle for {duration} is invalidated: a pipeline that is paused longer loses its place.",
                "",
                ("ALTER SYSTEM SET idle_replication_slot_timeout = '7d'", _RELOAD),
            ),
        },
    ),
    Check.FAILOVER_SLOTS: Meaning(
        "What happens to the slots when a standby takes over.",
        "source",
        {
            _OK: Words("The server has no standby that it knows of."),
            _WARN: Words(
                "Standbys and physical slots of the server: {count}. The pipelines' slots do not follow to them.",
                "After a failover the pipelines stop in a gap, never silently, and their tables are copied again. From"
                " PostgreSQL 17 on, set `source.failover: true` in the pipelines; before, the extension pg_failover_slots"
                " can copy slots.",
            ),
            _BAD: Words("A failover would lose the pipelines' slots.", "See the other findings of this check."),
        },
        {
            State.FAILOVER_UNSUPPORTED: Words(
                "Pipelines ask for `source.failover`, which PostgreSQL {version} does not know.",
                "Upgrade to PostgreSQL 17 or newer, or leave `source.failover` out: they do not run with it.",
            ),
            State.NO_STANDBY_SLOT: Words(
                "No standby has a physical slot here, so no copy of the pipelines' slots is kept.",
                "Make one, and name it on the standby: `ALTER SYSTEM SET primary_slot_name = 'standby_1'`.",
                ("SELECT pg_create_physical_replication_slot('standby_1')",),
            ),
            State.NO_FEEDBACK: Words(
                "No standby sends its feedback, so its copies of the slots are invalidated sooner or later.",
                "Run this on the standby.",
                ("ALTER SYSTEM SET hot_standby_feedback = on", _RELOAD),
            ),
            State.NOT_SYNCHRONIZED: Words(
                "No standby is seen that copies slots.",
                "Run this on the standby; its primary_conninfo needs a dbname as well. To see its session here, the user"
                " needs pg_read_all_stats.",
                ("ALTER SYSTEM SET sync_replication_slots = on", _RELOAD),
            ),
            State.STANDBY_NOT_AWAITED: Words(
                "synchronized_standby_slots is empty: pipelines may deliver rows that a standby does not have yet. If it"
                " takes over then, they stop in a gap.",
                "Name the standby's slot; the first statement shows it. Streams then wait for that standby.",
                (
                    "SELECT slot_name, active FROM pg_replication_slots WHERE slot_type = 'physical'",
                    "ALTER SYSTEM SET synchronized_standby_slots = 'standby_1'",
                    _RELOAD,
                ),
            ),
            State.STANDBY_AWAY: Words(
                "Standbys that synchronized_standby_slots names and that are not connected: {count}. Pipelines with"
                " `failover` wait for them, and deliver nothing.",
                "Bring the standby back, or take its slot out of the setting.",
                (
                    "SELECT slot_name, active FROM pg_replication_slots WHERE slot_type = 'physical'",
                    "ALTER SYSTEM RESET synchronized_standby_slots",
                    _RELOAD,
                ),
            ),
            State.SLOT_NOT_MARKED: Words(
                "The slot of pipeline {pipeline} is not marked for failover yet.",
                "It is marked when its next session begins: `pointsman restart pipeline {pipeline}`.",
            ),
        },
    ),
    Check.OLDEST_TRANSACTION: Meaning(
        "No long transaction holds up the making of a slot.",
        "source",
        {
            _OK: Words("The oldest writing transaction is {duration} old."),
            _WARN: Words(
                "A writing transaction is {duration} old: a new slot waits for its end, and the log is kept from there.",
                "Look for it; `pg_terminate_backend(pid)` ends its session. idle_in_transaction_session_timeout ends those"
                " that were forgotten.",
                (
                    (
                        "SELECT pid, usename, application_name, state, xact_start FROM pg_stat_activity"
                        " WHERE backend_xid IS NOT NULL ORDER BY xact_start"
                    ),
                    "SELECT gid, prepared, owner, database FROM pg_prepared_xacts ORDER BY prepared",
                ),
            ),
            _UNKNOWN: Words(
                "The user does not see other users' transactions.", "", ("GRANT pg_read_all_stats TO {quoted_user}",)
            ),
        },
    ),
    Check.CATALOG_AGE: Meaning(
        "Slots do not hold back the catalog's vacuum.",
        "source",
        {
            _OK: Words("Slots hold the catalog back by {count} transactions."),
            _WARN: Words(
                "A slot holds the catalog back by {count} transactions: the catalog grows.",
                "Let its reader go on, or drop the slot.",
                (_LOOK_AT_SLOTS,),
            ),
            _BAD: Words(
                "A slot holds the catalog back by {count} transactions: the server refuses writes at 2,000,000,000.",
                "Let its reader go on, or drop the slot.",
                (_LOOK_AT_SLOTS,),
            ),
        },
    ),
    Check.TABLE_EXISTS: Meaning(
        "Each table of the pipelines exists.",
        "source",
        {
            _OK: _HOLDS,
            _BAD: Words("{table} does not exist.", "Correct the pipeline's list of tables, or make the table."),
        },
    ),
    Check.TABLE_LOGGED: Meaning(
        "Each is a table whose changes the server writes to its log.",
        "source",
        {
            _OK: _HOLDS,
            _BAD: Words("{table} is not written to the log.", "Take it out of the pipeline."),
        },
        {
            State.UNLOGGED: Words(
                "{table} is unlogged: its changes are not in the log.", "", ("ALTER TABLE {quoted_table} SET LOGGED",)
            ),
            State.NO_TABLE: Words(
                "{table} is no table but a view or the like.", "Name the tables that it reads instead."
            ),
        },
    ),
    Check.TABLE_READABLE: Meaning(
        "The user may read each table.",
        "source",
        {
            _OK: _HOLDS,
            _BAD: Words(
                "The user may not read {table}.",
                "",
                (
                    "GRANT USAGE ON SCHEMA {quoted_schema} TO {quoted_user}",
                    "GRANT SELECT ON TABLE {quoted_table} TO {quoted_user}",
                ),
            ),
        },
    ),
    Check.TABLE_OWNED: Meaning(
        "The user owns each table, or is a member of its owner: only then may it be published.",
        "source",
        {
            _OK: _HOLDS,
            _BAD: Words(
                "The user does not own {table}, so it may not publish it.",
                "Or make the user a member of the role that owns it.",
                ("ALTER TABLE {quoted_table} OWNER TO {quoted_user}",),
            ),
        },
    ),
    Check.TABLE_IDENTITY: Meaning(
        "Each table has a key that names the rows of updates and deletes.",
        "source",
        {
            _OK: _HOLDS,
            _WARN: Words("{table} has an unusual replica identity."),
            _BAD: _NO_KEY,
        },
        {
            State.IDENTITY_DEFAULT: _NO_KEY,
            State.IDENTITY_INDEX: Words(
                "The index that was the replica identity of {table} is gone.",
                "",
                ("ALTER TABLE {quoted_table} REPLICA IDENTITY DEFAULT",),
            ),
            State.IDENTITY_FULL: Words(
                "{table} has REPLICA IDENTITY FULL: every update writes the whole old row to the log.",
                "The primary key is enough.",
                ("ALTER TABLE {quoted_table} REPLICA IDENTITY DEFAULT",),
            ),
            State.IDENTITY_NOTHING: Words(
                "{table} has REPLICA IDENTITY NOTHING, so updates name no row.",
                "It needs a primary key then.",
                ("ALTER TABLE {quoted_table} REPLICA IDENTITY DEFAULT",),
            ),
        },
    ),
    Check.PARTITION_IDENTITY: Meaning(
        "Each partition has such a key as well.",
        "source",
        {
            _OK: _HOLDS,
            _BAD: Words(
                "{count} of {count_max} partitions of {table} have no key that changes could name a row by.",
                "Give the partitioned table a primary key, or see which partitions have another identity.",
                (
                    (
                        "SELECT c.oid::regclass, c.relreplident FROM pg_partition_tree({literal_table}) AS t"
                        " JOIN pg_class AS c ON c.oid = t.relid ORDER BY 1"
                    ),
                ),
            ),
        },
    ),
    Check.GENERATED_COLUMNS: Meaning(
        "Generated columns are not delivered.",
        "source",
        {
            _OK: _HOLDS,
            _WARN: Words(
                "Generated columns of {table}, which are not delivered: {count}.",
                "Make a view at the destination that computes them.",
            ),
            _BAD: Words(
                "{table} has REPLICA IDENTITY FULL and generated columns: once it is published, its updates fail.",
                "It needs a primary key then.",
                ("ALTER TABLE {quoted_table} REPLICA IDENTITY DEFAULT",),
            ),
        },
    ),
    Check.COLUMN_NAMES: Meaning(
        "Columns have names of [A-Za-z0-9_$].",
        "source",
        {
            _OK: _HOLDS,
            _BAD: Words(
                "Columns of {table} with characters outside [A-Za-z0-9_$] in their name: {count}.",
                "Rename them with ALTER TABLE … RENAME COLUMN, or leave the table out.",
                (
                    (
                        "SELECT attname FROM pg_attribute WHERE attrelid = {literal_table}::regclass AND attnum > 0"
                        " AND NOT attisdropped AND attname !~ '^[A-Za-z0-9_$]+$'"
                    ),
                ),
            ),
        },
    ),
    Check.PIPELINE_SLOT: Meaning(
        "The pipelines' own slots are valid and read.",
        "source",
        {
            _OK: Words("The slot of pipeline {pipeline} keeps {size} of the log."),
            _WARN: Words(
                "Nobody has read the slot of pipeline {pipeline} for {duration}; it keeps {size} of the log.",
                "See `pointsman describe pipeline {pipeline}`. If it is not needed: `pointsman delete pipeline"
                " {pipeline} --cleanup`.",
            ),
            _BAD: Words(_MISSED, _AGAIN),
        },
        {
            State.UNRESERVED: Words(
                "The slot of pipeline {pipeline} keeps {size}, more than max_slot_wal_keep_size: the next checkpoint of"
                " the server may give it up.",
                "Raise the limit at once, and see why the pipeline stands still.",
                ("ALTER SYSTEM SET max_slot_wal_keep_size = '{room}MB'", _RELOAD),
            ),
            State.WAL_REMOVED: Words(
                _MISSED,
                f"Raise max_slot_wal_keep_size first. {_AGAIN}",
                ("ALTER SYSTEM SET max_slot_wal_keep_size = '64GB'", _RELOAD),
            ),
            State.IDLE_TIMEOUT: Words(
                "The slot of pipeline {pipeline} was invalidated: nobody read it for longer than the server allows.",
                f"Raise idle_replication_slot_timeout first. {_AGAIN}",
                ("ALTER SYSTEM SET idle_replication_slot_timeout = 0", _RELOAD),
            ),
        },
    ),
    Check.OTHER_SLOTS: Meaning(
        "No slot of somebody else keeps log that nobody reads.",
        "source",
        {
            _OK: Words("No other slot is unused."),
            _WARN: Words(
                "Slots of others that nobody reads: {count}. They keep {size} of the log.",
                "If nobody needs one any more: `SELECT pg_drop_replication_slot('its name')`.",
                (_LOOK_AT_SLOTS,),
            ),
        },
    ),
    Check.PUBLICATION: Meaning(
        "The pipelines' publications are as the pipelines made them.",
        "source",
        {
            _OK: Words("As they were made: {count}."),
            _BAD: Words(
                "Somebody altered the publication of pipeline {pipeline}: changes since may be missing.",
                "Run `pointsman resync pipeline {pipeline}`: it makes the publication anew and copies all tables again.",
            ),
        },
        {
            State.ROW_FILTER: Words(
                "Somebody gave the publication of pipeline {pipeline} a row filter: rows outside it are missing.",
                "Leave the publication alone. `pointsman resync pipeline {pipeline}` makes it anew and copies all again.",
            ),
            State.COLUMN_LIST: Words(
                "Somebody gave the publication of pipeline {pipeline} a list of columns: the others are missing.",
                "Leave the publication alone: columns are left out by a `drop` transform. `pointsman resync pipeline"
                " {pipeline}` makes it anew and copies all again.",
            ),
            State.PUBLISH: Words(
                "The publication of pipeline {pipeline} no longer publishes every kind of change.",
                "Run `pointsman resync pipeline {pipeline}`: it makes the publication anew and copies all tables again.",
            ),
        },
    ),
    Check.WRITABLE: Meaning(
        "The destination takes writes.",
        "destination",
        {
            _OK: Words("It takes writes."),
            _BAD: Words("It takes no writes: it is a standby or read-only.", "Point the connection at the primary."),
        },
    ),
    Check.OTHER_DATABASE: Meaning(
        "The destination is not the database that the pipeline reads from.",
        "destination",
        {
            _OK: Words("It is another database than the source."),
            _BAD: Words(
                "Pipeline {pipeline} reads from this same database, and would write into the tables that it reads.",
                "Choose another database for one of them.",
            ),
            _UNKNOWN: Words(
                "Whether pipeline {pipeline} reads from this same database could not be seen.",
                "Look at its source: `pointsman describe pipeline {pipeline}`, then `pointsman doctor connection NAME`.",
            ),
        },
    ),
    Check.DATABASE_RIGHT: Meaning(
        "The user may make the schemas that are missing.",
        "destination",
        {
            _OK: Words("No schema is missing that the user may not make."),
            _BAD: Words(
                "The user may not make schemas. Missing: {count}.",
                "One of them is `pointsman`, for the checkpoints, unless it exists.",
                ("GRANT CREATE ON DATABASE {quoted_database} TO {quoted_user}",),
            ),
        },
    ),
    Check.SCHEMA_RIGHT: Meaning(
        "The user may make the tables that are missing.",
        "destination",
        {
            _OK: Words("No table is missing that the user may not make."),
            _BAD: Words(
                "The user may not make {table} in its schema.",
                "",
                ("GRANT USAGE, CREATE ON SCHEMA {quoted_schema} TO {quoted_user}",),
            ),
        },
    ),
    Check.TABLE_WRITABLE: Meaning(
        "The user may write the tables that exist.",
        "destination",
        {
            _OK: _HOLDS,
            _BAD: Words(
                "The user may not write {table}.",
                "To follow new columns the user has to own it.",
                (
                    "GRANT USAGE ON SCHEMA {quoted_schema} TO {quoted_user}",
                    "GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON TABLE {quoted_table} TO {quoted_user}",
                ),
            ),
        },
    ),
    Check.TABLE_EMPTY: Meaning(
        "Tables that exist are empty, or the pipeline's own.",
        "destination",
        {
            _OK: _HOLDS,
            _BAD: Words(
                "{table} has rows that pipeline {pipeline} did not write; it will not touch them.",
                "The statement deletes them. Or drop the table, or choose another destination.",
                ("TRUNCATE TABLE {quoted_table}",),
            ),
            _UNKNOWN: Words("Whether {table} has rows could not be seen.", "Let the user read it."),
        },
    ),
}

UNSEEN = Words(
    "It could not be seen.", "The user may lack a right, the server answered too slowly, or the time was over."
)
"""The words for an outcome `unknown` that a check has none of its own for."""
