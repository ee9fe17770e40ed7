"""The one gate through which everything passes that goes up: only messages of the contracts, each signed and numbered.

The agent, the forwarder and the link hand messages in; a sealed envelope comes out, and nothing else of the data plane
makes one. What is not one of the contracts' upward messages is a programmer's error and ends here. Each envelope is noted
in the boundary ledger before anybody gets it: what cannot be noted does not leave.

Numbers only grow, whatever happens: a block of them is claimed on disk before the first one is used, so that a process
that is killed skips some and repeats none.
"""

import os
from pathlib import Path
from typing import get_args

from contracts import v1, v2
from contracts.convert import message_to_v1
from contracts.envelope import Purpose, sign
from contracts.keys import KeyPair
from dataplane.link.ledger import Ledger

SEQUENCE_BLOCK = 1_000
SEQUENCE_FILE = "sequence"

_UP: tuple[type, ...] = get_args(v2.AnyUp)


class SequenceCounter:
    """Numbers for one node key that never repeat, not even after kill -9. The file holds the end of the claimed block."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / SEQUENCE_FILE
        self._next = self._end = 0

    def next(self) -> int:
        """Return the next number, from 1.

        Raises:
            ValueError: the file is not the one that this class wrote; starting over would repeat numbers.
        """
        if self._next >= self._end:
            self._claim()
        self._next += 1
        return self._next

    def _claim(self) -> None:
        start = int(self._path.read_text()) if self._path.exists() else 0
        draft = self._path.with_suffix(".new")
        with draft.open("w") as file:
            file.write(str(start + SEQUENCE_BLOCK))
            file.flush()
            os.fsync(file.fileno())
        draft.replace(self._path)
        self._next, self._end = start, start + SEQUENCE_BLOCK


class Uplink:
    """Seals what one node sends, in the contract version that it is pinned to."""

    def __init__(
        self, node: str, key_pair: KeyPair, counter: SequenceCounter, ledger: Ledger, *, contract: int
    ) -> None:
        self._node = node
        self._key_pair = key_pair
        self._counter = counter
        self._ledger = ledger
        self._contract = contract

    def seal(self, message: v2.AnyUp) -> tuple[int, bytes]:
        """Return the message's number, and the message in a signed report.

        Raises:
            TypeError: it is not one of the contracts' upward messages.
            contracts.envelope.EnvelopeError: it is larger than a message of the channel may be.
            OSError: the ledger cannot be written, so the message may not leave.
        """
        if type(message) not in _UP:
            raise TypeError(f"{type(message).__name__} is no message that goes up")
        sequence = self._counter.next()
        report: v1.Report | v2.Report
        contract = v2.CONTRACT if isinstance(message, v2.CertificateRequest) else self._contract
        if contract == v1.CONTRACT:
            older = message_to_v1(message)
            report = v1.Report(node=self._node, key=self._key_pair.public, sequence=sequence, message=older)
        else:
            report = v2.Report(node=self._node, key=self._key_pair.public, sequence=sequence, message=message)
        sealed = sign(report, self._key_pair, contract=contract, purpose=Purpose.REPORT)
        self._ledger.note(str(message.__struct_config__.tag), sealed)
        return sequence, sealed
