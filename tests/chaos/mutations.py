"""Breaks one rule at a time in a scratch copy of the tree, and shows that the quickest suite which should notice does.

`uv run just mutations [--only WORD]`. Prints a table of rule → suite → caught or MISSED, and ends with 0 only if every
mutation was caught. A suite passes before it is trusted: each is first run on the copy as it is.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
COPIED = ("src", "tests", "deploy", "docs", "pyproject.toml")
SUITE_SECONDS_MAX = 240.0

CRASHES = "tests/dataplane/sinks/test_postgres_crashes.py"
LANES = "tests/dataplane/sinks/test_lanes.py"
LANE_TABLE = "src/dataplane/sinks/postgres/lane_table.py"
LAW = "tests/dataplane/sinks/test_law.py"
SIMULATION = "tests/dataplane/worker/test_simulation.py"
CHECKPOINTS = "src/dataplane/sinks/postgres/checkpoints.py"
DELIVERY = "src/dataplane/sinks/postgres/delivery.py"
SESSION = "src/dataplane/worker/session.py"
APPLIED = "        progress = await self._turns.apply(change)\n"
COMMITTED = "            writer.add(_COMMIT)\n"
APART = "            await writer.flush()\n            writer.add(self._fence.write(after))\n"
REPLAY = "src/dataplane/sinks/replay.py"


@dataclass(frozen=True)
class Mutation:
    """One rule broken: in `file`, every `old` becomes `new`. `suite` are pytest's arguments."""

    rule: str
    file: str
    changes: tuple[tuple[str, str], ...]
    suite: tuple[str, ...]


MUTATIONS = (
    Mutation(
        "fence: a write compares the epoch",
        CHECKPOINTS,
        (("AND epoch = $2", "AND (epoch = $2 OR $2 > 0)"),),
        (CRASHES, "-k", "frozen_owner"),
    ),
    Mutation(
        "fence: a claim raises the epoch",
        CHECKPOINTS,
        (
            (
                "DO UPDATE\n        SET epoch = nextval('pointsman.epochs'),",
                "DO UPDATE\n        SET epoch = held.epoch,",
            ),
        ),
        (LAW, "-k", "TestPostgres and next_owner"),
    ),
    Mutation(
        "fence: every lane compares the epoch",
        LANE_TABLE,
        (("pipeline_id = $1 AND epoch = $2 FOR SHARE", "pipeline_id = $1 AND (epoch = $2 OR $2 > 0) FOR SHARE"),),
        (LANES, "-k", "older_owner"),
    ),
    Mutation(
        "fence: whoever locks the checkpoint waits for every lane",
        LANE_TABLE,
        (("epoch = $2 FOR SHARE", "epoch = $2"),),
        (LANES, "-k", "waits_for_every_lane"),
    ),
    Mutation(
        "lanes: what a lane has beyond the checkpoint is dropped",
        "src/dataplane/sinks/postgres/sink.py",
        (("unseen = self._lanes.unseen(unseen)", "unseen = unseen"),),
        (LANES, "-k", "between_any_two_lanes"),
    ),
    Mutation(
        "lanes: a key that moves to another lane keeps its set whole",
        "src/dataplane/sinks/lanes.py",
        (("bool((former != numbers[changed]).any())", "bool((former != numbers[changed]).any()) and not lanes"),),
        (LANES, "-k", "moves_to_another_lane"),
    ),
    Mutation(
        "fence: one that was replaced does not claim back",
        "src/dataplane/sinks/ownership.py",
        (("if not allowed:", "if False:"),),
        (CRASHES, "-k", "claim_back"),
    ),
    Mutation(
        "fence: the same, in simulated lives",
        "src/dataplane/sinks/ownership.py",
        (("if not allowed:", "if False:"),),
        (SIMULATION,),
    ),
    Mutation(
        "position: what is durable already is dropped",
        REPLAY,
        (
            ("    if change.last <= position:\n        return None\n", ""),
            ("    if change.first > position:", "    if True:"),
        ),
        (LAW, "-k", "durable_already"),
    ),
    Mutation(
        "position: the same, in simulated lives",
        REPLAY,
        (("    if change.first > position:", "    if True:"),),
        (SIMULATION,),
    ),
    Mutation(
        "position: it is written in the rows' transaction",
        DELIVERY,
        (
            ("self._fence.write(after) if whole else self._fence.hold()", "self._fence.hold()"),
            ("            if not whole:\n                writer.add(self._fence.write(after))\n", ""),
            (COMMITTED, COMMITTED + APART),
        ),
        (CRASHES, "-k", "cut_between"),
    ),
    Mutation(
        "position: a set that straddles it is cut",
        REPLAY,
        (
            (
                "items = [rest for item in change.items if (rest := _after(item, position)) is not None]",
                "items = list(change.items)",
            ),
        ),
        (LAW, "-k", "straddles"),
    ),
    Mutation(
        "flush: nothing is confirmed before it is durable",
        SESSION,
        ((APPLIED, f"        self._source.confirm(change.commit_end_lsn)\n{APPLIED}"),),
        (SIMULATION, "-k", "whole"),
    ),
    Mutation(
        "flush: a status says what is confirmed, not what was written",
        "src/dataplane/sources/postgres/stream.py",
        (("        confirmed = self._confirmed\n        update", "        confirmed = self._written\n        update"),),
        ("tests/dataplane/sources/test_law.py", "-k", "only_what_was_confirmed"),
    ),
    Mutation(
        "buffer: a missing message is a hole",
        "src/dataplane/buffers/frames.py",
        (("        elif frame.number != self._next:", "        elif False:"),),
        ("tests/dataplane/buffers/test_buffers.py", "-k", "missing_or_comes_twice"),
    ),
    Mutation(
        "dead letters: what was sent before a refusal is undone",
        DELIVERY,
        (("            await self._undo(continued=continued)\n", ""),),
        ("tests/dataplane/sinks/test_letter_desk.py", "-k", "undone"),
    ),
    Mutation(
        "dead letters: later changes of a key wait behind its letter",
        "src/dataplane/sinks/parking.py",
        (("        return any(key in parked for key in self.of(row))", "        return False"),),
        (SIMULATION,),
    ),
    Mutation(
        "dead letters: a changed key parks its old name too",
        "src/dataplane/sinks/parking.py",
        (("return (self.new[row],) if old is None else (self.new[row], old)", "return (self.new[row],)"),),
        (SIMULATION,),
    ),
    Mutation(
        "copies: one that was asked for since begins anew",
        "src/dataplane/sources/postgres/publication.py",
        (("newest >= least and asked <= cursor.resync:", "newest >= least:"),),
        (SIMULATION,),
    ),
)


def main() -> int:
    """Read the command line, run every mutation, and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.mutations", description=__doc__)
    parser.add_argument("--only", default="", metavar="WORD", help="only rules that contain it")
    arguments = parser.parse_args()
    chosen = [each for each in MUTATIONS if arguments.only in each.rule]
    folder = Path(tempfile.mkdtemp(prefix="pm-mutations-"))
    caught = True
    try:
        _copy(folder)
        trusted: dict[tuple[str, ...], bool] = {}
        print(f"| {'rule that is broken':62} | {'suite':86} | {'outcome':10} |\n|{'-' * 64}|{'-' * 88}|{'-' * 12}|")
        for mutation in chosen:
            if mutation.suite not in trusted:
                trusted[mutation.suite] = _passes(folder, mutation.suite)
            outcome = _try(folder, mutation) if trusted[mutation.suite] else "BROKEN"
            caught = caught and outcome.startswith("caught")
            print(f"| {mutation.rule:62} | {' '.join(mutation.suite):86} | {outcome:10} |", flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return 0 if caught else 1


def _copy(folder: Path) -> None:
    folder.chmod(0o755)
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder / name)


def _try(folder: Path, mutation: Mutation) -> str:
    file = folder / mutation.file
    text = whole = file.read_text()
    for old, new in mutation.changes:
        if old not in text:
            return "OUTDATED"
        text = text.replace(old, new)
    file.write_text(text)
    begin = time.monotonic()
    try:
        passed = _passes(folder, mutation.suite)
    finally:
        file.write_text(whole)
    return "MISSED" if passed else f"caught {time.monotonic() - begin:.0f} s"


def _passes(folder: Path, suite: tuple[str, ...]) -> bool:
    """Run a suite on the copy, whose modules come before the installed ones."""
    environment = {**os.environ, "PYTHONPATH": str(folder / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *suite]
    try:
        done = subprocess.run(
            command, cwd=folder, env=environment, check=False, capture_output=True, timeout=SUITE_SECONDS_MAX
        )
    except subprocess.TimeoutExpired:
        return False
    if done.returncode not in (0, 1):
        raise RuntimeError(done.stdout.decode(errors="replace")[-3000:] + done.stderr.decode(errors="replace")[-1000:])
    return done.returncode == 0


if __name__ == "__main__":
    sys.exit(main())
