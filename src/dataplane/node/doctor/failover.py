"""Examine what a failover of the source would do to the pipelines' slots, and their publications as they are now.

In flow what the primary knows of its standbys, and which pipelines ask for `failover`; out flow findings, one for each piece
that is missing. `judge` decides and does no I/O. Called by `source`.

What is set on a standby cannot be read from here, but its traces can: a physical slot that it reads, the catalog's horizon
that it feeds back into it, and the session of the process there that copies slots.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from contracts.checks import Check, Outcome, State
from contracts.v2 import Finding
from dataplane.node.doctor.reading import Reader

FAILOVER_VERSION = 170000
FILTERS_VERSION = 150000

_OK, _WARN, _BAD, _UNKNOWN = Outcome.OK, Outcome.WARNING, Outcome.PROBLEM, Outcome.UNKNOWN

_STANDBYS = """SELECT (SELECT count(*) FROM pg_replication_slots WHERE slot_type = 'physical')
    + (SELECT count(*) FROM pg_stat_replication s WHERE s.pid NOT IN
        (SELECT active_pid FROM pg_replication_slots WHERE active_pid IS NOT NULL))"""

_PIECES = """SELECT
    (SELECT count(*) FROM pg_replication_slots WHERE slot_type = 'physical'),
    (SELECT count(*) FROM pg_replication_slots WHERE slot_type = 'physical' AND (xmin IS NOT NULL OR catalog_xmin IS NOT NULL)),
    (SELECT count(*) FROM awaited), (SELECT count(*) FROM awaited WHERE EXISTS (
        SELECT FROM pg_replication_slots s WHERE s.slot_name = awaited.name AND s.slot_type = 'physical' AND s.active)),
    (SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE '%slotsync worker'),
    (SELECT rolsuper OR pg_has_role('pg_read_all_stats', 'USAGE') FROM pg_roles WHERE rolname = current_user)
    FROM (SELECT 1) AS one"""
_AWAITED = """WITH awaited AS (SELECT trim(part, ' "') AS name
    FROM regexp_split_to_table(current_setting('synchronized_standby_slots'), ',') AS part WHERE trim(part) <> '') """

_SLOTS = "SELECT slot_name, failover FROM pg_replication_slots WHERE slot_type = 'logical' AND NOT temporary"

_PUBLICATIONS = """SELECT p.pubname::text, p.puballtables, p.pubinsert AND p.pubupdate AND p.pubdelete AND p.pubtruncate,
    p.pubviaroot, {filtered}, {listed} FROM pg_publication p WHERE p.pubname = ANY(%s)"""
_REL = "EXISTS (SELECT FROM pg_publication_rel r WHERE r.prpubid = p.oid AND r.{column} IS NOT NULL)"


class Pieces(NamedTuple):
    """What the primary knows of what a failover needs."""

    physical_slots: int
    fed_back: int
    """Physical slots that a standby with hot_standby_feedback has written its horizon into."""
    awaited: int
    """Slots that synchronized_standby_slots names."""
    awaited_present: int
    synchronizers: int
    sees_sessions: bool


def examine(reader: Reader, own: Mapping[str, str], wanting: Iterable[str]) -> Iterable[Finding]:
    """Yield what there is to say. `own` gives the pipeline of each publication's name; `wanting` ask for failover."""
    wanted = sorted(wanting)
    row = reader.row(_STANDBYS)
    if row is None:
        yield Finding(check=Check.FAILOVER_SLOTS, outcome=_UNKNOWN)
    elif not wanted:
        yield Finding(check=Check.FAILOVER_SLOTS, outcome=_WARN if row[0] else _OK, count=row[0])
    elif reader.version < FAILOVER_VERSION:
        yield Finding(
            check=Check.FAILOVER_SLOTS, outcome=_BAD, state=State.FAILOVER_UNSUPPORTED, version=reader.version
        )
    else:
        pieces, slots = reader.row(_AWAITED + _PIECES), reader.rows(_SLOTS)
        if pieces is None or slots is None:
            yield Finding(check=Check.FAILOVER_SLOTS, outcome=_UNKNOWN)
        else:
            marked = {own[prefix]: bool(on) for name, on in slots if (prefix := name.rpartition("_")[0]) in own}
            yield from judge(Pieces(*pieces), wanted, marked)
    if own:
        yield from _publications(reader, own)


def judge(pieces: Pieces, wanted: Sequence[str], marked: Mapping[str, bool]) -> Iterable[Finding]:
    """Judge what is missing for the pipelines `wanted`. `marked` says of each pipeline's slot whether it has FAILOVER."""
    missing: list[tuple[Outcome, State, int | None]] = []
    if not pieces.physical_slots:
        missing.append((_WARN, State.NO_STANDBY_SLOT, None))
    elif not pieces.fed_back:
        missing.append((_WARN, State.NO_FEEDBACK, None))
    if pieces.physical_slots and not pieces.synchronizers:
        missing.append((_WARN if pieces.sees_sessions else _UNKNOWN, State.NOT_SYNCHRONIZED, None))
    if not pieces.awaited:
        missing.append((_WARN, State.STANDBY_NOT_AWAITED, None))
    elif pieces.awaited_present < pieces.awaited:
        missing.append((_BAD, State.STANDBY_AWAY, pieces.awaited - pieces.awaited_present))
    for outcome, state, count in missing:
        yield Finding(check=Check.FAILOVER_SLOTS, outcome=outcome, state=state, count=count)
    unmarked = [name for name in wanted if marked.get(name) is False]
    for name in unmarked:
        yield Finding(check=Check.FAILOVER_SLOTS, outcome=_WARN, state=State.SLOT_NOT_MARKED, pipeline=name)
    if not missing and not unmarked:
        yield Finding(check=Check.FAILOVER_SLOTS, outcome=_OK, count=pieces.physical_slots)


def _publications(reader: Reader, own: Mapping[str, str]) -> Iterable[Finding]:
    newer = reader.version >= FILTERS_VERSION
    statement = _PUBLICATIONS.format(
        filtered=_REL.format(column="prqual") if newer else "false",
        listed=_REL.format(column="prattrs") if newer else "false",
    )
    rows = reader.rows(statement, sorted(own))
    if rows is None:
        yield Finding(check=Check.PUBLICATION, outcome=_UNKNOWN)
        return
    well = 0
    for name, all_tables, all_kinds, by_root, filtered, listed in rows:
        state = (
            State.ROW_FILTER
            if filtered
            else State.COLUMN_LIST
            if listed
            else State.PUBLISH
            if not all_kinds
            else State.OTHER
            if all_tables or not by_root
            else None
        )
        if state is None:
            well += 1
        else:
            yield Finding(check=Check.PUBLICATION, outcome=_BAD, state=state, pipeline=own[name])
    if well or not rows:
        yield Finding(check=Check.PUBLICATION, outcome=_OK, count=well)
