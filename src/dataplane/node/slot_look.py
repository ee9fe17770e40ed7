"""`python -m dataplane.node.slot_look`: measure the slots of pipelines that nobody streams, say what they keep, and end.

It reads a `Look` as JSON from standard input and writes a list of `Seen` to standard output. Where a pipeline asks for it
(`on_full: stop`), a slot that keeps too much is given up. A process of its own for the same reasons as
`connection_check`. Called by `slot_care`.
"""

import sys
import time
from collections.abc import Iterator

import msgspec
import psycopg

from contracts.v2 import ConnectionDocument
from dataplane import postgres, retention, secrets
from dataplane.failures import Failure
from dataplane.node.slot_care import Look, Seen, Subject

APPLICATION_NAME = "pointsman slots"


def run(look: Look) -> list[Seen]:
    """Look at all, one connection after another, until the time is over."""
    ends_at = time.monotonic() + look.seconds_max
    seen: list[Seen] = []
    for name, document in look.connections.items():
        subjects = [each for each in look.subjects if each.connection == name]
        if time.monotonic() < ends_at:
            seen.extend(_at(document, subjects, look.secrets_folder))
    return seen


def _at(document: ConnectionDocument, subjects: list[Subject], secrets_folder: str) -> Iterator[Seen]:
    try:
        password = secrets.password(document.secrets, secrets_folder)
        conninfo = postgres.conninfo(document, password, application_name=APPLICATION_NAME)
        with psycopg.connect(conninfo, autocommit=True, prepare_threshold=None) as connection:
            for each in subjects:
                limit = each.give_up_bytes
                gave_up = limit is not None and retention.give_up(connection, each.publication, limit)
                measure = retention.measure(connection, each.publication)
                yield Seen(pipeline=each.pipeline, measure=measure, gave_up=gave_up)
    except (psycopg.Error, Failure):
        return  # that the source does not answer is told by whoever needs it


def main() -> None:
    """Answer one look."""
    seen = run(msgspec.json.decode(sys.stdin.buffer.read(), type=Look))
    sys.stdout.buffer.write(msgspec.json.encode(seen))


if __name__ == "__main__":
    main()
