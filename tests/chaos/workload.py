"""What is written at the source, and what must hold at the destination at every look.

Every transaction is a bundle: transfers between accounts of a bank, one line in `bundles` that says how many transfers
it has, and the next lines of a few ledgers. So at any moment at the destination:

- the balances sum up to the same total, and each is what the transfers say (a half or doubled transaction breaks it);
- each bundle has as many transfers as it says (each source transaction is there whole);
- each ledger's lines are 1, 2, 3 … without a hole, and its head says how many there are (order, nothing lost);
- no ledger is ever shorter than at the look before (nothing goes back), and no line is ever written a second time: a
  trigger at the destination notes each update and delete of a ledger's line.

`slips` and the tables that commands add carry no invariant while they are copied again; at the end all are compared.
"""

import contextlib
import random
import threading
import time
from dataclasses import dataclass, field
from typing import ClassVar

import psycopg
from psycopg import sql

ACCOUNTS = 20
START = 1_000
TOTAL = ACCOUNTS * START
LEDGERS = 12
WRITE_PAUSE_SECONDS = 0.01
LOOK_PAUSE_SECONDS = 0.1
LOOK_ALL_EVERY = 10
LOOK_BACK_BUNDLES = 300
"""An ordinary look counts the transfers of the newest bundles only; each tenth look counts all."""
CONNECT = {"connect_timeout": 3, "options": "-c statement_timeout=30s"}

TABLES = ("accounts", "transfers", "bundles", "entries", "heads", "slips")
SCHEMA = f"""
CREATE TABLE accounts (id int PRIMARY KEY, balance bigint NOT NULL);
CREATE TABLE transfers (id bigserial PRIMARY KEY, bundle bigint NOT NULL, sender int, receiver int, amount bigint);
CREATE TABLE bundles (id bigint PRIMARY KEY, size int NOT NULL);
CREATE TABLE entries (ledger int, line int, note text, PRIMARY KEY (ledger, line));
CREATE TABLE heads (ledger int PRIMARY KEY, line int NOT NULL);
CREATE TABLE slips (id bigserial PRIMARY KEY, note text);
CREATE INDEX ON transfers (bundle);
INSERT INTO accounts SELECT n, {START} FROM generate_series(1, {ACCOUNTS}) n;
INSERT INTO heads SELECT n, 0 FROM generate_series(1, {LEDGERS}) n;
INSERT INTO slips (note) SELECT md5(n::text) FROM generate_series(1, 500) n;
"""
WATCH = """
CREATE INDEX IF NOT EXISTS transfers_bundle ON transfers (bundle);
CREATE TABLE IF NOT EXISTS rewritten (ledger int, line int, what text);
CREATE OR REPLACE FUNCTION note_rewritten() RETURNS trigger LANGUAGE plpgsql AS
    'BEGIN INSERT INTO rewritten VALUES (OLD.ledger, OLD.line, TG_OP); RETURN NULL; END';
CREATE OR REPLACE TRIGGER rewritten AFTER UPDATE OR DELETE ON entries FOR EACH ROW EXECUTE FUNCTION note_rewritten();
"""

BANK = f"""
SELECT (SELECT sum(balance) FROM accounts), (SELECT count(*) FROM accounts),
    (SELECT count(*) FROM accounts LEFT JOIN (
        SELECT id, sum(amount) AS amount FROM (
            SELECT receiver AS id, amount FROM transfers UNION ALL SELECT sender, -amount FROM transfers
        ) AS each GROUP BY id
    ) AS moved USING (id) WHERE balance <> {START} + coalesce(amount, 0)),
    (SELECT count(*) FROM rewritten)
"""
BUNDLES = """
SELECT id, size, there FROM (
    SELECT id, size, (SELECT count(*) FROM transfers WHERE bundle = bundles.id) AS there FROM bundles
    ORDER BY id DESC LIMIT %s
) AS newest WHERE size <> there
UNION ALL SELECT bundle, 0, 1 FROM (SELECT bundle FROM transfers ORDER BY id DESC LIMIT %s) AS newest
    WHERE NOT EXISTS (SELECT FROM bundles WHERE id = newest.bundle)
LIMIT 5
"""
LEDGER = """
SELECT ledger, heads.line, count(entries.line), coalesce(max(entries.line), 0)
FROM heads LEFT JOIN entries USING (ledger) GROUP BY ledger, heads.line ORDER BY ledger
"""


@dataclass
class Load:
    """One pipeline's source and destination: writers, a checker, and what they saw. Everything by threads of its own."""

    tables: ClassVar[tuple[str, ...]] = TABLES
    schema: ClassVar[str] = SCHEMA
    watch: ClassVar[str] = WATCH
    """What is made at the destination once the tables are there."""

    name: str
    source: str
    """How the writers reach the source: directly, past the cuts in the network."""
    sink: str
    seed: int
    stopped: threading.Event = field(default_factory=threading.Event)
    committed: int = 0
    looks: int = 0
    violations: list[str] = field(default_factory=list)
    added: list[str] = field(default_factory=list)
    """Tables that commands added."""
    away: set[str] = field(default_factory=set)
    """Those among them that are out of the pipeline for a while."""
    held: set[str] = field(default_factory=set)
    """Tables whose copying is paused for a while."""
    large: threading.Event = field(default_factory=threading.Event)
    """The next transaction is to be a large one."""
    _threads: list[threading.Thread] = field(default_factory=list)
    _lines: dict[int, int] = field(default_factory=dict)

    def start(self) -> None:
        """Begin to write and to look."""
        works = [(self._write, 0), (self._write, 1), (self._watch, 0)]
        self._threads = [threading.Thread(target=work, args=[n], daemon=True) for work, n in works]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End the writers and the checker."""
        self.stopped.set()
        for thread in self._threads:
            thread.join(timeout=60)

    # ---- writing --------------------------------------------------------------------------------------------------

    def _write(self, number: int) -> None:
        chance = random.Random(self.seed * 1000 + number)
        bundle = number
        while not self.stopped.is_set():
            with contextlib.suppress(psycopg.OperationalError), psycopg.connect(self.source, **CONNECT) as connection:
                # A commit whose answer was lost may have happened: the next number is beyond it in any case.
                row = connection.execute("SELECT max(id) FROM bundles WHERE id %% 2 = %s", [number]).fetchone()
                connection.rollback()
                bundle = max(bundle, (row[0] if row and row[0] is not None else number))
                while not self.stopped.is_set():
                    bundle += 2
                    with connection.transaction():
                        self._bundle(connection, chance, bundle)
                    self.committed += 1
                    time.sleep(WRITE_PAUSE_SECONDS)
            time.sleep(0.1)

    def _bundle(self, connection: psycopg.Connection[tuple[object, ...]], chance: random.Random, bundle: int) -> None:
        size = 2_000 if self.large.is_set() else chance.choice([1, 1, 2, 3, 30])
        self.large.clear()
        # Always in this order, so that two writers never wait for each other in a circle.
        ledgers = sorted(chance.sample(range(1, LEDGERS + 1), chance.randint(1, 3)))
        for ledger in ledgers:
            connection.execute(
                "WITH head AS (UPDATE heads SET line = line + 1 WHERE ledger = %s RETURNING ledger, line)"
                " INSERT INTO entries SELECT ledger, line, %s FROM head",
                [ledger, f"bundle {bundle}"],
            )
        accounts = list(range(1, ACCOUNTS + 1))
        moves = [(bundle, *chance.sample(accounts, 2), chance.randint(-50, 50)) for _ in range(size)]
        moved: dict[int, int] = {}
        for _, sender, receiver, amount in moves:
            moved[sender] = moved.get(sender, 0) - amount
            moved[receiver] = moved.get(receiver, 0) + amount
        with connection.cursor() as cursor:
            cursor.executemany(
                "UPDATE accounts SET balance = balance + %s WHERE id = %s",
                [(moved[account], account) for account in sorted(moved)],
            )
            cursor.executemany(
                "INSERT INTO transfers (bundle, sender, receiver, amount) VALUES (%s, %s, %s, %s)", moves
            )
        connection.execute("INSERT INTO bundles VALUES (%s, %s)", [bundle, size])
        if chance.random() < 0.3:
            connection.execute("INSERT INTO slips (note) VALUES (%s)", [str(bundle)])
        if chance.random() < 0.1:
            connection.execute(
                "UPDATE slips SET note = note || '+' WHERE id = (SELECT max(id) FROM slips WHERE id %% 2 = %s)",
                [bundle % 2],
            )
        for table in tuple(self.added):
            connection.execute(
                sql.SQL("INSERT INTO {} (note) VALUES (%s)").format(sql.Identifier(table)), [str(bundle)]
            )

    # ---- looking --------------------------------------------------------------------------------------------------

    def _watch(self, _: int) -> None:
        while not self.stopped.is_set():
            with contextlib.suppress(psycopg.OperationalError), psycopg.connect(self.sink, **CONNECT) as connection:
                connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
                while not self.stopped.is_set() and not self.violations:
                    with connection.transaction():
                        self.violations += self.look(connection, everything=self.looks % LOOK_ALL_EVERY == 0)
                    self.looks += 1
                    time.sleep(LOOK_PAUSE_SECONDS)
            time.sleep(0.1)

    def look(self, connection: psycopg.Connection[tuple[object, ...]], *, everything: bool) -> list[str]:
        """Return what does not hold in the state that `connection` sees."""
        found = []
        if everything:
            row = connection.execute(BANK).fetchone()
            if row != (TOTAL, ACCOUNTS, 0, 0):
                found.append(f"{self.name}: total, accounts, wrong balances, lines written again: {row}")
        many = 1 << 30 if everything else LOOK_BACK_BUNDLES
        for bundle, size, there in connection.execute(BUNDLES, [many, many]).fetchall():
            found.append(f"{self.name}: bundle {bundle} has {there} transfers of {size}")
        for ledger, head, count, last in connection.execute(LEDGER).fetchall():
            assert isinstance(ledger, int)
            assert isinstance(count, int)
            if not head == count == last:
                found.append(
                    f"{self.name}: ledger {ledger} has {count} lines, the last is {last}, its head says {head}"
                )
            if count < self._lines.get(ledger, 0):
                found.append(f"{self.name}: ledger {ledger} went back from {self._lines[ledger]} lines to {count}")
            self._lines[ledger] = count
        return found

    # ---- the end ----------------------------------------------------------------------------------------------------

    def differences(self) -> list[str]:
        """Return which tables are not equal on both sides, by every column that the source has."""
        found = []
        with psycopg.connect(self.source, **CONNECT) as source, psycopg.connect(self.sink, **CONNECT) as sink:
            for table in (*self.tables, *self.added):
                columns, key = _columns(source, table)
                query = sql.SQL(
                    "SELECT count(*), md5(coalesce(string_agg(md5(row({columns})::text), '' ORDER BY {key}), ''))"
                    " FROM {table}"
                ).format(
                    columns=sql.SQL(", ").join(map(sql.Identifier, columns)),
                    key=sql.SQL(", ").join(map(sql.Identifier, key)),
                    table=sql.Identifier(table),
                )
                here = source.execute(query).fetchone()
                try:
                    there = sink.execute(query).fetchone()
                except (psycopg.errors.UndefinedTable, psycopg.errors.UndefinedColumn) as error:
                    sink.rollback()
                    there = (type(error).__name__,)
                if here != there:
                    found.append(f"{self.name}: {table} is {here} at the source and {there} at the destination")
        return found


def _columns(connection: psycopg.Connection[tuple[object, ...]], table: str) -> tuple[list[str], list[str]]:
    rows = connection.execute(
        "SELECT attname::text, EXISTS (SELECT FROM pg_index WHERE indrelid = attrelid AND indisprimary AND attnum = ANY(indkey))"
        " FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum",
        [table],
    ).fetchall()
    return [str(name) for name, _ in rows], [str(name) for name, key in rows if key]
