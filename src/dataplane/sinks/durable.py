"""How a checkpoint grows with what becomes durable: pure, and the same for every sink."""

from msgspec.structs import replace

from dataplane.batch import START, ChangeSet
from dataplane.checkpoint import Checkpoint, Progress


def nothing(epoch: int) -> Checkpoint:
    """Return the checkpoint of a pipeline that was claimed and never wrote."""
    return Checkpoint(
        epoch=epoch,
        source=None,
        position=START,
        confirmed_through=0,
        snapshot_done=False,
        tables_owned=[],
        tables_copied=[],
    )


def after(before: Checkpoint, change: ChangeSet) -> Checkpoint:
    """Return the checkpoint as it is once the transaction that ends with `change` is durable."""
    copied, resynced = before.tables_copied, before.resynced
    if change.snapshot_of is not None:
        copied = copied if change.snapshot_of in copied else [*copied, change.snapshot_of]
        # A table that left the pipeline and came back has no counter: what was reached before means nothing then.
        resynced = {table: number for table, number in resynced.items() if table != change.snapshot_of}
        if change.resync:
            resynced[change.snapshot_of] = change.resync
    # A snapshot of a second table may have positions that the first one's have passed: never go back.
    assert change.snapshot_of is not None or change.last >= before.position
    return replace(
        before,
        position=max(before.position, change.last),
        confirmed_through=max(before.confirmed_through, change.commit_end_lsn),
        snapshot_done=before.snapshot_done or change.snapshot_ends,
        tables_copied=copied,
        resynced=resynced,
        buffer=change.mark or before.buffer,
    )


def progress(held: Checkpoint, commit_time: int, *, rows: int, transactions: int) -> Progress:
    """Return what a sink answers once `held` is durable. `rows` and `transactions` count since its last answer."""
    return Progress(
        position=held.position,
        confirmed_through=held.confirmed_through,
        commit_time=commit_time,
        rows=rows,
        transactions=transactions,
        buffer=held.buffer,
    )
