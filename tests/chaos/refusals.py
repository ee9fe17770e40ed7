"""A pipeline of its own whose destination refuses rows: what is written for it, and what must hold of its dead letters.

Rows of `items` count their changes in `version`, and some of these the destination does not take. At any moment there:

- a key's letters stand in the order of its versions, none of them twice;
- a row whose key has letters is older than all of them: nothing overtakes a letter;
- no row ever goes back.

Now and then the destination is mended for a while and the letters are replayed, or the table is copied again. At the end
all letters are replayed, and both sides are equal.
"""

import contextlib
import random
import time
from dataclasses import dataclass, field
from typing import ClassVar

import psycopg
from tests.chaos.workload import CONNECT, WRITE_PAUSE_SECONDS, Load

NAME = "refusing"
KEYS = 400
POISON = "poison"
BREAK = f"ALTER TABLE items DROP CONSTRAINT IF EXISTS taste, ADD CONSTRAINT taste CHECK (note <> '{POISON}') NOT VALID"
MEND = "ALTER TABLE items DROP CONSTRAINT IF EXISTS taste"

LETTERS = "SELECT to_regclass('pointsman.dead_letters') IS NOT NULL"
DISORDERED = """
SELECT id, 'its letters are out of order, or one is there twice' FROM (
    SELECT key ->> 'id' AS id, (row_values ->> 'version')::int AS version,
        lag((row_values ->> 'version')::int) OVER (PARTITION BY key ORDER BY dead_letters.id) AS before
    FROM pointsman.dead_letters WHERE table_name = 'items'
) AS each WHERE version <= before
UNION ALL SELECT items.id::text, 'it is not older than its letters' FROM items JOIN (
    SELECT key ->> 'id' AS id, min((row_values ->> 'version')::int) AS version FROM pointsman.dead_letters
        WHERE table_name = 'items' GROUP BY 1
) AS first ON first.id = items.id::text AND items.version >= first.version
LIMIT 5
"""


@dataclass
class RefusingLoad(Load):
    """As `Load`, for the pipeline with dead letters."""

    tables: ClassVar[tuple[str, ...]] = ("items",)
    schema: ClassVar[str] = "CREATE TABLE items (id int PRIMARY KEY, version int NOT NULL, note text NOT NULL)"
    watch: ClassVar[str] = BREAK

    mended: bool = False
    """The load has ended, and the destination takes everything."""
    _versions: dict[int, int] = field(default_factory=dict)

    def _write(self, number: int) -> None:
        if number:
            return  # one writer is enough
        chance = random.Random(self.seed * 1000 + 7)
        while not self.stopped.is_set():
            with contextlib.suppress(psycopg.OperationalError), psycopg.connect(self.source, **CONNECT) as connection:
                while not self.stopped.is_set():
                    with connection.transaction():
                        for key in sorted(chance.sample(range(1, KEYS + 1), chance.randint(1, 4))):
                            connection.execute(
                                "INSERT INTO items VALUES (%s, 1, %s)"
                                " ON CONFLICT (id) DO UPDATE SET version = items.version + 1, note = excluded.note",
                                [key, POISON if chance.random() < 0.03 else "good"],
                            )
                    self.committed += 1
                    time.sleep(WRITE_PAUSE_SECONDS * 5)
            time.sleep(0.1)

    def look(self, connection: psycopg.Connection[tuple[object, ...]], *, everything: bool) -> list[str]:
        """As `Load.look`."""
        found = []
        if connection.execute(LETTERS).fetchone() == (True,):
            for key, what in connection.execute(DISORDERED).fetchall():
                found.append(f"{self.name}: item {key}: {what}")
        for key, version in connection.execute("SELECT id, version FROM items").fetchall():
            assert isinstance(key, int)
            assert isinstance(version, int)
            if version < self._versions.get(key, 0):
                found.append(f"{self.name}: item {key} went back from version {self._versions[key]} to {version}")
            self._versions[key] = version
        return found

    def differences(self) -> list[str]:
        """As `Load.differences`, and the letters that are left."""
        found = super().differences()
        with psycopg.connect(self.sink, **CONNECT) as sink:
            if sink.execute(LETTERS).fetchone() == (True,):
                row = sink.execute("SELECT count(*) FROM pointsman.dead_letters").fetchone()
                if row is not None and row[0]:
                    found.append(f"{self.name}: {row[0]} dead letters are left")
        return found
