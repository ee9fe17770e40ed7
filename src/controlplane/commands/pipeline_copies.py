"""Commands on the copies of single tables: copying some of their rows again, and pausing what is being copied.

Each answer says in its warnings what will happen to the data, as exactly as what is known of the table's columns allows.
"""

from collections.abc import Callable, Mapping, Sequence

from contracts.backfilling import Condition, removes
from controlplane.commands.pipelines import asked_tables, check_asked, copying_is_paused, steerable
from controlplane.commands.write_path import Attempt, Decide, Decision, Step, WriteOptions
from controlplane.conditions import ColumnKnown, check
from controlplane.domain import Context, DomainEvent, Pipeline

WRITTEN_AGAIN = (
    "Rows that match at the source are written again, chunk by chunk; all other rows and tables stay as they are."
)
DELETED = (
    "Rows of the destination whose key matches and that the source does not have any more are deleted, because every condition"
    " is on a column of the key that both ends compare alike."
)
NOT_DELETED = (
    "Nothing is deleted: rows that only the destination has stay there, and so do those that match only there. `pointsman"
    " reconcile pipeline NAME --repair` deletes what the source does not have."
)
PERHAPS_DELETED = (
    "Rows that the source does not have any more are deleted only if every condition is on a column of the key whose type has"
    " one order everywhere (numbers, uuid, bytea, boolean, dates and times); no node has described the table yet."
)
REPLACED = (
    "The newest such request for a table counts: an earlier one that has not come to its end is given up where it is."
)
COPYING_STOPS = (
    "No further chunk of it is copied; the one on its way is finished. What is copied stays, and the table's changes go on being"
    " applied. Of one of which nothing is copied yet they are left out, and its copy has them all when it begins. The other"
    " tables go on; the pipeline is not ready while a copy waits."
)


def backfill(
    name: str, table: str, where: Sequence[Condition], columns: Mapping[str, ColumnKnown], options: WriteOptions
) -> Decide:
    """Copy the rows of `table` again that match all of `where`. `columns` is what a node has told of the table."""

    def decide(attempt: Attempt) -> Decision:
        before = steerable(name, options, attempt)
        spec, _ = asked_tables(before, [table])
        check(where, columns)
        step = Step(before, before.backfill(attempt.context, table, where))
        check_asked(spec, step.after)
        warnings = [WRITTEN_AGAIN, _on_deleting(where, columns)]
        warnings += [REPLACED] * (table in before.backfills)
        warnings += [copying_is_paused(table)] * (table in before.snapshots_paused)
        return Decision.showing(step.after, [step], warnings=warnings)

    return decide


def _on_deleting(where: Sequence[Condition], columns: Mapping[str, ColumnKnown]) -> str:
    if not columns:
        return PERHAPS_DELETED
    # A node tells types as names: `timestamp_with_time_zone`.
    key_types = {name: column.type.replace("_", " ") for name, column in columns.items() if column.key}
    return DELETED if removes(where, key_types) else NOT_DELETED


def pause_copying(name: str, tables: Sequence[str], options: WriteOptions) -> Decide:
    """Copy no more of `tables` until that is resumed; the stream goes on."""
    return _act(name, tables, options, Pipeline.pause_copying, [COPYING_STOPS])


def resume_copying(name: str, tables: Sequence[str], options: WriteOptions) -> Decide:
    """Go on copying `tables` where it was."""
    return _act(name, tables, options, Pipeline.resume_copying)


def _act(
    name: str,
    tables: Sequence[str],
    options: WriteOptions,
    action: Callable[[Pipeline, Context, Sequence[str]], list[DomainEvent]],
    warnings: Sequence[str] = (),
) -> Decide:
    def decide(attempt: Attempt) -> Decision:
        before = steerable(name, options, attempt)
        spec, asked = asked_tables(before, tables)
        step = Step(before, action(before, attempt.context, asked))
        check_asked(spec, step.after)
        return Decision.showing(step.after, [step], warnings=warnings)

    return decide
