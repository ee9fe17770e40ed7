"""What the doctor looks at in a connection: the closed words for what a node finds, and the versions that it knows.

A node sends findings: a check, an outcome, names and numbers. `meanings` holds what each means to people. Add a check
here, never reuse or rename one: golden files hold their values.
"""

from enum import Enum
from typing import NamedTuple

SERVER_VERSION_MIN = 140000


class Outcome(Enum):
    """How a check ended, from good to bad; `unknown` says that it could not be looked at."""

    OK = "ok"
    UNKNOWN = "unknown"
    WARNING = "warning"
    """It works, and may not for ever."""
    PROBLEM = "problem"
    """A pipeline cannot run, or has lost its place."""


class State(Enum):
    """What PostgreSQL itself calls what was found, and what kind of thing it is."""

    MINIMAL = "minimal"
    REPLICA = "replica"
    UNRESERVED = "unreserved"
    WAL_REMOVED = "wal_removed"
    ROWS_REMOVED = "rows_removed"
    WAL_LEVEL_INSUFFICIENT = "wal_level_insufficient"
    IDLE_TIMEOUT = "idle_timeout"
    IDENTITY_DEFAULT = "identity_default"
    IDENTITY_INDEX = "identity_index"
    IDENTITY_FULL = "identity_full"
    IDENTITY_NOTHING = "identity_nothing"
    UNLOGGED = "unlogged"
    NO_TABLE = "no_table"
    OTHER = "other"
    # What a failover needs
    FAILOVER_UNSUPPORTED = "failover_unsupported"
    NO_STANDBY_SLOT = "no_standby_slot"
    NO_FEEDBACK = "no_feedback"
    NOT_SYNCHRONIZED = "not_synchronized"
    STANDBY_NOT_AWAITED = "standby_not_awaited"
    STANDBY_AWAY = "standby_away"
    SLOT_NOT_MARKED = "slot_not_marked"
    # What somebody changed in a publication
    ROW_FILTER = "row_filter"
    COLUMN_LIST = "column_list"
    PUBLISH = "publish"


class Check(Enum):
    """One thing that the doctor looks at."""

    CONNECTS = "connects"
    SERVER_VERSION = "server_version"
    SERVER_BUGS = "server_bugs"
    # The source's server
    PRIMARY = "primary"
    WAL_LEVEL = "wal_level"
    REPLICATION_RIGHT = "replication_right"
    PUBLICATION_RIGHT = "publication_right"
    FREE_SLOTS = "free_slots"
    FREE_WAL_SENDERS = "free_wal_senders"
    WAL_SENDER_TIMEOUT = "wal_sender_timeout"
    SLOT_SIZE_LIMIT = "slot_size_limit"
    SLOT_IDLE_LIMIT = "slot_idle_limit"
    FAILOVER_SLOTS = "failover_slots"
    OLDEST_TRANSACTION = "oldest_transaction"
    CATALOG_AGE = "catalog_age"
    # The source's tables
    TABLE_EXISTS = "table_exists"
    TABLE_LOGGED = "table_logged"
    TABLE_READABLE = "table_readable"
    TABLE_OWNED = "table_owned"
    TABLE_IDENTITY = "table_identity"
    PARTITION_IDENTITY = "partition_identity"
    GENERATED_COLUMNS = "generated_columns"
    COLUMN_NAMES = "column_names"
    # Slots
    PIPELINE_SLOT = "pipeline_slot"
    OTHER_SLOTS = "other_slots"
    PUBLICATION = "publication"
    # The destination
    WRITABLE = "writable"
    OTHER_DATABASE = "other_database"
    DATABASE_RIGHT = "database_right"
    SCHEMA_RIGHT = "schema_right"
    TABLE_WRITABLE = "table_writable"
    TABLE_EMPTY = "table_empty"


class Bug(NamedTuple):
    """A bug of PostgreSQL that touches logical decoding: in `major`, from `since` on, until `fixed` (minor versions)."""

    name: str
    major: int
    since: int
    fixed: int
    summary: str


_LOST = (
    "Changes can be lost for good when a publication or a type is altered while transactions on its tables are open."
)
_REMOVED = (
    "Log that a slot still needs can be removed while a checkpoint runs, and is missing after a crash at that moment."
)
_MEMORY = "Decoding can fail with `invalid memory alloc request size` when much DDL runs beside long transactions."

BUGS: tuple[Bug, ...] = (
    *(
        Bug("changes lost beside DDL", major, 0, fixed, _LOST)
        for major, fixed in ((17, 5), (16, 9), (15, 13), (14, 18))
    ),
    *(
        Bug("log removed beside checkpoints", major, 0, fixed, _REMOVED)
        for major, fixed in ((17, 6), (16, 10), (15, 14), (14, 19))
    ),
    *(
        Bug("invalidations that grow", major, since, fixed, _MEMORY)
        for major, since, fixed in ((17, 5, 6), (16, 9, 10), (15, 13, 14), (14, 18, 19))
    ),
)
"""Which minor versions have which bug. All are fixed in every release of 18."""


def bugs_of(server_version: int) -> list[Bug]:
    """Return the bugs of a server, whose version is as PostgreSQL counts it (170004 for 17.4)."""
    major, minor = divmod(server_version, 10_000)
    return [bug for bug in BUGS if bug.major == major and bug.since <= minor < bug.fixed]
