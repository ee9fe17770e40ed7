"""How a checkpoint grows with what becomes durable: pure, and the same for every sink."""

from msgspec.structs import replace

from dataplane.batch import START, ChangeSet, Chunk
from dataplane.checkpoint import Checkpoint, Cursor, Progress


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
    copied, resynced, cursors = before.tables_copied, before.resynced, before.cursors
    chunk, table = change.chunk, change.snapshot_of
    if table is not None and chunk is not None:
        cursors = {**cursors, table: _cursor(cursors.get(table), chunk, change.resync)}
    if table is not None and (chunk is None or chunk.settled):
        copied = copied if table in copied else [*copied, table]
        # A table that left the pipeline and came back has no counter: what was reached before means nothing then.
        resynced = {name: number for name, number in resynced.items() if name != table}
        if change.resync:
            resynced[table] = change.resync
    # A copy stands where the stream is, and does not move it: never go back.
    assert table is not None or change.last >= before.position
    return replace(
        before,
        position=max(before.position, change.last),
        confirmed_through=max(before.confirmed_through, change.commit_end_lsn),
        snapshot_done=before.snapshot_done or change.snapshot_ends,
        tables_copied=copied,
        resynced=resynced,
        buffer=change.mark or before.buffer,
        cursors=cursors,
    )


def _cursor(before: Cursor | None, chunk: Chunk, resync: int) -> Cursor:
    same = before if before is not None and before.copy == chunk.copy else None
    reached = 0 if before is None else before.backfill if before.settled else before.backfilled
    assert chunk.index == (same.chunks if same is not None else 0), "a chunk is missing"
    return Cursor(
        copy=chunk.copy,
        chunks=chunk.index + (not chunk.settled),
        key=chunk.key,
        last=None if chunk.upto is None else list(chunk.upto),
        through=chunk.through,
        rows=chunk.rows + (same.rows if same is not None else 0),
        bytes=chunk.bytes + (same.bytes if same is not None else 0),
        read=chunk.read,
        settled=chunk.settled,
        resync=resync,
        moment=None if chunk.settled else chunk.moment or (same.moment if same is not None else None),
        backfill=chunk.backfill,
        backfilled=reached,
        part=chunk.part,
    )


def progress(held: Checkpoint, commit_time: int, *, rows: int, transactions: int, chunk: int = 0) -> Progress:
    """Return what a sink answers once `held` is durable. `rows` and `transactions` count since its last answer."""
    return Progress(
        position=held.position,
        confirmed_through=held.confirmed_through,
        commit_time=commit_time,
        rows=rows,
        transactions=transactions,
        buffer=held.buffer,
        chunk=chunk,
    )


def newest_chunk(so_far: int, change: ChangeSet) -> int:
    """Return the highest `Chunk.number` once `change`, which ends a transaction, is durable or was dropped."""
    return max(so_far, change.chunk.number) if change.chunk is not None else so_far
