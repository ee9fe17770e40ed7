"""The closed list of reasons that may cross from a node: what happened, whether a retry helps, and what to do next.

An error's text can quote a row, so it stays on the node; its code crosses. The control plane, the CLI and the UI turn
the code back into words with `explain`. Add a code here, never reuse or rename one: golden files hold their values.
"""

from enum import Enum
from typing import NamedTuple


class Family(Enum):
    """How a failure is answered."""

    RETRY = "retry"
    """It may pass by itself: the node tries again with backoff."""
    PERMANENT = "permanent"
    """It needs a person: the node stops the work and says so."""


class Code(Enum):
    """Why a pipeline or a node is in the state that it reports."""

    # The node and its documents
    NODE_RESTARTED = "node_restarted"
    NEEDS_UPGRADE = "needs_upgrade"
    DOCUMENT_REFUSED = "document_refused"
    CONNECTION_MISSING = "connection_missing"
    CONNECTION_UNFIT = "connection_unfit"
    SECRET_MISSING = "secret_missing"
    SECRET_REFUSED = "secret_refused"
    AUDIT_WENT_BACK = "audit_went_back"
    POLICY_UNREADABLE = "policy_unreadable"
    POLICY_SOURCE_REFUSED = "policy_source_refused"
    POLICY_DESTINATION_REFUSED = "policy_destination_refused"
    POLICY_MASK_MISSING = "policy_mask_missing"
    POLICY_SECRET_REFUSED = "policy_secret_refused"
    POLICY_ACTION_REFUSED = "policy_action_refused"
    POLICY_SIGNATURE_MISSING = "policy_signature_missing"
    POLICY_SIGNATURE_INVALID = "policy_signature_invalid"
    POLICY_SIGNATURE_OLDER = "policy_signature_older"
    WORKER_EXITED = "worker_exited"
    WORKER_STALLED = "worker_stalled"
    LEASE_HELD_ELSEWHERE = "lease_held_elsewhere"
    REPORTS_OVERFLOWED = "reports_overflowed"
    # The source
    SOURCE_UNREACHABLE = "source_unreachable"
    SOURCE_AUTH_FAILED = "source_auth_failed"
    SOURCE_NOT_LOGICAL = "source_not_logical"
    SOURCE_RIGHTS_MISSING = "source_rights_missing"
    SOURCE_TABLE_MISSING = "source_table_missing"
    SOURCE_TABLE_LEFT = "source_table_left"
    SOURCE_TABLE_WITHOUT_KEY = "source_table_without_key"
    SOURCE_NAME_UNSUPPORTED = "source_name_unsupported"
    SOURCE_SLOT_BUSY = "source_slot_busy"
    SOURCE_SLOTS_EXHAUSTED = "source_slots_exhausted"
    SOURCE_PROTOCOL = "source_protocol"
    SOURCE_TOO_OLD = "source_too_old"
    SOURCE_STANDBY = "source_standby"
    SOURCE_FAILOVER_UNSUPPORTED = "source_failover_unsupported"
    NO_PROGRESS = "no_progress"
    SOURCE_SPILL_FAILED = "source_spill_failed"
    # A gap: rows between two positions may be missing
    GAP_SLOT_MISSING = "gap_slot_missing"
    GAP_SLOT_INVALIDATED = "gap_slot_invalidated"
    GAP_SLOT_AHEAD = "gap_slot_ahead"
    GAP_SLOT_FOREIGN = "gap_slot_foreign"
    GAP_OTHER_SYSTEM = "gap_other_system"
    GAP_OTHER_TIMELINE = "gap_other_timeline"
    GAP_CHECKPOINT_LOST = "gap_checkpoint_lost"
    GAP_PUBLICATION_CHANGED = "gap_publication_changed"
    GAP_SLOT_NOT_SYNCED = "gap_slot_not_synced"
    GAP_FAILOVER_BEHIND = "gap_failover_behind"
    GAP_OLD_PRIMARY = "gap_old_primary"
    GAP_BUFFER_LOST = "gap_buffer_lost"
    GAP_BUFFER_CUT = "gap_buffer_cut"
    GAP_RESTORED = "gap_restored"
    GAP_LOG_LIMIT = "gap_log_limit"
    # The buffer
    BUFFER_UNREACHABLE = "buffer_unreachable"
    BUFFER_FULL = "buffer_full"
    BUFFER_TOO_SMALL = "buffer_too_small"
    BUFFER_HOLDS_DATA = "buffer_holds_data"
    # The destination
    SINK_UNREACHABLE = "sink_unreachable"
    SINK_AUTH_FAILED = "sink_auth_failed"
    SINK_RIGHTS_MISSING = "sink_rights_missing"
    SINK_TABLE_NOT_EMPTY = "sink_table_not_empty"
    SINK_TABLE_MISMATCH = "sink_table_mismatch"
    SINK_TYPE_UNSUPPORTED = "sink_type_unsupported"
    SINK_VALUE_REFUSED = "sink_value_refused"
    SINK_CONSTRAINT = "sink_constraint"
    SINK_ROW_MISSING = "sink_row_missing"
    SINK_SAME_AS_SOURCE = "sink_same_as_source"
    SINK_TRUNCATE_UNSUPPORTED = "sink_truncate_unsupported"
    SINK_BROKER_UNLISTED = "sink_broker_unlisted"
    SINK_FENCED = "sink_fenced"
    SINK_DISK_FULL = "sink_disk_full"
    DEAD_LETTERS = "dead_letters"
    DEAD_LETTERS_FULL = "dead_letters_full"
    BEHIND_DEAD_LETTER = "behind_dead_letter"
    SCHEMA_CHANGED = "schema_changed"
    # Copies of single tables
    BACKFILL_REFUSED = "backfill_refused"
    COPY_PAUSED = "copy_paused"
    # The transforms
    TRANSFORM_COLUMN_MISSING = "transform_column_missing"
    TRANSFORM_KEY_TOUCHED = "transform_key_touched"
    # Comparing both ends
    RECONCILE_NOT_COPIED = "reconcile_not_copied"
    RECONCILE_BEHIND = "reconcile_behind"
    # Anything that has no code of its own yet
    INTERNAL = "internal"


class Explanation(NamedTuple):
    """What a code means, in words for people."""

    family: Family
    summary: str
    hint: str


_R, _P = Family.RETRY, Family.PERMANENT
# What a person can do about rows that may be missing: copy the tables once more.
_COPY_AGAIN = "Run `pointsman resync pipeline NAME`: all its tables are copied again."

EXPLANATIONS: dict[Code, Explanation] = {
    Code.NODE_RESTARTED: Explanation(_R, "The node's agent has started again.", "Nothing to do."),
    Code.NEEDS_UPGRADE: Explanation(
        _P,
        "The document needs a newer contract than this node speaks; it keeps what it runs.",
        "Upgrade the node; it then takes the document by itself.",
    ),
    Code.DOCUMENT_REFUSED: Explanation(
        _P,
        "The node refused a document: its signature, tenant, data plane or generation is wrong.",
        "The node's own log says which. It keeps what it ran before.",
    ),
    Code.CONNECTION_MISSING: Explanation(
        _R, "A connection that the pipeline names has not arrived at the node.", "Apply the connection."
    ),
    Code.CONNECTION_UNFIT: Explanation(
        _P,
        "A connection is to a system that cannot stand at this end of a pipeline, or be asked this.",
        "Name another connection; the connectors' page says what each system can be.",
    ),
    Code.SECRET_MISSING: Explanation(
        _R,
        "A secret that the connection refers to is not on the node.",
        "Create the file below the node's secrets folder, or set the variable.",
    ),
    Code.SECRET_REFUSED: Explanation(
        _P, "A secret reference points outside the node's secrets folder.", "Use a plain path below that folder."
    ),
    Code.AUDIT_WENT_BACK: Explanation(
        _P,
        "The control plane's audit log does not go on from the head that a node has kept: it was cut off or written anew.",
        "`pointsman audit verify --checkpoint FILE` with that node's checkpoints says where. A restored backup looks the same.",
    ),
    Code.POLICY_UNREADABLE: Explanation(
        _P,
        "The customer's policy on the node is missing or not valid, so the node runs nothing.",
        "The customer writes policy.toml in the node's folder; `pointsman node policy show` says what is wrong.",
    ),
    Code.POLICY_SOURCE_REFUSED: Explanation(
        _P,
        "The customer's policy does not let the node read this database or table.",
        "Ask the customer for a [[source]] rule, or change the pipeline.",
    ),
    Code.POLICY_DESTINATION_REFUSED: Explanation(
        _P,
        "The customer's policy does not let the node write to this database or table.",
        "Ask the customer for a [[destination]] rule, or change the pipeline.",
    ),
    Code.POLICY_MASK_MISSING: Explanation(
        _P,
        "The customer's policy lets this column leave only masked or not at all.",
        "Add a mask or drop transform for the column, in a way that the policy allows.",
    ),
    Code.POLICY_SECRET_REFUSED: Explanation(
        _P,
        "The customer's policy does not let a document use this secret.",
        "Ask the customer to allow the reference under [secrets], or use another one.",
    ),
    Code.POLICY_ACTION_REFUSED: Explanation(
        _P,
        "The customer's policy does not let a control plane ask for this.",
        "Ask the customer to allow it under [allow], or take it back.",
    ),
    Code.POLICY_SIGNATURE_MISSING: Explanation(
        _P,
        "The customer's policy asks for the customer's own signature, and the pipeline or a connection of it has none.",
        "Whoever holds the customer's key applies pipeline and connections again, with `pointsman apply --sign`.",
    ),
    Code.POLICY_SIGNATURE_INVALID: Explanation(
        _P,
        "The customer's signature under the pipeline or one of its connections is not under what arrived, or no key that counts made it.",
        "If nobody of yours changed it, ask who did. Otherwise sign with a key that the node's policy lists.",
    ),
    Code.POLICY_SIGNATURE_OLDER: Explanation(
        _P,
        "The pipeline or one of its connections was signed before one that the node has already taken: an older one came back.",
        "If it is the one that you want, sign it again with `pointsman apply --sign`.",
    ),
    Code.WORKER_EXITED: Explanation(
        _R, "A worker process ended and is being started again.", "Look at the worker's log on the node if it repeats."
    ),
    Code.WORKER_STALLED: Explanation(
        _R, "A worker process stopped answering and is being replaced.", "Look at the worker's log on the node."
    ),
    Code.LEASE_HELD_ELSEWHERE: Explanation(_R, "Another node of the data plane runs this pipeline.", "Nothing to do."),
    Code.REPORTS_OVERFLOWED: Explanation(
        _R, "More reports piled up than the node keeps; the latest state was sent instead.", "Nothing to do."
    ),
    Code.SOURCE_UNREACHABLE: Explanation(
        _R, "The source does not answer.", "Check host, port and firewall from the node."
    ),
    Code.SOURCE_AUTH_FAILED: Explanation(
        _R, "The source refused user or password.", "Check the user, and the secret on the node."
    ),
    Code.SOURCE_NOT_LOGICAL: Explanation(
        _P,
        "The source's wal_level is not logical.",
        "Run `ALTER SYSTEM SET wal_level = logical` there and restart the server.",
    ),
    Code.SOURCE_RIGHTS_MISSING: Explanation(
        _P,
        "The source's user lacks REPLICATION, SELECT on a table, or the right to create a publication.",
        "Grant them, then `pointsman restart pipeline NAME`.",
    ),
    Code.SOURCE_TABLE_MISSING: Explanation(
        _P, "A table of the pipeline does not exist at the source.", "Correct the list of tables and apply again."
    ),
    Code.SOURCE_TABLE_LEFT: Explanation(
        _R,
        "A table was dropped, made again, or taken out of the pipeline's publication.",
        "Nothing to do if it exists: it is copied again. Otherwise take it out of the pipeline and apply.",
    ),
    Code.SOURCE_TABLE_WITHOUT_KEY: Explanation(
        _P,
        "A table has no key by which the server can name its rows: none at all, a deferrable one, or a generated column in it.",
        "Add a plain primary key, or set REPLICA IDENTITY USING INDEX.",
    ),
    Code.SOURCE_NAME_UNSUPPORTED: Explanation(
        _P, "A column's name has characters outside [A-Za-z0-9_$].", "Rename the column, or leave the table out."
    ),
    Code.SOURCE_SLOT_BUSY: Explanation(
        _R, "Another connection holds the replication slot.", "Wait, or end that connection at the source."
    ),
    Code.SOURCE_SLOTS_EXHAUSTED: Explanation(
        _P, "The source has no free replication slot or WAL sender.", "Raise max_replication_slots or max_wal_senders."
    ),
    Code.SOURCE_PROTOCOL: Explanation(
        _P, "The source sent something that the decoder does not know.", "Report it with the server's version."
    ),
    Code.SOURCE_TOO_OLD: Explanation(_P, "The source's server is older than PostgreSQL 14.", "Upgrade the server."),
    Code.SOURCE_STANDBY: Explanation(
        _R,
        "The source is a standby; pipelines read from a primary.",
        "If it was promoted just now, nothing. Otherwise point the connection at the primary.",
    ),
    Code.SOURCE_FAILOVER_UNSUPPORTED: Explanation(
        _P,
        "`source.failover` needs PostgreSQL 17 or newer at the source.",
        "Upgrade the server, or leave it out: after a failover the pipeline then stops in a gap.",
    ),
    Code.NO_PROGRESS: Explanation(
        _R,
        "The pipeline is connected and has a backlog, but nothing has moved for a while.",
        "Run `pointsman doctor` for both connections: a lock at the destination, or a standby that the source waits for,"
        " holds it up. `pointsman restart pipeline NAME` begins new sessions.",
    ),
    Code.SOURCE_SPILL_FAILED: Explanation(
        _R,
        "The node's disk does not take what the source sends of transactions that have not committed yet.",
        "Nothing is lost: the source keeps it on its own disk for the next ten minutes. Free space on the node.",
    ),
    Code.GAP_SLOT_MISSING: Explanation(
        _P, "The replication slot is gone: changes since the checkpoint may be missing.", _COPY_AGAIN
    ),
    Code.GAP_SLOT_INVALIDATED: Explanation(
        _P,
        "The server invalidated the slot: WAL that was still needed is gone.",
        f"Raise max_slot_wal_keep_size, or idle_replication_slot_timeout where that was the reason. {_COPY_AGAIN}",
    ),
    Code.GAP_SLOT_AHEAD: Explanation(
        _P, "The slot is ahead of the checkpoint: changes between them may be missing.", _COPY_AGAIN
    ),
    Code.GAP_SLOT_FOREIGN: Explanation(
        _P, "A slot of this name exists that this pipeline did not make.", "Drop that slot or rename the pipeline."
    ),
    Code.GAP_OTHER_SYSTEM: Explanation(
        _P, "The source is another database system than before.", f"Point the connection back. Otherwise: {_COPY_AGAIN}"
    ),
    Code.GAP_OTHER_TIMELINE: Explanation(
        _P,
        "The source is on a timeline that does not go back to the one before: another branch of the same system.",
        f"Point the connection at the right server. Otherwise: {_COPY_AGAIN}",
    ),
    Code.GAP_CHECKPOINT_LOST: Explanation(
        _P,
        "The destination's checkpoint is gone while the slot exists.",
        f"Empty the pipeline's tables at the destination. {_COPY_AGAIN}",
    ),
    Code.GAP_PUBLICATION_CHANGED: Explanation(
        _P,
        "The pipeline's publication was dropped or altered by someone else: changes since may be missing.",
        _COPY_AGAIN,
    ),
    Code.GAP_SLOT_NOT_SYNCED: Explanation(
        _P,
        "The source was failed over, and the pipeline's slot did not follow to the new primary.",
        f"Set `source.failover: true`, and see `pointsman doctor connection NAME` for what the standby lacks. {_COPY_AGAIN}",
    ),
    Code.GAP_FAILOVER_BEHIND: Explanation(
        _P,
        "The source now begins before rows that were delivered: a standby that lacked them was promoted, or the source"
        " was restored to an earlier moment. The destination holds rows that the source never had.",
        f"List the standbys in synchronized_standby_slots, so that it cannot happen again. {_COPY_AGAIN}",
    ),
    Code.GAP_OLD_PRIMARY: Explanation(
        _P,
        "The source is an old primary: another server has taken over since, and the pipeline has followed that one.",
        "Point the connection at the newest primary, then `pointsman restart pipeline NAME`.",
    ),
    Code.GAP_BUFFER_LOST: Explanation(
        _P,
        "The buffer was lost or made again while it held changes that the source has let go of.",
        f"Put the leaf's store back if it still exists. Otherwise: {_COPY_AGAIN}",
    ),
    Code.GAP_BUFFER_CUT: Explanation(
        _P,
        "The buffer lacks changes that the destination does not have yet: somebody purged or restored its stream.",
        f"Put the leaf's store back if it still exists. Otherwise: {_COPY_AGAIN}",
    ),
    Code.GAP_RESTORED: Explanation(
        _P,
        "The source's log ends before what was delivered: it was restored from an older copy of its files.",
        _COPY_AGAIN,
    ),
    Code.GAP_LOG_LIMIT: Explanation(
        _P,
        "The slot kept as much of the source's log as `source.log.retain_bytes_max` allows, and was dropped, as"
        " `on_full: stop` asks.",
        f"Mend what kept the pipeline from going on. {_COPY_AGAIN}",
    ),
    Code.BUFFER_UNREACHABLE: Explanation(_R, "The buffer does not answer.", "Check the leaf on the customer's side."),
    Code.BUFFER_FULL: Explanation(
        _R, "The buffer is full; reading waits.", "Nothing is lost. Check why the destination is slow."
    ),
    Code.BUFFER_TOO_SMALL: Explanation(
        _P,
        "One transaction, or one part of a table's copy, is larger than the buffer may be.",
        "Raise `buffer.size_bytes_max`, or use `confirm: sink`. The source keeps its log until then.",
    ),
    Code.BUFFER_HOLDS_DATA: Explanation(
        _P,
        "The buffer holds changes that the source has let go of, and with `confirm: sink` it would be emptied.",
        "Go back to `confirm: buffer`. To leave it, remove the pipeline and apply it again.",
    ),
    Code.SINK_UNREACHABLE: Explanation(
        _R, "The destination does not answer.", "Check host, port and firewall from the node."
    ),
    Code.SINK_AUTH_FAILED: Explanation(
        _R, "The destination refused user or password.", "Check the user, and the secret on the node."
    ),
    Code.SINK_RIGHTS_MISSING: Explanation(
        _P, "The destination's user may not create or write a table.", "Grant CREATE on the database and schema."
    ),
    Code.SINK_TABLE_NOT_EMPTY: Explanation(
        _P,
        "A destination table existed with rows before this pipeline wrote to it.",
        "Empty or drop it, or choose another destination.",
    ),
    Code.SINK_TABLE_MISMATCH: Explanation(
        _P, "A destination table lacks a column or has another key.", "Alter it to match the source, then restart."
    ),
    Code.SINK_TYPE_UNSUPPORTED: Explanation(
        _P,
        "The destination has no type that holds a column of this table.",
        "Install the extension there, or leave the column out.",
    ),
    Code.SINK_VALUE_REFUSED: Explanation(
        _P, "The destination refused a value of this column.", "See the worker's log on the node for the row."
    ),
    Code.SINK_CONSTRAINT: Explanation(
        _P, "A constraint of the destination's table refused a row.", "Drop the constraint at the destination."
    ),
    Code.SINK_ROW_MISSING: Explanation(
        _P,
        "The destination lacks a row that the source changed without sending every value.",
        "Somebody deleted it at the destination. Run `pointsman resync pipeline NAME --table TABLE`.",
    ),
    Code.SINK_SAME_AS_SOURCE: Explanation(
        _P, "Source and destination are the same table.", "Choose another database for the destination."
    ),
    Code.SINK_TRUNCATE_UNSUPPORTED: Explanation(
        _P,
        "A table was emptied at the source, and the destination's format has no word for that.",
        "Use `sink.topics.format: debezium_json`, or remove the pipeline and apply it again under another prefix.",
    ),
    Code.SINK_BROKER_UNLISTED: Explanation(
        _P,
        "The cluster names a broker that the connection does not list, so nobody has allowed to send rows there.",
        "Add every broker's address, as the cluster advertises it, to the connection's `brokers`, and to the node's policy.",
    ),
    Code.SINK_FENCED: Explanation(
        _R, "Another worker has taken over this pipeline; this one stopped writing.", "Nothing to do."
    ),
    Code.SINK_DISK_FULL: Explanation(
        _R, "The destination's disk is full.", "Free space there; the pipeline goes on by itself."
    ),
    Code.DEAD_LETTERS: Explanation(
        _P,
        "Rows flow, but some changes lie as dead letters at the destination: their keys are behind the source.",
        "Run `pointsman node dlq list PIPELINE --folder FOLDER` on the node: it shows them, each with its cause.",
    ),
    Code.BACKFILL_REFUSED: Explanation(
        _P,
        "A condition of `resync --where` does not fit its table: the column is missing, or cannot be compared with that value."
        " None of its rows was copied; all else goes on.",
        "Ask again with a condition that fits: `pointsman resync pipeline NAME --table TABLE --where CONDITION`. The newest"
        " request for a table counts.",
    ),
    Code.COPY_PAUSED: Explanation(
        _P,
        "Somebody has paused the copying of a table, which is not complete. What the stream brings goes on.",
        "Run `pointsman resume pipeline NAME --table TABLE`.",
    ),
    Code.DEAD_LETTERS_FULL: Explanation(
        _P,
        "The pipeline has as many dead letters as `sink.dead_letters_max` allows.",
        "Run `pointsman node dlq list PIPELINE --folder FOLDER` on the node, replay or drop them, then restart; or raise the limit.",
    ),
    Code.BEHIND_DEAD_LETTER: Explanation(
        _P,
        "A change waits behind a dead letter of the same key, so that the key's order is kept.",
        "Replay or drop the key's letters: `pointsman node dlq list PIPELINE --folder FOLDER` shows them.",
    ),
    Code.SCHEMA_CHANGED: Explanation(
        _P,
        "A table's shape changed at the source, and the pipeline stopped before the first row of it.",
        "Run `pointsman resume pipeline NAME` to take the new shape, or set `sink.on_schema_change`.",
    ),
    Code.TRANSFORM_COLUMN_MISSING: Explanation(
        _P, "A transform names a column that the table does not have.", "Correct the transform and apply again."
    ),
    Code.TRANSFORM_KEY_TOUCHED: Explanation(
        _P, "A transform would drop or change a key column.", "Leave key columns as they are."
    ),
    Code.RECONCILE_NOT_COPIED: Explanation(
        _P,
        "The table has no whole copy at the destination yet, or lost it while it was compared.",
        "Wait until the pipeline is streaming, then ask again.",
    ),
    Code.RECONCILE_BEHIND: Explanation(
        _P,
        "The pipeline did not get past the rows that were compared, so nothing can be said of those that differ.",
        "Mend the pipeline: `pointsman describe pipeline NAME` says what it waits for. Then ask again.",
    ),
    Code.INTERNAL: Explanation(_R, "Something failed that has no code yet.", "Look at the node's log."),
}


def explain(code: Code) -> Explanation:
    """Return family, meaning and next step of `code`."""
    return EXPLANATIONS[code]
