"""What the two halves say to each other beside the stream, over plain NATS subjects of the leaf's DATA account.

The source's half asks (`Question`) and gets an `Answer`; the sink's half tells its `Durable` progress, and asks for a
new session with `Renew`. Everything names the session that it is about, and what is about another one is ignored.
"""

from enum import Enum
from typing import Any

import msgspec
from msgspec import Struct

from contracts.codes import Code, Family, explain
from dataplane.checkpoint import Checkpoint, Progress, SourceIdentity
from dataplane.failures import Failure, Gap, Permanent, RetryLater


class Operation(Enum):
    """What the source's half wants of the checkpoint."""

    LOAD = "load"
    BEGIN = "begin"
    ADVANCE = "advance"
    FOLLOW = "follow"
    FORGET = "forget"


class Question(Struct, frozen=True, kw_only=True):
    """Asked by the source's half of `session`. The first question of a session announces it."""

    session: bytes
    operation: Operation
    source: SourceIdentity | None = None
    confirmed_through: int = 0
    keeps: bool = False
    """It is a half with `confirm: buffer`, which asks only before its buffer is born and when the pipeline is removed."""
    resyncs: dict[str, int] = {}
    """Which tables the session copies again, as the pipeline's document says it. Said when the session is announced."""


class Trouble(Struct, frozen=True, kw_only=True):
    """A failure on its way between the halves: the sink's words, for the source's log on the same customer's side."""

    code: Code
    message: str
    table: str | None = None
    column: str | None = None
    sql_state: str | None = None


class Answer(Struct, frozen=True, kw_only=True):
    """The sink's half answers. `bound` is false while it follows another session, and then nothing was done."""

    bound: bool
    checkpoint: Checkpoint | None = None
    trouble: Trouble | None = None


class Durable(Struct, frozen=True, kw_only=True):
    """What the sink made durable of `session`."""

    session: bytes
    progress: Progress


class Renew(Struct, frozen=True, kw_only=True):
    """The sink's half cannot go on with `session` (or knows of none): begin a new one."""

    session: bytes | None = None


class Subjects:
    """The names that belong to one pipeline."""

    def __init__(self, pipeline_id: str) -> None:
        self.stream = f"pm-buffer-{pipeline_id}"
        self.sets = f"buffer.{pipeline_id}.sets"
        self.states = f"buffer.{pipeline_id}.states"
        self.questions = f"buffer.{pipeline_id}.questions"
        self.durable = f"buffer.{pipeline_id}.durable"
        self.renew = f"buffer.{pipeline_id}.renew"


encode = msgspec.msgpack.Encoder().encode


def trouble_of(failure: Failure) -> Trouble:
    """Return what the other half is told of `failure`."""
    return Trouble(
        code=failure.code,
        message=str(failure.args[0]),
        table=failure.table,
        column=failure.column,
        sql_state=failure.sql_state,
    )


def failure_of(trouble: Trouble) -> Failure:
    """Return the failure that the other half told of."""
    where: dict[str, Any] = {"table": trouble.table, "column": trouble.column, "sql_state": trouble.sql_state}
    if trouble.code.value.startswith("gap_"):
        return Gap(trouble.code, trouble.message, **where)
    if explain(trouble.code).family is Family.PERMANENT:
        return Permanent(trouble.code, trouble.message, **where)
    return RetryLater(trouble.code, trouble.message, **where)
