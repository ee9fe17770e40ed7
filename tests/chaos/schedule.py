"""What happens when, drawn from a seed: the same seed gives the same faults at the same times, in a longer run more of them.

Pure. The world is not deterministic, so a seed repeats what is done to it and not what comes of that.
"""

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from random import Random

NODES = 3
GAP_SECONDS = (1.0, 6.0)
"""From the beginning of one fault to that of the next: so two or three hold at a time."""


class Kind(Enum):
    """What is done; each knows its targets, how often it is drawn, and how long it holds."""

    KILL = "kill"
    """SIGKILL; what is not a worker is started again at the end. A node's target takes its workers with it."""
    FREEZE = "freeze"
    """SIGSTOP, and SIGCONT at the end."""
    CUT = "cut"
    """Connections are reset, and so are new ones."""
    STALL = "stall"
    """Nothing passes, and nothing is closed."""
    SLOW = "slow"
    """Each piece takes longer."""
    CRASH = "crash"
    """A database server is stopped at once, as by a crash, and started again at the end."""
    FILL = "fill"
    """No room on a disk. A leaf is restarted once there is room again, as the operator's guide says."""
    CLOCK = "clock"
    """A node's clock jumps, and jumps back at the end; its monotonic clock goes on."""
    LOCK = "lock"
    """A destination's table is locked by somebody else."""
    DRAG = "drag"
    """A trigger at the destination sleeps."""
    COMMAND = "command"
    """A person's command, through the API."""


AGENTS = tuple(f"node-{number}" for number in range(1, NODES + 1))
MACHINES = tuple(f"machine-{number}" for number in range(1, NODES + 1))
"""A node with its workers."""
WAYS = ("source", "sink", "hub", *(f"leaf-of-{name}" for name in AGENTS))
PIPELINES = ("direct", "jetstream")
REFUSING = "refusing"
"""The pipeline with dead letters; only what `additions` draws is done to it by name."""
LANES = "lanes"
"""The pipeline that writes over several connections; only what `later_additions` draws is done to it by name."""


@dataclass(frozen=True)
class Recipe:
    """How a kind is drawn."""

    weight: int
    targets: tuple[str, ...]
    seconds: tuple[float, float]


RECIPES: dict[Kind, Recipe] = {
    Kind.KILL: Recipe(
        10, ("worker", "worker", *AGENTS, *MACHINES, "leaf", "hub", "control-plane", "postgres"), (0.2, 12)
    ),
    Kind.FREEZE: Recipe(6, ("worker", "worker", *AGENTS, *MACHINES, "leaf", "hub", "control-plane"), (0.5, 20)),
    Kind.CUT: Recipe(3, WAYS, (0.2, 15)),
    Kind.STALL: Recipe(3, WAYS, (1, 20)),
    Kind.SLOW: Recipe(2, WAYS, (2, 8)),
    Kind.CRASH: Recipe(3, ("source", "sink"), (0.1, 5)),
    Kind.FILL: Recipe(2, ("leaf", *AGENTS), (2, 10)),
    Kind.CLOCK: Recipe(2, AGENTS, (2, 15)),
    Kind.LOCK: Recipe(2, PIPELINES, (0.5, 8)),
    Kind.DRAG: Recipe(2, PIPELINES, (2, 8)),
    Kind.COMMAND: Recipe(
        5,
        tuple(f"{verb} {name}" for name in PIPELINES for verb in ("pause", "resync", "add", "alter", "restart")),
        (1, 8),
    ),
}

_CONFLICTS = (
    {"worker": MACHINES}
    | {f"machine-{number}": (f"node-{number}", "worker") for number in range(1, NODES + 1)}
    | {f"node-{number}": (f"machine-{number}",) for number in range(1, NODES + 1)}
)


@dataclass(frozen=True)
class Fault:
    """One fault. `at` and `seconds` count from the beginning of the run; `draw` in [0, 1) chooses what is left open."""

    number: int
    at: float
    kind: Kind
    target: str
    seconds: float
    draw: float

    def __str__(self) -> str:
        return f"{self.kind.value} {self.target} for {self.seconds:.1f} s"


def faults(seed: int) -> Iterator[Fault]:
    """Give the faults of a seed in the order of their times, without end."""
    random = Random(seed)
    kinds = list(RECIPES)
    held_until: dict[tuple[str, str], float] = {}
    at, number = 0.0, 0
    while True:
        at += random.uniform(*GAP_SECONDS)
        kind = random.choices(kinds, [RECIPES[each].weight for each in kinds])[0]
        recipe = RECIPES[kind]
        target, seconds, draw = random.choice(recipe.targets), random.uniform(*recipe.seconds), random.random()
        place = _place(kind)
        # One thing at a time with each target: what is frozen is not killed, what is down is not frozen.
        names = (target, *_CONFLICTS.get(target, ())) if place == "process" else (target,)
        if any(held_until.get((place, name), 0.0) > at for name in names):
            continue
        held_until[place, target] = at + seconds + 1.0
        number += 1
        yield Fault(number, at, kind, target, seconds, draw)


ADDITION_GAP_SECONDS = (3.0, 12.0)
_ADDITIONS = (
    *(f"{verb} {name}" for name in PIPELINES for verb in ("repair", "repair", "remove")),
    *(f"{verb} {REFUSING}" for verb in ("replay", "mend", "mend", "resync")),
)


_LATER_ADDITIONS = (
    *(f"{verb} {name}" for name in PIPELINES for verb in ("part", "hold")),
    *(
        f"{verb} {LANES}"
        for verb in ("part", "part", "hold", "hold", "resync", "repair", "mend", "replay", "restart", "pause")
    ),
)


def additions(seed: int) -> Iterator[Fault]:
    """Give more commands of people, in the same way: drawn apart, so that a seed's faults stay what they were before."""
    return _commands(Random(f"additions to {seed}"), _ADDITIONS, 1_000)


def later_additions(seed: int) -> Iterator[Fault]:
    """Give commands for parts of tables and for lanes, again drawn apart from all that came before them."""
    return _commands(Random(f"later additions to {seed}"), _LATER_ADDITIONS, 2_000)


def _commands(random: Random, targets: Sequence[str], number: int) -> Iterator[Fault]:
    held_until: dict[str, float] = {}
    at = 0.0
    while True:
        at += random.uniform(*ADDITION_GAP_SECONDS)
        target, seconds, draw = random.choice(targets), random.uniform(1, 8), random.random()
        if held_until.get(target, 0.0) > at:
            continue
        held_until[target] = at + seconds + 1.0
        number += 1
        yield Fault(number, at, Kind.COMMAND, target, seconds, draw)


def everything(seed: int) -> Iterator[Fault]:
    """Give faults and additions in the order of their times, without end."""
    return heapq.merge(faults(seed), additions(seed), later_additions(seed), key=lambda fault: fault.at)


def _place(kind: Kind) -> str:
    if kind in (Kind.KILL, Kind.FREEZE):
        return "process"
    if kind in (Kind.CUT, Kind.STALL, Kind.SLOW):
        return "way"
    return kind.value
