"""Raise the epoch: after a restore from an old backup, so that nodes take this control plane's word again.

Nodes never go back to an older index. A control plane that lost events therefore finds nodes ahead of it (readyz and the
metric `pointsman_channel_nodes_ahead` say so) and cannot change anything there. With a higher epoch everything is newer.
Stop the control plane, run `python -m controlplane.channel.epoch --settings FILE`, start it again: it issues every
document anew. What the lost events had asked for is gone: apply the manifests once more.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import psycopg

from controlplane import settings
from controlplane.row_security import DatabaseRole, role_name


def raise_epoch(connection: psycopg.Connection[tuple[Any, ...]]) -> int:
    """Raise the epoch above every one that a node was seen with, and return it. Takes effect with the next start."""
    row = connection.execute(
        "UPDATE channel_state SET epoch ="
        " greatest(epoch, (SELECT coalesce(max(epoch), 0) FROM channel_ahead)) + 1 RETURNING epoch"
    ).fetchone()
    connection.commit()
    if row is None:
        raise RuntimeError("the channel's tables are empty: this control plane has never started")
    return int(row[0])


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m controlplane.channel.epoch", description="Raise the epoch by one.")
    parser.add_argument("--settings", type=Path, required=True, help="the control plane's settings file")
    read = settings.read(parser.parse_args().settings)
    role = role_name(read.database.name, DatabaseRole.PROJECTOR)
    with psycopg.connect(read.database.conninfo(), options=f"-c role={role}") as connection:
        epoch = raise_epoch(connection)
    sys.stdout.write(f"epoch {epoch}; start the control plane to issue everything again\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
