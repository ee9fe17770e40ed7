"""What a replication slot keeps of a source's log: what people ask for, and the numbers that a node measures of it.

Down goes `SourceLog`, a part of a pipeline's document; up goes `Slot`, a part of its telemetry: numbers, times and closed
words, nothing else. `v2` holds both.
"""

from enum import Enum
from typing import Annotated

from msgspec import Meta, Struct

from contracts.names import Count, Seconds

RETAIN_BYTES_MIN = 64 << 20

RetainBytesMax = Annotated[
    int,
    Meta(ge=RETAIN_BYTES_MIN, le=1 << 50, description="How much of the source's log the slot may keep, in bytes."),
]


class OnFull(Enum):
    """What happens when the slot keeps as much of the source's log as it may."""

    STOP = "stop"
    """The node drops the slot, so that the source's disk is safe. The pipeline stops in a gap, and says so."""
    KEEP = "keep"
    """The source goes on keeping its log; alerts say so."""


class SourceLog(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """How much of its log the source may keep for the pipeline. Without `retain_bytes_max` there is no limit of ours."""

    retain_bytes_max: RetainBytesMax | None = None
    on_full: OnFull = OnFull.KEEP


class SlotStatus(Enum):
    """What PostgreSQL calls the state of the log that a slot needs (`wal_status`)."""

    RESERVED = "reserved"
    EXTENDED = "extended"
    """More than max_wal_size, and kept."""
    UNRESERVED = "unreserved"
    """More than max_slot_wal_keep_size: the next checkpoint of the server may remove it."""
    LOST = "lost"
    """The slot is of no use any more."""
    MISSING = "missing"
    """There is no slot: a node dropped it at the pipeline's limit. Not a word of PostgreSQL's."""


class Invalidation(Enum):
    """Why PostgreSQL gave a slot up (`invalidation_reason`, from version 17 on)."""

    WAL_REMOVED = "wal_removed"
    ROWS_REMOVED = "rows_removed"
    WAL_LEVEL_INSUFFICIENT = "wal_level_insufficient"
    IDLE_TIMEOUT = "idle_timeout"
    OTHER = "other"


class Slot(Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True, kw_only=True):
    """How a pipeline's slot stands.

    Rates are smoothed over about two minutes. `limit_bytes` is the lower of the pipeline's own limit and
    the server's; without either nobody can say when the server's disk will be full, because no client sees that disk.
    """

    status: SlotStatus
    active: bool = False
    retained_bytes: Count = 0
    """Log that the server keeps for the slot, from its restart_lsn on."""
    unconfirmed_bytes: Count = 0
    """Log after the position that was confirmed."""
    safe_bytes: Count | None = None
    """How much more the server writes before it may give the slot up; None where max_slot_wal_keep_size sets no limit."""
    limit_bytes: Count | None = None
    growth_bytes_per_second: Seconds = 0.0
    written_bytes_per_second: Seconds = 0.0
    """How fast the server's log grows, whoever writes it: what a pause costs."""
    seconds_left: Seconds | None = None
    """Until the limit, should it go on like this; None without a limit, and while the slot keeps no more than before."""
    catalog_age: Count = 0
    """How many transactions the slot holds the catalog's vacuum back."""
    spill_bytes: Count = 0
    """What the server wrote to its disk while it decoded large transactions, since its statistics were reset."""
    inactive_seconds: Seconds | None = None
    """Since when nobody reads the slot; None while somebody does, and before PostgreSQL 17."""
    invalidation: Invalidation | None = None
