"""A pipeline of its own that writes over several connections (`consistency: key`): what is written for it, and what must hold.

`items` are those of `refusals`, in transactions that are large enough to be divided, with rows that go, come back and move
to other keys. Their version is the number of the transaction, so at any moment at the destination no key is ever older
than at the look before, whatever lane is ahead; and letters are in order as in any other pipeline.

`parts` is copied again, all of it or a part, and its copying is paused, beside all that; it is compared at the end only.
"""

import contextlib
import random
import time
from dataclasses import dataclass
from typing import ClassVar

import psycopg
from tests.chaos.refusals import BREAK, POISON, RefusingLoad
from tests.chaos.workload import CONNECT

NAME = "lanes"
LANES = 3
KEYS = 2_000
MOVED = 1_000_000
"""Added to a key that moves, and taken from it when it moves back."""
PARTS = 5_000
ROWS = (200, 600)
PAUSE_SECONDS = 0.15


@dataclass
class LanesLoad(RefusingLoad):
    """As `RefusingLoad`, for the pipeline with lanes."""

    tables: ClassVar[tuple[str, ...]] = ("items", "parts")
    schema: ClassVar[str] = (
        "CREATE TABLE items (id int PRIMARY KEY, version int NOT NULL, note text NOT NULL);"
        "CREATE TABLE parts (id int PRIMARY KEY, version int NOT NULL, note text NOT NULL);"
        f"INSERT INTO parts SELECT id, 0, md5(id::text) FROM generate_series(1, {PARTS}) AS id"
    )
    watch: ClassVar[str] = BREAK

    def _write(self, number: int) -> None:
        if number:
            return  # one writer is enough
        chance = random.Random(self.seed * 1000 + 8)
        version = 0
        while not self.stopped.is_set():
            with contextlib.suppress(psycopg.OperationalError), psycopg.connect(self.source, **CONNECT) as connection:
                # A commit whose answer was lost may have happened: no number is used twice in any case.
                while not self.stopped.is_set():
                    version += 1
                    with connection.transaction():
                        self._change(connection, chance, version)
                    self.committed += 1
                    time.sleep(PAUSE_SECONDS)
            time.sleep(0.1)

    def _change(self, connection: psycopg.Connection[tuple[object, ...]], chance: random.Random, version: int) -> None:
        """Change each key once: most are written, some are deleted, and now and then one moves."""
        keys = chance.sample(range(1, KEYS + 1), chance.randint(*ROWS))
        gone, written = keys[:10], keys[10:]
        connection.execute("DELETE FROM items WHERE id = ANY (%s)", [gone])
        poisoned = [key for key in written if chance.random() < 0.001]
        connection.execute(
            "INSERT INTO items SELECT id, %s, CASE WHEN id = ANY (%s) THEN %s ELSE 'good' END FROM unnest(%s::int[]) AS id"
            " ON CONFLICT (id) DO UPDATE SET version = excluded.version, note = excluded.note",
            [version, poisoned, POISON, written],
        )
        if chance.random() < 0.1:
            key = chance.choice(gone)
            connection.execute("DELETE FROM items WHERE id = %s", [key + MOVED])
            connection.execute(
                "UPDATE items SET id = id + %s, version = %s WHERE id = (SELECT id FROM items WHERE id <= %s"
                " AND id <> ALL (%s) AND id + %s NOT IN (SELECT id FROM items) ORDER BY id LIMIT 1)",
                [MOVED, version, KEYS, keys, MOVED],
            )
        part = chance.randint(1, PARTS)
        connection.execute("UPDATE parts SET version = %s WHERE id BETWEEN %s AND %s", [version, part, part + 150])
        connection.execute("DELETE FROM parts WHERE id = %s", [chance.randint(1, PARTS)])
        connection.execute(
            "INSERT INTO parts VALUES (%s, %s, 'new') ON CONFLICT DO NOTHING", [chance.randint(1, 2 * PARTS), version]
        )
