"""Who may claim a pipeline's checkpoint: decided without I/O, from what this process knows and what the checkpoint says.

The fence stops an owner that has been replaced from writing. It does not stop it from claiming the pipeline back, and
two that can both reach the destination would end each other's sessions for as long as the leaf cannot tell one of them
that the lease is the other's. So a claim is a right that a process has once:

- A process that was just started claims if the leaf has told its node that the lease is its own (`leased`). If the leaf
  cannot be asked, it claims what its own node held last, or what nobody ever held.
- A process that has held the pipeline claims it again for as long as nobody else has claimed it since.
- All else is refused with `SINK_FENCED`. The node's agent then asks the leaf: it starts the worker afresh if the lease
  is still its own, and gives the pipeline up if the leaf cannot say so.

One `Ownership` lives as long as the worker's process; its sinks, one for each session, share it.
"""

from dataclasses import dataclass
from typing import NamedTuple
from uuid import uuid4

from contracts.codes import Code
from dataplane.failures import RetryLater

NODE_END = "/"
"""Ends the node's name in an owner; no node's name contains it."""


class Claimed(NamedTuple):
    """What a checkpoint says of its owner."""

    epoch: int
    owner: str


@dataclass
class Ownership:
    """What one process may claim. `owner` names it in the checkpoint, like no other process ever."""

    owner: str
    leased: bool = True
    """The leaf said, when this process was started, that the lease is its node's."""
    epoch: int = 0
    """The newest epoch that this process has held; 0 before its first claim, and after it has deleted the checkpoint."""

    @classmethod
    def of(cls, node: str, *, leased: bool = True) -> "Ownership":
        """Return that of a process which `node` has just started."""
        return cls(f"{node}{NODE_END}{uuid4().hex[:12]}", leased)

    def check(self, held: Claimed | None) -> None:
        """Return if this process may claim what `held` says; None is a checkpoint that nobody has claimed.

        Raises:
            RetryLater: it may not (Code.SINK_FENCED).
        """
        if self.epoch:
            allowed = held is not None and (held.owner == self.owner or held.epoch <= self.epoch)
        else:
            allowed = self.leased or held is None or _node(held.owner) == _node(self.owner)
        if not allowed:
            raise RetryLater(
                Code.SINK_FENCED, "another owner has claimed this pipeline, and it is not ours to claim back"
            )

    @property
    def takes_over(self) -> bool:
        """Whether the first claim of this process holds whoever claims at the same moment."""
        return self.leased and not self.epoch


def _node(owner: str) -> str:
    return owner.partition(NODE_END)[0]
