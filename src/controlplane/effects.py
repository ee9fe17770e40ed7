"""What a change of a pipeline's document does to data, in words: what `plan` shows, and every answer to a change says.

In flow the document that holds and the one that is asked for; out flow sentences for people. Every setting that people can
write has its sentence, and a test holds to that. Called by the command that configures a pipeline. Pure.
"""

from collections.abc import Callable, Iterator

from msgspec import UNSET, UnsetType, structs

from contracts.delivery import Consistency, OnRefused, OnSchemaChange
from contracts.diagnosis import size_text
from contracts.slots import OnFull
from contracts.v2 import BufferType
from controlplane.domain.pipeline import PipelineSpec

NEW_SESSION = "The workers begin a new session where they are: nothing is copied or delivered twice."
ONLY_SIGNED = "Only the customer's signature is another: nothing happens to data."
WHEN_RESUMED = "The pipeline is paused: all of this begins when it is resumed."
_SHAPES = {
    OnSchemaChange.PROPAGATE: "A column that is added at the source is added at the destination; nothing is ever dropped there.",
    OnSchemaChange.PAUSE: "When a table's shape changes the pipeline stops before that transaction, until it is resumed.",
    OnSchemaChange.IGNORE: "Columns that the destination's table lacks are left out of it from now on, and counted.",
}


def effects(before: PipelineSpec | None, after: PipelineSpec, *, paused: bool = False) -> list[str]:
    """Return what happens to data when `after` takes the place of `before`; nothing for an equal document."""
    if before is None:
        return list(_of_new(after))
    if _unsigned(before) == _unsigned(after):
        return [] if before == after else [ONLY_SIGNED]
    said = [sentence for each in _PARTS for sentence in each(before, after)]
    return [*said, NEW_SESSION, *([WHEN_RESUMED] if paused else [])]


def _unsigned(spec: PipelineSpec) -> PipelineSpec:
    return structs.replace(spec, signature=UNSET)


def _of_new(spec: PipelineSpec) -> Iterator[str]:
    snapshot = spec.source.snapshot
    yield (
        f"A publication and a replication slot are made at the source. Its {_tables(len(spec.source.tables))} copied in chunks of"
        f" up to {snapshot.chunk_rows:,} rows, {snapshot.parallelism} at once, while changes flow."
    )
    what = "Topics" if spec.sink.topics is not UNSET else "Tables"
    yield f"{what} that the destination lacks are made there; one that has rows already is refused."
    nothing = PipelineSpec(
        data_plane=spec.data_plane,
        source=type(spec.source)(connection=spec.source.connection, tables=spec.source.tables),
        sink=type(spec.sink)(connection=spec.sink.connection),
        buffer=type(spec.buffer)(),
        transforms=[],
    )
    for each in (_log, _failover, _refused_rows, _shapes, _consistency, _buffer):
        yield from each(nothing, spec)


def _tables(count: int) -> str:
    return "table is" if count == 1 else f"{count} tables are"


def _connections(before: PipelineSpec, after: PipelineSpec) -> Iterator[str]:
    if before.source.connection != after.source.connection:
        yield (
            "The source is read through another connection. If that is another database, the pipeline stops in"
            " gap_other_system; `resync` then copies all tables from it. The old slot stays where it is."
        )
    if before.sink.connection != after.sink.connection:
        yield (
            "The destination is another connection. If that is another database, there is no checkpoint in it: the"
            " pipeline stops in gap_checkpoint_lost until `resync` copies all tables there. What was delivered stays."
        )


def _captured(before: PipelineSpec, after: PipelineSpec) -> Iterator[str]:
    held, wanted = before.source.tables, after.source.tables
    for table in wanted:
        if table not in held:
            yield f"{table} is copied, while the other tables go on."
    for table in held:
        if table not in wanted:
            yield (
                f"{table} is not captured any more: its rows stay at the destination as they are. If it comes back later, it is"
                " copied again."
            )


def _copying(before: PipelineSpec, after: PipelineSpec) -> Iterator[str]:
    snapshot = after.source.snapshot
    if before.source.snapshot != snapshot:
        yield (
            f"Tables are copied {snapshot.parallelism} chunks at once from now on, of up to {snapshot.chunk_rows:,} rows each. A"
            " copy that is under way goes on behind its last chunk; what is copied is not copied again."
        )


def _log(before: PipelineSpec, after: PipelineSpec) -> Iterator[str]:
    log = after.source.log
    if before.source.log == log:
        return
    if log.retain_bytes_max is None:
        yield "There is no limit of ours any more to the log that the source keeps for the pipeline."
    elif log.on_full is OnFull.STOP:
        yield (
            f"When the slot keeps more than {size_text(log.retain_bytes_max)} of the source's log, the node drops it: the"
            " pipeline stops in gap_log_limit, and its tables must be copied again."
        )
    else:
        yield (
            f"When the slot keeps more than {size_text(log.retain_bytes_max)} of the source's log, status and alerts say so;"
            " the source goes on keeping it."
        )


def _failover(before: PipelineSpec, after: PipelineSpec) -> Iterator[str]:
    if before.source.failover == after.source.failover:
        return
    if after.source.failover:
        yield (
            "Standbys keep a copy of the slot, from PostgreSQL 17 on. Changes are delivered once the standbys in"
            " synchronized_standby_slots have them."
        )
    else:
        yield "Standbys keep no copy of the slot: after a failover the pipeline stops in gap_slot_not_synced."


def _refused_rows(before: PipelineSpec, after: PipelineSpec) -> Iterator[str]:
    old, new = before.sink, after.sink
    if old.on_refused is not new.on_refused and new.on_refused is OnRefused.STOP:
        yield (
            "The next row that the destination refuses stops the pipeline. Dead letters that are there stay, and what comes"
            " for their keys joins them."
        )
    elif new.on_refused is OnRefused.DEAD_LETTER and (old.on_refused, old.dead_letters_max) != (
        new.on_refused,
        new.dead_letters_max,
    ):
        yield (
            f"Up to {new.dead_letters_max:,} changes that the destination refuses, or that wait behind one of their key, lie"
            " there as dead letters; one more stops the pipeline with dead_letters_full."
        )
    elif old.dead_letters_max != new.dead_letters_max:
        yield "The bound on dead letters changes nothing while refused rows stop the pipeline."


def _shapes(before: PipelineSpec, after: PipelineSpec) -> Iterator[str]:
    if before.sink.on_schema_change is not after.sink.on_schema_change:
        yield _SHAPES[after.sink.on_schema_change]


def _consistency(before: PipelineSpec, after: PipelineSpec) -> Iterator[str]:
    old, new = before.sink, after.sink
    if old.consistency is new.consistency and old.parallelism == new.parallelism:
        return
    if new.consistency is Consistency.KEY:
        yield (
            f"Rows are written over {new.parallelism} connections, and only the order of each key is kept: who reads the"
            " destination may see a part of a source transaction."
        )
    else:
        yield "Every transaction of the source becomes visible at the destination whole, and in the source's order."


def _topics(before: PipelineSpec, after: PipelineSpec) -> Iterator[str]:
    old, new = before.sink.topics, after.sink.topics
    if isinstance(new, UnsetType) or old == new:
        return
    if isinstance(old, UnsetType) or old.prefix != new.prefix:
        yield (
            f"Records go to topics that are called {new.prefix}.SCHEMA.TABLE. Those that are there under another name stay as"
            " they are; `resync` brings what they hold into the new ones."
        )
    elif old.format is not new.format:
        yield f"Records are {new.format.value} from now on; those that are in the topics stay as they are."
    else:
        yield "Topics that are made from now on have other partitions or replicas; those that are there stay as they are."


def _buffer(before: PipelineSpec, after: PipelineSpec) -> Iterator[str]:
    old, new = before.buffer, after.buffer
    if old.type is not new.type:
        yield (
            "Changes go straight from source to destination; what lay in the buffer is read from the source again."
            if new.type is BufferType.DIRECT
            else "Changes lie in the leaf's store between source and destination, two workers instead of one."
        )
    if old.confirm is not new.confirm:
        yield "The source may forget what the buffer has on disk, before the destination has it."
    if old.size_bytes_max != new.size_bytes_max:
        yield f"The buffer holds up to {size_text(new.size_bytes_max)}; when it is full, reading waits."


def _transforms(before: PipelineSpec, after: PipelineSpec) -> Iterator[str]:
    if before.transforms != after.transforms:
        yield (
            "What is masked or dropped changes for rows from now on. Those at the destination stay as they are until they"
            " change: `resync` a table to have all of its rows alike."
        )


_PARTS: tuple[Callable[[PipelineSpec, PipelineSpec], Iterator[str]], ...] = (
    _connections,
    _captured,
    _copying,
    _log,
    _failover,
    _refused_rows,
    _shapes,
    _consistency,
    _topics,
    _buffer,
    _transforms,
)
