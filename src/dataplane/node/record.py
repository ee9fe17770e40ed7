"""What a node remembers of itself on its own disk: which pipelines were its own, and how the ended ones ended.

With the leaf away a node runs what it ran before, and only that; this record says what it was. It is written before
the node acts on a change of it, whole and synced, and read once at the agent's start. A record that is lost or broken
costs nothing but time: the leases in the leaf say the same.
"""

import hashlib
import logging
import os
from pathlib import Path

import msgspec
from msgspec import Struct

from contracts.names import Count, ResourceName, TableName

FILE_NAME = "record.json"

_log = logging.getLogger(__name__)


class Ended(Struct, frozen=True, kw_only=True):
    """Where a pipeline stood when its workers were stopped on purpose."""

    epoch: int
    generation: int
    removed: bool = False
    """Slot, publication and checkpoint are gone."""
    position_lsn: int = 0
    position_ordinal: int = 0
    tables_total: int = 0
    tables_copied: int = 0


class Record(Struct, frozen=True, kw_only=True):
    """The durable part of a node's state."""

    held: frozenset[ResourceName] = frozenset()
    """Pipelines whose lease this node had."""
    members: frozenset[ResourceName] = frozenset()
    """Nodes of the data plane that were seen last, this one included."""
    ended: dict[ResourceName, Ended] = {}
    reconciled: dict[ResourceName, dict[TableName, Count]] = {}
    """The newest comparison of each table whose end was handed on to the control plane."""


class _File(Struct, frozen=True):
    checksum: str
    body: msgspec.Raw


def load(folder: Path) -> Record:
    """Return the record in `folder`; an empty one if there is none, or none that is whole."""
    path = folder / FILE_NAME
    try:
        file = msgspec.json.decode(path.read_bytes(), type=_File)
        if hashlib.sha256(file.body).hexdigest() != file.checksum:
            raise ValueError("checksum")
        return msgspec.json.decode(file.body, type=Record)
    except FileNotFoundError:
        return Record()
    except ValueError:
        _log.warning("record_unreadable", extra={"path": str(path)})
        return Record()


def save(folder: Path, record: Record) -> None:
    """Replace the record in `folder`; durable when this returns."""
    body = msgspec.json.encode(record, order="deterministic")
    content = msgspec.json.encode(_File(hashlib.sha256(body).hexdigest(), msgspec.Raw(body)))
    folder.mkdir(parents=True, exist_ok=True)
    draft = folder / f".{FILE_NAME}.new"
    with draft.open("wb") as file:
        file.write(content + b"\n")
        file.flush()
        os.fsync(file.fileno())
    draft.replace(folder / FILE_NAME)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
