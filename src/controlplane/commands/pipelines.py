"""Commands on pipelines."""

from collections.abc import Callable, Sequence

from msgspec import UNSET

from contracts.v2 import Confirm, RunState
from controlplane.commands import rules, signatures
from controlplane.commands.write_path import (
    Attempt,
    Decide,
    Decision,
    Step,
    WriteOptions,
    check_exists,
    check_preconditions,
)
from controlplane.domain import Aggregate, Context, DomainEvent, Pipeline
from controlplane.domain.pipeline import PipelineSpec, kept
from controlplane.effects import effects as effects_of
from controlplane.manifests import check_size
from controlplane.refusals import Refused, refused_at

SLOT_KEPT = (
    "The replication slot at the source is kept, and the source keeps its log for it. Drop the slot there, or delete the"
    " pipeline with cleanup=true next time."
)
NO_LOG_LIMIT = (
    "`source.log` sets no limit: while the pipeline cannot go on, the source keeps its log for it as long as its own"
    " max_slot_wal_keep_size lets it. `pointsman doctor connection NAME` says how that is set."
)
WHILE_COPYING = (
    "Rows are replaced range by range, so a table's are from several moments until it is whole. One with a text key is emptied"
    " and filled in one transaction: who reads it at the destination waits meanwhile."
)
BUFFER_IS_DATA = (
    "With `confirm: buffer` the source's log is freed once the leaf has written a change to disk. If the leaf's disk is"
    " lost before the destination has it, the pipeline stops in a gap and its tables must be copied again."
)
STARTS_OVER = "These are all of its tables: the pipeline starts over with a new replication slot, which closes a gap. The old one is dropped."
AFTER_THE_PAUSE = "The pipeline is paused: its two ends are compared when it is resumed."
LOG_KEPT = "While the pipeline is paused, the source keeps its log from the pipeline's position on."


def configure(name: str, spec: PipelineSpec, options: WriteOptions) -> Decide:
    """Make a pipeline as asked, or change it."""

    def decide(attempt: Attempt) -> Decision:
        before = attempt.load(Pipeline.new(attempt.tenant, name))
        check_preconditions(options, before)
        if before.run is RunState.REMOVED:
            raise Refused("being_removed", f"Pipeline {name} is being removed.")
        if before.spec is not None and before.spec.data_plane != spec.data_plane:
            raise refused_at("immutable_field", "/data_plane", "a pipeline stays on its data plane")
        _check_buffer(before.spec, spec)
        signed_before = before.spec.signature if before.spec is not None else UNSET
        unsigned = signatures.check(spec.statement(attempt.tenant, name), spec.signature, signed_before)
        step = Step(before, before.configure(attempt.context, spec))
        if step.events:
            asked = (kept(each, spec.source) for each in (before.resyncs, before.reconciles, before.backfills))
            check_size(spec, *asked, before.snapshots_paused)
            rules.check_pipeline(name, spec, attempt.catalogue)
        unlimited = step.events and not before.exists and spec.source.log.retain_bytes_max is None
        becomes_data = _is_data(spec) and not (before.spec is not None and _is_data(before.spec))
        warnings = [NO_LOG_LIMIT] * bool(unlimited) + [BUFFER_IS_DATA] * becomes_data + unsigned
        effects = effects_of(before.spec if before.exists else None, spec, paused=before.run is RunState.PAUSED)
        status = 200 if before.exists else 201
        return Decision.showing(step.after, [step], status=status, warnings=warnings, effects=effects)

    return decide


def _is_data(spec: PipelineSpec) -> bool:
    """Say whether the buffer holds what the source has let go of."""
    return spec.buffer.confirm is Confirm.BUFFER


def _check_buffer(before: PipelineSpec | None, spec: PipelineSpec) -> None:
    """Refuse to give up a buffer that may hold the only copy of changes."""
    if before is not None and _is_data(before) and not _is_data(spec):
        raise refused_at(
            "immutable_field",
            "/buffer/confirm",
            "the buffer may hold what the source has let go of; delete the pipeline with cleanup=true and apply it again",
        )


def pause(name: str, options: WriteOptions) -> Decide:
    """Stop a pipeline at a transaction's end. It keeps its place; the source keeps its log."""
    return _act(name, options, Pipeline.pause, [LOG_KEPT])


def resume(name: str, options: WriteOptions) -> Decide:
    """Let a paused pipeline go on, or one that stopped at a table's changed shape, which is taken from now on."""
    return _act(name, options, Pipeline.resume)


def restart(name: str, options: WriteOptions) -> Decide:
    """Start a pipeline's workers again, which also lifts a permanent failure that was mended."""
    return _act(name, options, Pipeline.restart)


def resync(name: str, tables: Sequence[str] | None, options: WriteOptions) -> Decide:
    """Copy `tables` again, or all that the pipeline captures; it also lifts a gap once it covers all of them."""

    def decide(attempt: Attempt) -> Decision:
        before = steerable(name, options, attempt)
        spec, asked = asked_tables(before, tables)
        step = Step(before, before.resync(attempt.context, asked))
        check_asked(spec, step.after)
        paused = [copying_is_paused(table) for table in asked if table in before.snapshots_paused]
        over = [STARTS_OVER] if set(asked) == set(spec.source.tables) else []
        return Decision.showing(step.after, [step], warnings=[*over, WHILE_COPYING, *paused])

    return decide


def reconcile(name: str, tables: Sequence[str] | None, options: WriteOptions, *, repair: bool) -> Decide:
    """Compare both ends of `tables`, or of all that the pipeline captures, and with `repair` mend the destination."""

    def decide(attempt: Attempt) -> Decision:
        before = steerable(name, options, attempt)
        spec, asked = asked_tables(before, tables)
        rules.check_comparable(spec, attempt.catalogue)
        step = Step(before, before.reconcile(attempt.context, asked, repair=repair))
        check_asked(spec, step.after)
        paused = [AFTER_THE_PAUSE] if before.run is RunState.PAUSED else []
        return Decision.showing(step.after, [step], warnings=paused)

    return decide


def copying_is_paused(table: str) -> str:
    """Return the warning that a copy of `table` was asked for and waits."""
    return f"The copying of {table} is paused: it begins with `pointsman resume pipeline NAME --table {table}`."


def check_asked(spec: PipelineSpec, after: Aggregate) -> None:
    """Refuse what would make the document of a pipeline, as it is `after` a step, too large for a message.

    Raises:
        Refused: too_large_for_the_channel.
    """
    assert isinstance(after, Pipeline)
    check_size(spec, after.resyncs, after.reconciles, after.backfills, after.snapshots_paused)


def asked_tables(pipeline: Pipeline, tables: Sequence[str] | None) -> tuple[PipelineSpec, Sequence[str]]:
    """Return the pipeline's spec and the tables that are meant: all that it captures, if none was named."""
    assert pipeline.spec is not None
    captured = pipeline.spec.source.tables
    for number, table in enumerate(tables or ()):
        if table not in captured:
            raise refused_at("unknown_table", f"/tables/{number}", "the pipeline does not capture this table")
    return pipeline.spec, captured if tables is None else tables


def delete(name: str, options: WriteOptions, *, cleanup: bool) -> Decide:
    """Delete a pipeline: at once, or with `cleanup` after its node has dropped slot, publication and checkpoint."""

    def decide(attempt: Attempt) -> Decision:
        before = attempt.load(Pipeline.new(attempt.tenant, name))
        check_exists(before)
        check_preconditions(options, before)
        if cleanup:
            step = Step(before, before.remove(attempt.context))
            return Decision.showing(step.after, [step], status=202)
        step = Step(before, before.delete(attempt.context))
        return Decision.showing(before, [step], warnings=[SLOT_KEPT])

    return decide


def _act(
    name: str,
    options: WriteOptions,
    action: Callable[[Pipeline, Context], list[DomainEvent]],
    warnings: Sequence[str] = (),
) -> Decide:
    def decide(attempt: Attempt) -> Decision:
        before = steerable(name, options, attempt)
        step = Step(before, action(before, attempt.context))
        return Decision.showing(step.after, [step], warnings=warnings)

    return decide


def steerable(name: str, options: WriteOptions, attempt: Attempt) -> Pipeline:
    """Return the pipeline if it may be told what to do."""
    before = attempt.load(Pipeline.new(attempt.tenant, name))
    check_exists(before)
    check_preconditions(options, before)
    if before.run is RunState.REMOVED:
        raise Refused("being_removed", f"Pipeline {name} is being removed.")
    return before
