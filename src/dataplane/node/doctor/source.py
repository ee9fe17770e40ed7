"""Examine a source's server and slots: is it fit for logical replication, and do the slots stand well?

In flow what the catalogs and statistics say; out flow findings. The functions that begin with `judge_` decide and do no
I/O. Tables are examined by `tables`, what a failover needs by `failover`. Called by `examination`.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from contracts.checks import SERVER_VERSION_MIN, Check, Outcome, State, bugs_of
from contracts.v2 import Finding
from dataplane.node.doctor.reading import Reader

INACTIVE_SINCE_VERSION = 170000
IDLE_TIMEOUT_VERSION = 180000

SENDER_TIMEOUT_SECONDS_MIN = 10.0
SLOT_IDLE_LIMIT_SECONDS_MIN = 86_400.0
SLOT_UNREAD_SECONDS_MAX = 3_600.0
SLOT_UNREAD_BYTES_MAX = 1 << 30
TRANSACTION_SECONDS_MAX = 300.0
CATALOG_AGE_WARNED = 100_000_000
CATALOG_AGE_MAX = 1_000_000_000

_OK, _WARN, _BAD, _UNKNOWN = Outcome.OK, Outcome.WARNING, Outcome.PROBLEM, Outcome.UNKNOWN

_SERVER = """SELECT current_setting('wal_level'), pg_is_in_recovery(),
    rolreplication OR rolsuper OR EXISTS (SELECT FROM pg_roles r WHERE r.rolname IN ('rds_replication', 'azure_pg_admin')
        AND pg_has_role(r.oid, 'MEMBER')),
    has_database_privilege(current_database(), 'CREATE')
    FROM pg_roles WHERE rolname = current_user"""

_LIMITS = """SELECT current_setting('max_replication_slots')::int8, (SELECT count(*) FROM pg_replication_slots),
    current_setting('max_wal_senders')::int8, (SELECT count(*) FROM pg_stat_replication),
    (SELECT setting::int8 FROM pg_settings WHERE name = 'max_slot_wal_keep_size'),
    (SELECT setting::float8 / 1000 FROM pg_settings WHERE name = 'wal_sender_timeout'),
    (SELECT setting::float8 * CASE unit WHEN 'min' THEN 60 WHEN 'ms' THEN 0.001 ELSE 1 END
        FROM pg_settings WHERE name = 'idle_replication_slot_timeout')"""

_TRANSACTIONS = """SELECT rolsuper OR pg_has_role('pg_read_all_stats', 'USAGE'),
    (SELECT max(extract(epoch FROM now() - age.began)) FROM (
        SELECT xact_start FROM pg_stat_activity WHERE backend_xid IS NOT NULL AND pid <> pg_backend_pid()
        UNION ALL SELECT prepared FROM pg_prepared_xacts) AS age(began))::float8
    FROM pg_roles WHERE rolname = current_user"""

_CATALOG_AGE = "SELECT COALESCE(max(age(catalog_xmin)), 0)::int8 FROM pg_replication_slots"

_SLOTS = """SELECT slot_name, active, wal_status, {reason}, {since}, safe_wal_size,
    pg_wal_lsn_diff(CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END,
        restart_lsn)::int8
    FROM pg_replication_slots WHERE NOT temporary ORDER BY slot_name"""


class Slot(NamedTuple):
    """A replication slot. `unread_seconds` is None where the server does not say it, or somebody reads it."""

    name: str
    active: bool
    status: str | None
    reason: str | None
    unread_seconds: float | None
    safe_bytes: int | None
    retained_bytes: int


def examine(reader: Reader, own: dict[str, str]) -> Iterable[Finding]:
    """Yield what there is to say of the server and its slots.

    `own` gives for each pipeline's slot prefix (without the underscore at its end) the pipeline.
    """
    version = reader.version
    yield Finding(check=Check.SERVER_VERSION, outcome=_OK if version >= SERVER_VERSION_MIN else _BAD, version=version)
    yield Finding(check=Check.SERVER_BUGS, outcome=_WARN if bugs_of(version) else _OK, version=version)
    slots = _slots(reader)
    mine = [] if slots is None else [slot for slot in slots if _pipeline_of(slot, own) is not None]
    yield from _server(reader)
    yield from _limits(reader, wanted=max(0, len(own) - len(mine)))
    yield from _waiting(reader)
    if slots is None:
        yield Finding(check=Check.PIPELINE_SLOT, outcome=_UNKNOWN)
        yield Finding(check=Check.OTHER_SLOTS, outcome=_UNKNOWN)
        return
    for slot in mine:
        yield judge_slot(slot, own[slot.name.rpartition("_")[0]])
    yield judge_other_slots([slot for slot in slots if slot not in mine])


def _server(reader: Reader) -> Iterable[Finding]:
    row = reader.row(_SERVER)
    checks = (Check.WAL_LEVEL, Check.PRIMARY, Check.REPLICATION_RIGHT, Check.PUBLICATION_RIGHT)
    if row is None:
        yield from (Finding(check=check, outcome=_UNKNOWN) for check in checks)
        return
    level, standby, may_replicate, may_create = row
    levels = {"minimal": State.MINIMAL, "replica": State.REPLICA}
    state = None if level == "logical" else levels.get(level, State.OTHER)
    yield Finding(check=Check.WAL_LEVEL, outcome=_OK if level == "logical" else _BAD, state=state)
    for check, good in zip(checks[1:], (not standby, may_replicate, may_create), strict=True):
        yield Finding(check=check, outcome=_OK if good else _BAD)


def _limits(reader: Reader, *, wanted: int) -> Iterable[Finding]:
    row = reader.row(_LIMITS)
    if row is None:
        limits = (Check.FREE_SLOTS, Check.FREE_WAL_SENDERS, Check.SLOT_SIZE_LIMIT, Check.WAL_SENDER_TIMEOUT)
        yield from (Finding(check=check, outcome=_UNKNOWN) for check in limits)
        return
    slots_max, slots, senders_max, senders, keep_megabytes, timeout, idle = row
    yield judge_free(Check.FREE_SLOTS, slots, slots_max, wanted=wanted)
    yield judge_free(Check.FREE_WAL_SENDERS, senders, senders_max, wanted=wanted)
    unlimited = keep_megabytes < 0
    yield Finding(
        check=Check.SLOT_SIZE_LIMIT,
        outcome=_WARN if unlimited else _OK,
        size_bytes=None if unlimited else keep_megabytes << 20,
    )
    good = timeout >= SENDER_TIMEOUT_SECONDS_MIN
    yield Finding(check=Check.WAL_SENDER_TIMEOUT, outcome=_OK if good else _WARN, seconds=timeout)
    if idle:
        outcome = _OK if idle >= SLOT_IDLE_LIMIT_SECONDS_MIN else _WARN
        yield Finding(check=Check.SLOT_IDLE_LIMIT, outcome=outcome, seconds=idle)


def judge_free(check: Check, used: int, limit: int, *, wanted: int) -> Finding:
    """Judge what is left of a limit when `wanted` more are needed. One more is used while a table is added."""
    free = limit - used
    outcome = _BAD if free < wanted or limit == 0 else _WARN if free <= wanted else _OK
    return Finding(check=check, outcome=outcome, count=used, count_max=limit)


def _waiting(reader: Reader) -> Iterable[Finding]:
    row = reader.row(_TRANSACTIONS)
    if row is None or not row[0]:
        yield Finding(check=Check.OLDEST_TRANSACTION, outcome=_UNKNOWN)
    else:
        seconds = max(0.0, row[1] or 0.0)
        outcome = _WARN if seconds > TRANSACTION_SECONDS_MAX else _OK
        yield Finding(check=Check.OLDEST_TRANSACTION, outcome=outcome, seconds=seconds)
    held = reader.row(_CATALOG_AGE)
    if held is None:
        yield Finding(check=Check.CATALOG_AGE, outcome=_UNKNOWN)
    else:
        count = max(0, held[0])
        outcome = _BAD if count > CATALOG_AGE_MAX else _WARN if count > CATALOG_AGE_WARNED else _OK
        yield Finding(check=Check.CATALOG_AGE, outcome=outcome, count=count)


def _slots(reader: Reader) -> list[Slot] | None:
    newer = reader.version >= INACTIVE_SINCE_VERSION
    rows = reader.rows(
        _SLOTS.format(
            reason="invalidation_reason" if newer else "NULL",
            since="extract(epoch FROM now() - inactive_since)::float8" if newer else "NULL::float8",
        )
    )
    if rows is None:
        return None
    return [Slot._make((*row[:6], max(0, row[6] or 0))) for row in rows]


def _pipeline_of(slot: Slot, own: dict[str, str]) -> str | None:
    return own.get(slot.name.rpartition("_")[0])


_REASONS = {
    "wal_removed": State.WAL_REMOVED,
    "rows_removed": State.ROWS_REMOVED,
    "wal_level_insufficient": State.WAL_LEVEL_INSUFFICIENT,
    "idle_timeout": State.IDLE_TIMEOUT,
}


def judge_slot(slot: Slot, pipeline: str) -> Finding:
    """Judge a pipeline's own slot: lost, about to be lost, read by nobody, or well."""
    outcome, state = _OK, None
    unread = None if slot.active or slot.unread_seconds is None else max(0.0, slot.unread_seconds)
    if slot.status == "lost" or slot.reason is not None:
        outcome, state = _BAD, _REASONS.get(slot.reason or "wal_removed", State.OTHER)
    elif slot.status == "unreserved":
        outcome, state = _WARN, State.UNRESERVED
    elif not slot.active and ((unread or 0) > SLOT_UNREAD_SECONDS_MAX or slot.retained_bytes > SLOT_UNREAD_BYTES_MAX):
        outcome = _WARN
    return Finding(
        check=Check.PIPELINE_SLOT,
        outcome=outcome,
        state=state,
        pipeline=pipeline,
        size_bytes=slot.retained_bytes,
        seconds=unread,
        count=None if slot.safe_bytes is None else max(0, slot.safe_bytes),
    )


def judge_other_slots(slots: Sequence[Slot]) -> Finding:
    """Judge the slots of others together: their names are theirs. A lost one keeps nothing."""
    unread = [slot for slot in slots if not slot.active and slot.status != "lost"]
    return Finding(
        check=Check.OTHER_SLOTS,
        outcome=_WARN if unread else _OK,
        count=len(unread),
        size_bytes=sum(slot.retained_bytes for slot in unread),
    )
