"""The demo's shop: its tables, its first rows, and a writer that does what a shop does, in real transactions.

Every transaction also writes a line into `journal` with its own number, so whoever sees line n at the destination knows
that transaction n and all before it have arrived. The mix holds everything that change capture has to get right: inserts,
updates, deletes, changed keys, large values that an update leaves alone (TOAST), NULLs, arrays, JSON, a truncated table,
and on demand one transaction of many rows.
"""

import random
import threading
import time
from collections import Counter
from collections.abc import Callable

import psycopg
from psycopg import Connection, sql
from psycopg.types.json import Jsonb

TABLES = ("public.customers", "public.orders", "public.carts", "public.journal")
CUSTOMERS = 1_000
ORDERS = 10_000
MOVED_KEYS_FROM = 1_000_000
LARGE_VALUE_CHARACTERS = 6_000
"""Random text of this length does not fit a page: the server stores it aside, and updates leave it there."""

SCHEMA = """
CREATE TABLE customers (
    id bigint PRIMARY KEY, name text NOT NULL, email varchar(120), vip boolean NOT NULL DEFAULT false,
    balance numeric(12, 2) NOT NULL, tags text[], profile jsonb, story text, joined date NOT NULL
);
CREATE TABLE orders (
    id bigint PRIMARY KEY, customer bigint NOT NULL, reference uuid NOT NULL, quantity integer NOT NULL,
    amount numeric(10, 2) NOT NULL, weight double precision, status text NOT NULL, note text,
    picture bytea, placed_at timestamptz NOT NULL, due timestamp
);
CREATE TABLE carts (id integer PRIMARY KEY, customer bigint NOT NULL, items integer[] NOT NULL);
CREATE TABLE journal (n bigint PRIMARY KEY, what text NOT NULL, at timestamptz NOT NULL);
"""

_FIRST_CUSTOMERS = """
INSERT INTO customers
SELECT i, 'Customer ' || i, CASE WHEN i %% 7 > 0 THEN 'c' || i || '@shop.example' END, i %% 10 = 0,
       (random() * 1000)::numeric(12, 2), CASE WHEN i %% 3 = 0 THEN ARRAY['north', 'a "quoted" one', NULL] END,
       jsonb_build_object('level', i %% 5, 'city', 'Zürich'), NULL, date '2020-01-01' + i %% 1500
FROM generate_series(1, %(rows)s) AS i
"""
_FIRST_ORDERS = """
INSERT INTO orders
SELECT i, 1 + (i * 7919) %% %(customers)s, gen_random_uuid(), 1 + i %% 9, (random() * 500)::numeric(10, 2),
       CASE WHEN i %% 4 > 0 THEN random() * 30 END, 'paid', CASE WHEN i %% 50 = 0 THEN E'two\\nlines\\t\\\\' END,
       CASE WHEN i %% 100 = 0 THEN decode(md5(i::text), 'hex') END, now() - i * interval '1 minute', localtimestamp
FROM generate_series(1, %(rows)s) AS i
"""
_MANY_ORDERS = """
INSERT INTO orders
SELECT %(first)s + i, 1 + i %% %(customers)s, gen_random_uuid(), 1, 9.99, NULL, 'wholesale', NULL, NULL, now(), NULL
FROM generate_series(0, %(rows)s - 1) AS i
"""


def populate(connection: Connection[tuple[object, ...]]) -> int:
    """Make the tables and their first rows in an empty database. Return how many rows there are."""
    connection.execute(SCHEMA)
    connection.execute(_FIRST_CUSTOMERS, {"rows": CUSTOMERS})
    connection.execute(_FIRST_ORDERS, {"rows": ORDERS, "customers": CUSTOMERS})
    connection.execute("UPDATE customers SET story = %s WHERE id %% 20 = 0", [_large_value(random.Random(0))])  # noqa: S311
    connection.execute("INSERT INTO carts SELECT i, i, ARRAY[i, NULL, 2 * i] FROM generate_series(1, 50) AS i")
    connection.commit()
    return CUSTOMERS + ORDERS + 50


def _large_value(chance: random.Random) -> str:
    return "".join(chance.choices("abcdefghijklmnopqrstuvwxyzäöü0123456789", k=LARGE_VALUE_CHARACTERS))


class Writer:
    """Writes at a steady rate in a thread of its own until it is stopped. Its counters may be read at any time."""

    def __init__(self, conninfo: str, *, transactions_per_second: float, seed: int) -> None:
        self._conninfo = conninfo
        self._pause = 1.0 / transactions_per_second
        self._chance = random.Random(seed)  # noqa: S311
        self._stop = threading.Event()
        self._large: int = 0
        self._next_order = ORDERS + 1
        self._thread = threading.Thread(target=self._run, name="writer", daemon=True)
        self.transactions = 0
        """The number of the last transaction that was committed."""
        self.rows = 0
        """Changes of rows that were committed."""
        self.kinds: Counter[str] = Counter()
        self.failure: Exception | None = None

    def start(self) -> None:
        """Begin to write."""
        self._thread.start()

    def write_large_transaction(self, rows: int) -> None:
        """Let the next transaction insert this many rows."""
        self._large = rows

    def stop(self) -> int:
        """Stop after the transaction that is being written. Return the number of the last one.

        Raises:
            psycopg.Error: what made the writer stop by itself.
        """
        self._stop.set()
        self._thread.join(timeout=60)
        if self.failure is not None:
            raise self.failure
        return self.transactions

    def _run(self) -> None:
        try:
            with psycopg.connect(self._conninfo) as connection:
                due = time.monotonic()
                while not self._stop.is_set():
                    self._transaction(connection)
                    due = max(due + self._pause, time.monotonic() - 1.0)
                    self._stop.wait(max(0.0, due - time.monotonic()))
        except psycopg.Error as error:
            self.failure = error

    def _transaction(self, connection: Connection[tuple[object, ...]]) -> None:
        name, step = self._choose()
        number = self.transactions + 1
        changed = step(connection)
        connection.execute("INSERT INTO journal VALUES (%s, %s, clock_timestamp())", [number, name])
        connection.commit()
        self.transactions = number
        self.rows += changed + 1
        self.kinds[name] += 1

    def _choose(self) -> tuple[str, Callable[[Connection[tuple[object, ...]]], int]]:
        if self._large:
            rows, self._large = self._large, 0
            return "large transaction", lambda connection: self._insert_many(connection, rows)
        steps = (
            (50, "orders placed", self._place_orders),
            (25, "orders shipped", self._ship_orders),
            (10, "orders cancelled", self._cancel_orders),
            (8, "customers paid", self._pay),
            (4, "customers renumbered", self._renumber),
            (3, "carts cleared", self._clear_carts),
        )
        chosen = self._chance.choices(steps, weights=[weight for weight, _, _ in steps])[0]
        return chosen[1], chosen[2]

    def _place_orders(self, connection: Connection[tuple[object, ...]]) -> int:
        count = self._chance.randint(1, 5)
        for _ in range(count):
            connection.execute(
                "INSERT INTO orders VALUES (%s, %s, gen_random_uuid(), %s, %s, %s, 'paid', %s, NULL, now(), NULL)",
                [
                    self._next_order,
                    self._chance.randint(1, CUSTOMERS),
                    self._chance.randint(1, 9),
                    round(self._chance.uniform(1, 500), 2),
                    self._chance.choice([None, 0.1, 1e-300, 12.5]),
                    self._chance.choice([None, "", "fragile", "ein 'Geschenk' für dich 🎁"]),
                ],
            )
            self._next_order += 1
        return count

    def _ship_orders(self, connection: Connection[tuple[object, ...]]) -> int:
        order = self._chance.randint(1, self._next_order)
        update = "UPDATE orders SET status = 'shipped', due = localtimestamp WHERE id BETWEEN %s AND %s"
        return connection.execute(update, [order, order + 5]).rowcount

    def _cancel_orders(self, connection: Connection[tuple[object, ...]]) -> int:
        return connection.execute(
            "DELETE FROM orders WHERE id = %s", [self._chance.randint(1, self._next_order)]
        ).rowcount

    def _pay(self, connection: Connection[tuple[object, ...]]) -> int:
        """Move money between two customers: the sum stays the same, and large values are left alone."""
        one, other = self._chance.sample(range(20, CUSTOMERS, 20), 2)
        changed = 0
        for customer, amount in ((one, -5), (other, 5)):
            update = "UPDATE customers SET balance = balance + %s, profile = %s WHERE id = %s"
            profile = Jsonb({"paid": self.transactions, "note": None, "rate": 1.10})
            changed += connection.execute(update, [amount, profile, customer]).rowcount
        return changed

    def _renumber(self, connection: Connection[tuple[object, ...]]) -> int:
        """Change a key: at the destination the old row has to go and the new one to come."""
        customer = self._chance.randint(1, CUSTOMERS)
        update = (
            "UPDATE customers SET id = %(to)s WHERE id = %(from)s"
            " AND NOT EXISTS (SELECT 1 FROM customers WHERE id = %(to)s)"
        )
        there, back = customer, customer + MOVED_KEYS_FROM
        moved = connection.execute(update, {"from": there, "to": back}).rowcount
        return moved or connection.execute(update, {"from": back, "to": there}).rowcount

    def _clear_carts(self, connection: Connection[tuple[object, ...]]) -> int:
        connection.execute("TRUNCATE carts")
        return connection.execute(
            "INSERT INTO carts SELECT i, i, ARRAY[i, NULL] FROM generate_series(1, %s) AS i",
            [self._chance.randint(1, 20)],
        ).rowcount

    def _insert_many(self, connection: Connection[tuple[object, ...]], rows: int) -> int:
        values = {"first": self._next_order, "rows": rows, "customers": CUSTOMERS}
        self._next_order += rows
        return connection.execute(_MANY_ORDERS, values).rowcount


def arrived(connection: Connection[tuple[object, ...]]) -> int:
    """Return the number of the newest transaction that the destination holds, 0 before the first."""
    try:
        row = connection.execute("SELECT coalesce(max(n), 0) FROM public.journal").fetchone()
    except psycopg.errors.UndefinedTable:
        return 0
    number = row[0] if row else 0
    assert isinstance(number, int)
    return number


def count_rows(connection: Connection[tuple[object, ...]]) -> int:
    """Return how many rows all tables of the shop have together."""
    total = 0
    for table in TABLES:
        row = connection.execute(
            sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier(*table.split(".")))
        ).fetchone()
        total += int(str(row[0])) if row else 0
    return total
