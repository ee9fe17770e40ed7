"""One table's comparison, from where the register says it stands to its end. Runs on a thread, and asks to be paced.

Stage 1 walks the source in chunks and lets the destination say which rows it lacks or holds with other values; stage 2
walks the destination's keys and asks the source which of them it does not have. Both only give candidates: the pipeline
is always behind. They are collected, and settled together by rounds of readings (`proof`), each of which waits until
the pipeline has passed the source's log end of that round. A candidate that changes in every round is unsettled.

With `repair` what is found is mended at once, a few rows at a time: the rows are staged, the checkpoint's row is locked,
so that the pipeline stands still, and the versions of both rows are read once more. Only if both are those that were
judged is the row written: it is then what the pipeline had brought up to the place where it stands, and whatever the
pipeline brings next fits on it. Rows, counts and keys are committed together, so a kill at any moment loses nothing.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import psycopg
from msgspec import structs

from contracts.codes import Code
from contracts.reconciling import ReconcileState
from dataplane.batch import ChangeBatch
from dataplane.failures import Permanent, RetryLater
from dataplane.reconcile.destination_end import DestinationEnd
from dataplane.reconcile.pace import ChunkSize, Pace
from dataplane.reconcile.proof import Claim, Kind, Readings, judge
from dataplane.reconcile.register import Counts, FoundRow, Register, Run, counted
from dataplane.reconcile.source_end import Rows, SourceEnd, keys_of
from dataplane.reconcile.walking import Key
from dataplane.sinks.postgres import careful
from dataplane.transforms.port import Transform

CANDIDATES_MAX = 5_000
"""So many candidates are settled together at most; then the place is written down."""
CHUNKS_MAX = 50
"""After so many chunks the place is written down, candidates or none."""
ROUNDS_MAX = 8
ROUND_PAUSE_SECONDS = 0.1
ROUND_PAUSE_SECONDS_MAX = 0.5
POLL_SECONDS = 0.05
POLL_SECONDS_MAX = 0.5
BEHIND_SECONDS_MAX = 300.0
"""A pipeline whose checkpoint does not move for so long will not pass the rows that are compared."""
REPAIR_ROWS_MAX = 200
"""Rows mended under one lock: the pipeline waits for some ten milliseconds."""
LOCK_TRIES_MAX = 300
LOCK_PAUSE_SECONDS = 1.0


@dataclass(slots=True)
class _Candidate:
    key: Key
    claim: Claim | None = None
    running_until: int = 0
    """Of the round that made the claim."""


@dataclass(frozen=True, slots=True)
class _Finding:
    """A proven difference: its place in the slice that was read, and what was read."""

    number: int
    candidate: _Candidate
    claim: Claim


class Comparison:
    """Compares one table. `progress` is called with what is counted, now and then."""

    def __init__(
        self,
        source: SourceEnd,
        destination: DestinationEnd,
        transforms: Sequence[Transform],
        register: Register,
        run: Run,
        *,
        pace: Pace,
        progress: Callable[[Run], None],
    ) -> None:
        self._source = source
        self._destination = destination
        self._transforms = [each for each in transforms if each.table == destination.table]
        self._register = register
        self._run = run
        self._pace = pace
        self._progress = progress
        self._size, self._key_size = ChunkSize(), ChunkSize()
        self._candidates: list[_Candidate] = []
        self._tally = Counts()
        self._rows: list[FoundRow] = []
        self._since = time.monotonic()
        self._standing = destination.standing()

    def compare(self) -> Run:
        """Go through the table and return the run as it ended.

        Raises:
            Stopped: the process was asked to stop.
            RetryLater: an end does not answer, or the run belongs to another process now.
            Permanent: something that a person must mend.
        """
        if self._run.stage == 1:
            self._walk(self._compare_chunk)
            self._write_down(stage=2, after=None)
        self._walk(self._compare_keys)
        self._write_down(stage=2, after=None, state=ReconcileState.DONE)
        return self._run

    def _walk(self, step: Callable[[Key | None], Key | None]) -> None:
        """Take steps from the run's place to the end, and settle what they bring."""
        after, chunks = self._run.after, 0
        while (reached := step(after)) is not None:
            after, chunks = reached, chunks + 1
            if len(self._candidates) >= CANDIDATES_MAX or chunks >= CHUNKS_MAX:
                self._settle()
                self._write_down(stage=self._run.stage, after=after)
                chunks = 0
        self._settle()

    def _compare_chunk(self, after: Key | None) -> Key | None:
        batch = self._source.chunk(after, self._size.rows)
        if batch is None:
            return None
        self._size.saw(len(batch), batch.byte_size)
        differing = self._destination.differing(self._shown(batch))
        *keys, last = keys_of(batch, [*differing, len(batch) - 1])
        self._candidates += [_Candidate(key) for key in keys]
        self._tally = structs.replace(self._tally, rows_compared=self._tally.rows_compared + len(batch))
        self._pace.spend(len(batch))
        return last

    def _compare_keys(self, after: Key | None) -> Key | None:
        keys = self._destination.page(after, self._key_size.rows)
        if not keys:
            return None
        self._key_size.saw(len(keys), sum(len(part) for key in keys for part in key))
        self._candidates += [_Candidate(keys[place]) for place in self._source.absent(keys)]
        self._pace.spend(len(keys))
        return keys[-1]

    def _shown(self, batch: ChangeBatch) -> ChangeBatch:
        for transform in self._transforms:
            batch = transform.apply(batch)
        return batch

    # ---- Settling ---------------------------------------------------------------------------------------------------

    def _settle(self) -> None:
        """Look at the candidates in rounds until each is settled, or has changed in every round."""
        pending, self._candidates = self._candidates, []
        for number in range(ROUNDS_MAX):
            if not pending:
                break
            if number:
                self._pace.pause(min(ROUND_PAUSE_SECONDS * 2**number, ROUND_PAUSE_SECONDS_MAX))
            step, left = self._size.rows, []
            for start in range(0, len(pending), step):
                left += self._round(pending[start : start + step])
                self._pace.spend(min(step, len(pending) - start))
            pending = left
        self._tally = structs.replace(self._tally, rows_unsettled=self._tally.rows_unsettled + len(pending))

    def _round(self, candidates: Sequence[_Candidate]) -> list[_Candidate]:
        """Read candidates once at both ends, and return those that have to be looked at again."""
        keys = [candidate.key for candidate in candidates]
        held = self._destination.versions(keys)
        rows = self._source.rows(keys)
        self._size.saw(len(rows.numbers), rows.batch.byte_size if rows.batch is not None else 0)
        end = self._source.log_end()
        self._wait(end.lsn)
        batch = self._shown(rows.batch) if rows.batch is not None else None
        there = self._destination.judge(keys, rows.numbers, batch)
        after = self._source.versions(keys)
        now = self._source.log_end()
        left: list[_Candidate] = []
        proven: list[_Finding] = []
        for number, candidate in enumerate(candidates):
            readings = Readings(held.get(number), rows.versions.get(number), there.get(number), after.get(number))
            quiet = not now.waits_for_standby or now.running_from >= candidate.running_until
            verdict = judge(readings, earlier=candidate.claim, quiet=quiet)
            if verdict.claim != candidate.claim:
                candidate.claim, candidate.running_until = verdict.claim, now.running_until
            if not verdict.settled:
                left.append(candidate)
            elif verdict.claim is not None:
                proven.append(_Finding(number, candidate, verdict.claim))
        if self._run.repair:
            left += self._mend(proven, Rows(rows.numbers, rows.versions, batch))
        else:
            self._found(proven)
        return left

    def _found(self, proven: Sequence[_Finding]) -> None:
        """Note rows that differ and stay as they are."""
        rows = [FoundRow(each.claim.kind, each.candidate.key, repaired=False) for each in proven]
        self._rows += rows
        self._tally = self._tally.plus(counted(rows))

    def _wait(self, lsn: int) -> None:
        """Wait until the pipeline has brought to the destination all that was committed before `lsn`.

        Raises:
            Permanent: its checkpoint stands still, or the table is being copied again.
        """
        best, moved_at, poll = -1, time.monotonic(), POLL_SECONDS
        while True:
            standing = self._destination.standing()
            if standing.slot != self._standing.slot:
                raise Permanent(
                    Code.RECONCILE_NOT_COPIED, "the pipeline has started over", table=self._destination.table
                )
            self._standing = standing
            if standing.lsn >= lsn:
                return
            if standing.lsn > best:
                best, moved_at = standing.lsn, time.monotonic()
            elif time.monotonic() - moved_at > BEHIND_SECONDS_MAX:
                raise Permanent(Code.RECONCILE_BEHIND, "the checkpoint does not move", table=self._destination.table)
            self._pace.pause(poll)
            poll = min(2 * poll, POLL_SECONDS_MAX)

    # ---- Mending ----------------------------------------------------------------------------------------------------

    def _mend(self, proven: Sequence[_Finding], rows: Rows) -> list[_Candidate]:
        """Write what was found, and return the candidates whose rows have changed meanwhile."""
        left: list[_Candidate] = []
        step = min(REPAIR_ROWS_MAX, self._size.rows)
        for start in range(0, len(proven), step):
            some = proven[start : start + step]
            try:
                left += self._mend_some(some, rows)
            except psycopg.Error:
                # The destination does not take one of them, by its types or a constraint: each by itself, and that one is left.
                for each in some:
                    try:
                        left += self._mend_some([each], rows)
                    except psycopg.Error:
                        self._found([each])
        return left

    def _mend_some(self, some: Sequence[_Finding], rows: Rows) -> list[_Candidate]:
        """Mend rows in one transaction, and return the candidates whose rows have changed meanwhile.

        Raises:
            psycopg.Error: the destination does not take one of them.
            Failure: all else.
        """
        keys = [each.candidate.key for each in some]
        places = {number: place for place, number in enumerate(rows.numbers)}
        present = [index for index, each in enumerate(some) if each.claim.kind is not Kind.EXTRA]
        batch = _taken(rows.batch, [places[some[index].number] for index in present]) if present else None
        for _ in range(LOCK_TRIES_MAX):
            try:
                with self._destination.connection.transaction():
                    self._destination.put(keys, present, batch)
                    epoch = self._destination.hold()
                    if epoch is None:
                        raise psycopg.Rollback
                    return self._write_fitting(some, keys, epoch)
            except psycopg.Error as error:
                if careful.is_about_a_row(error):
                    raise
                with self._destination.asking():
                    raise error
            self._pace.pause(LOCK_PAUSE_SECONDS)
        raise RetryLater(
            Code.RECONCILE_BEHIND, "the pipeline holds its checkpoint all the time", table=self._destination.table
        )

    def _write_fitting(self, some: Sequence[_Finding], keys: Sequence[Key], epoch: int) -> list[_Candidate]:
        """Under the lock: write the rows whose versions are still those that were judged; return the others."""
        table = self._destination.table
        if epoch != self._standing.epoch:
            # A new owner has begun a session: nothing is written for the old one, and all is looked at again.
            for each in some:
                each.candidate.claim = None
            return [each.candidate for each in some]
        if self._destination.standing().slot != self._standing.slot:
            raise Permanent(Code.RECONCILE_NOT_COPIED, "the pipeline has started over", table=table)
        at_source, there = self._source.versions(keys), self._destination.staged()
        fitting, left = [], []
        for index, each in enumerate(some):
            now = at_source.get(index)
            held = there.get(index)
            same_source = (now.version if now is not None else None) == each.claim.source_version
            same_destination = (held.version if held is not None else None) == each.claim.destination_version
            if same_source and same_destination:
                fitting.append(index)
            else:
                each.candidate.claim = None
                left.append(each.candidate)
        self._destination.write(fitting)
        mended = [FoundRow(some[index].claim.kind, keys[index], repaired=True) for index in fitting]
        self._register.advance(self._run, counted(mended), mended)
        self._run = structs.replace(self._run, counts=self._run.counts.plus(counted(mended)))
        return left

    # ---- The place --------------------------------------------------------------------------------------------------

    def _write_down(self, *, stage: int, after: Key | None, state: ReconcileState = ReconcileState.RUNNING) -> None:
        """Commit what was found together with the place up to which it was looked for."""
        now = time.monotonic()
        found = structs.replace(self._tally, seconds=now - self._since)
        run = structs.replace(self._run, stage=stage, after=after, state=state, counts=self._run.counts.plus(found))
        with self._destination.asking():
            self._register.advance(run, found, self._rows)
        self._run, self._tally, self._rows, self._since = run, Counts(), [], now
        self._progress(run)


def _taken(batch: ChangeBatch | None, places: Sequence[int]) -> ChangeBatch:
    """Return some rows of a batch."""
    assert batch is not None
    return ChangeBatch(
        table=batch.table,
        rows=batch.rows.take(list(places)),
        ops=batch.ops[list(places)],
        commit_lsns=batch.commit_lsns[list(places)],
        ordinals=batch.ordinals[list(places)],
        commit_times=batch.commit_times[list(places)],
    )
