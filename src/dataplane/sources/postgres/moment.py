"""A moment of the source as its snapshot names it: which transactions had ended by then, and were visible.

In flow the server's text of a snapshot (`pg_current_snapshot`) and the numbers of transactions as the stream has them,
without their epoch; out flow answers for many of them at once. Called by the copy of a table, before it trusts a moment,
and by the decoder, which leaves out what a copy has already. No I/O.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from contracts.codes import Code
from dataplane.failures import Permanent
from dataplane.sources.postgres.messages import BEGIN, Messages, big_endian_32, join

Transactions = npt.NDArray[np.uint32]

BEGIN_BYTES = 21

_EPOCH = 1 << 32


def transactions_of(messages: Messages, *, in_progress: bool = False) -> Transactions:
    """Return the numbers of the transactions that begin in these messages of the stream (`messages.join`)."""
    run = join(messages, in_progress=in_progress)
    begins = run.types == BEGIN
    if (run.ends[begins] - run.starts[begins] < BEGIN_BYTES).any():
        raise Permanent(Code.SOURCE_PROTOCOL, "a Begin is shorter than its form")
    return big_endian_32(run.buffer, run.starts[begins] + 17)


@dataclass(frozen=True, slots=True)
class Moment:
    """A snapshot: every transaction before `xmax` that is not among `running` was visible."""

    text: str
    xmax: int
    running: npt.NDArray[np.int64]

    @staticmethod
    def parse(text: str) -> "Moment":
        """Read `xmin:xmax:xip,…`."""
        _, xmax, running = text.split(":")
        numbers = [int(number) for number in running.split(",") if number]
        return Moment(text, int(xmax), np.array(numbers, np.int64))

    def sees(self, transactions: Transactions) -> npt.NDArray[np.bool_]:
        """Say for each transaction whether it was visible. They are within two thousand million of the moment."""
        numbers = transactions.astype(np.int64) + (self.xmax & ~(_EPOCH - 1))
        numbers = np.where(numbers - self.xmax > _EPOCH // 2, numbers - _EPOCH, numbers)
        numbers = np.where(self.xmax - numbers > _EPOCH // 2, numbers + _EPOCH, numbers)
        visible: npt.NDArray[np.bool_] = (numbers < self.xmax) & ~np.isin(numbers, self.running)
        return visible
