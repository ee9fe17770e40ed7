"""What to do next with one worker process, decided without I/O: facts and the time go in, one step comes out.

The supervisor collects the facts, takes the step and asks again at the time that the decision names. Nothing here
remembers anything, so the same facts always give the same step, and a test moves the clock by writing a number.

A worker that is asked to stop ends at a transaction's end. One that does not is killed: the checkpoint lies with the
rows, so a killed worker costs a replay of what was in flight and never a row.
"""

from enum import Enum
from typing import NamedTuple

from msgspec import Struct

from contracts.codes import Code

TICK_SECONDS = 1.0
"""How often a worker is looked at when nothing happens."""
START_SECONDS_MAX = 60.0
"""From a worker's start to its first status."""
SILENCE_SECONDS_MAX = 15.0
"""Between two statuses of a worker that has spoken before; it speaks every second."""
STOP_SECONDS_MAX = 10.0
"""From asking a worker to stop to killing it."""
CONNECT_SECONDS = 0.1
"""Between two tries to reach a worker's socket."""
BACKOFF_SECONDS_MIN = 0.2
BACKOFF_SECONDS_MAX = 30.0
HEALTHY_SECONDS = 60.0
"""A worker that lived this long starts the backoff anew when it ends."""


class Step(Enum):
    """What the supervisor does with a worker."""

    WAIT = "wait"
    START = "start"
    CONNECT = "connect"
    HAND_OVER = "hand_over"
    """Send the new assignment over the socket."""
    ASK_STOP = "ask_stop"
    KILL = "kill"
    FORGET = "forget"
    """No process and no wish for one."""


class WorkerFacts(Struct, frozen=True, kw_only=True):
    """All that the decision depends on. Times are seconds of one monotonic clock; digests name assignments."""

    desired: str | None
    desired_restarts: int = 0
    alive: bool = False
    acting: str | None = None
    acting_restarts: int = 0
    connected: bool = False
    spoken: bool = False
    """This process has sent a status to this agent."""
    heard_at: float = 0.0
    """The newest of: start or adoption, and each status."""
    connect_at: float = 0.0
    """Not before this time is the socket tried again."""
    stop_asked_at: float | None = None
    killed: bool = False
    retry_at: float = 0.0
    """Not before this time is a process started again."""


class Decision(NamedTuple):
    """A step, when to look again at the latest, and for KILL the code that says why if it is a failure."""

    step: Step
    again_at: float
    code: Code | None = None


def decide(facts: WorkerFacts, now: float) -> Decision:
    """Return the next step for one worker."""
    if not facts.alive:
        return _decide_without_process(facts, now)
    tick = now + TICK_SECONDS
    if facts.killed:
        return Decision(Step.WAIT, now + CONNECT_SECONDS)
    if facts.stop_asked_at is not None:
        late_at = facts.stop_asked_at + STOP_SECONDS_MAX
        return Decision(Step.KILL, tick) if now >= late_at else Decision(Step.WAIT, min(tick, late_at))
    if facts.desired is None or facts.desired_restarts != facts.acting_restarts:
        return Decision(Step.ASK_STOP, tick)
    if now - facts.heard_at >= (SILENCE_SECONDS_MAX if facts.spoken else START_SECONDS_MAX):
        return Decision(Step.KILL, tick, Code.WORKER_STALLED)
    if not facts.connected:
        ready = now >= facts.connect_at
        return Decision(Step.CONNECT if ready else Step.WAIT, min(tick, max(facts.connect_at, now + CONNECT_SECONDS)))
    return Decision(Step.WAIT if facts.desired == facts.acting else Step.HAND_OVER, tick)


def _decide_without_process(facts: WorkerFacts, now: float) -> Decision:
    if facts.desired is None:
        return Decision(Step.FORGET, now)
    if now < facts.retry_at:
        return Decision(Step.WAIT, facts.retry_at)
    return Decision(Step.START, now + CONNECT_SECONDS)


def backoff_seconds(failures: int, chance: float) -> float:
    """Return how long to wait after the `failures`-th failure in a row (from 1). `chance` in [0, 1) is the jitter."""
    full = min(BACKOFF_SECONDS_MAX, BACKOFF_SECONDS_MIN * 2.0 ** min(max(failures, 1) - 1, 32))
    return full * (0.5 + chance / 2)
