"""A slot as a source measures it: the question, and what its answer says. No I/O, and no driver of a database.

In flow rows of `measure_query` and the comment of the pipeline's publication; out flows a `SlotMeasure`. Called by whoever
measures: the source while it streams, and `retention` while nobody does. Workers and the node pass measures on.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from msgspec import Struct

from contracts.slots import Invalidation, SlotStatus

REASONS_VERSION = 170000
"""From here on the server says since when a slot is not read, and why it was given up."""
GIVEN_UP = "given_up"
"""The field of the publication's comment that names slots given up."""

_MEASURE = """SELECT s.slot_name, s.active, s.wal_status,
    COALESCE(GREATEST(pg_wal_lsn_diff(ends.lsn, s.restart_lsn), 0), 0)::int8,
    COALESCE(GREATEST(pg_wal_lsn_diff(ends.lsn, s.confirmed_flush_lsn), 0), 0)::int8,
    s.safe_wal_size, COALESCE(GREATEST(age(s.catalog_xmin), 0), 0)::int8, COALESCE(t.spill_bytes, 0),
    {inactive}, {reason}, (ends.lsn - '0/0')::int8
    FROM pg_replication_slots s
    CROSS JOIN (SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END)
        AS ends(lsn)
    LEFT JOIN pg_stat_replication_slots t USING (slot_name)
    WHERE starts_with(s.slot_name, %s) AND NOT s.temporary ORDER BY s.slot_name"""


class SlotMeasure(Struct, frozen=True, kw_only=True):
    """A pipeline's slot at one moment. Where several have its name, the one that keeps most."""

    at: float
    """Seconds since 1970, on this machine's clock."""
    name: str
    status: SlotStatus
    active: bool = False
    retained_bytes: int = 0
    unconfirmed_bytes: int = 0
    safe_bytes: int | None = None
    catalog_age: int = 0
    spill_bytes: int = 0
    inactive_seconds: float | None = None
    invalidation: Invalidation | None = None
    log_end: int = 0
    """Where the server's log ends, as a number."""

    @property
    def is_gone(self) -> bool:
        """Whether nothing can be read from it any more."""
        return self.status in (SlotStatus.LOST, SlotStatus.MISSING)


def measure_query(version: int) -> str:
    """Return the statement that measures the slots whose names begin with its one parameter."""
    newer = version >= REASONS_VERSION
    return _MEASURE.format(
        inactive="extract(epoch FROM now() - s.inactive_since)::float8" if newer else "NULL::float8",
        reason="s.invalidation_reason" if newer else "NULL",
    )


def measured(
    rows: Sequence[Sequence[Any]], comment: str | None, *, wall: Callable[[], float] = time.time
) -> SlotMeasure | None:
    """Return what the rows of `measure_query` say, with the publication's comment; None if there never was a slot."""
    if not rows:
        gone = given_up(comment)
        return SlotMeasure(at=wall(), name=gone[0], status=SlotStatus.MISSING) if gone else None
    name, active, status, retained, unconfirmed, safe, age, spilled, inactive, reason, end = max(
        rows, key=lambda row: int(row[3])
    )
    lost = status == "lost" or reason is not None
    return SlotMeasure(
        at=wall(),
        name=name,
        status=SlotStatus.LOST if lost else SlotStatus(status or "reserved"),
        active=active,
        retained_bytes=retained,
        unconfirmed_bytes=unconfirmed,
        safe_bytes=None if safe is None else max(0, safe),
        catalog_age=age,
        spill_bytes=spilled,
        inactive_seconds=None if active or inactive is None else max(0.0, inactive),
        invalidation=_invalidation(reason or "wal_removed") if lost else None,
        log_end=end,
    )


def _invalidation(reason: str) -> Invalidation:
    return next((each for each in Invalidation if each.value == reason), Invalidation.OTHER)


def given_up(comment: str | None) -> list[str]:
    """Return the slots that a publication's comment says were given up."""
    names = fields_of(comment).get(GIVEN_UP)
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []


def fields_of(comment: str | None) -> dict[str, Any]:
    """Return the fields of a publication's comment; none for one that is not ours."""
    try:
        fields = msgspec.json.decode(comment or "{}")
    except msgspec.DecodeError:
        return {}
    return fields if isinstance(fields, dict) else {}
