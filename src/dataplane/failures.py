"""The two families of failure in the data plane, as values that say where, why and what a person can do.

A worker's runtime answers them: a `RetryLater` with backoff and jitter, a `Permanent` by stopping the pipeline and
saying so. Only the code, the SQLSTATE and the names may cross to the control plane; the text stays in the node's log.
A programmer's error is neither: it is not caught, and the process ends.
"""

from contracts.codes import Code, explain


class Failure(Exception):
    """Something outside the code went wrong: raise one of the two subclasses.

    `code` crosses to the control plane, as do `sql_state` and the names of `table` (schema.table) and `column`.
    The message may quote data, so it is only logged on the node.
    """

    def __init__(
        self,
        code: Code,
        message: str,
        *,
        table: str | None = None,
        column: str | None = None,
        sql_state: str | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.table = table
        self.column = column
        self.sql_state = sql_state

    def __str__(self) -> str:
        where = ", ".join(
            f"{name} {value}"
            for name, value in (("table", self.table), ("column", self.column), ("SQLSTATE", self.sql_state))
            if value
        )
        return f"{self.code.value}: {self.args[0]}{f' ({where})' if where else ''}. {explain(self.code).hint}"


class RetryLater(Failure):
    """It may pass by itself. `delay_seconds_min` is the least time to wait; the runtime adds its own backoff."""

    def __init__(self, code: Code, message: str, *, delay_seconds_min: float = 0.0, **where: str | None) -> None:
        super().__init__(code, message, **where)
        self.delay_seconds_min = delay_seconds_min


class Permanent(Failure):
    """It needs a person. The pipeline stops where it is; nothing is skipped and nothing is confirmed."""


class Gap(Permanent):
    """Rows between two positions may be missing. Raised before a single row is read; `code` is one of GAP_…."""
