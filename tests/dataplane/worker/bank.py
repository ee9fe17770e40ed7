"""A bank at the source: transfers between accounts with a ledger, so that any half or doubled transaction shows.

Every transfer moves an amount between two accounts and writes one ledger line, in one transaction; now and then a large
transaction touches every account. At any moment the balances sum up to the same total, and each line of the ledger is
there once.
"""

import asyncio
import random

import psycopg

ACCOUNTS = 20
BALANCE = 1000
TOTAL = ACCOUNTS * BALANCE
TABLES = ["public.accounts", "public.ledger"]

SCHEMA = f"""
CREATE TABLE accounts (id int PRIMARY KEY, balance int NOT NULL);
CREATE TABLE ledger (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, debit int, credit int, amount int);
INSERT INTO accounts SELECT id, {BALANCE} FROM generate_series(1, {ACCOUNTS}) AS id;
"""

_TRANSFER = """
WITH line AS (INSERT INTO ledger (debit, credit, amount) VALUES (%(debit)s, %(credit)s, %(amount)s))
UPDATE accounts SET balance = balance + CASE id WHEN %(debit)s THEN -%(amount)s ELSE %(amount)s END
WHERE id IN (%(debit)s, %(credit)s)
"""


class Bank:
    """The load at the source and the look at the destination."""

    def __init__(self, source: str, destination: str, seed: int) -> None:
        self._source = source
        self._destination = destination
        self._random = random.Random(seed)
        self.transfers = 0
        self._stopping = False

    def create(self) -> None:
        with psycopg.connect(self._source, autocommit=True) as connection:
            connection.execute(SCHEMA)

    async def work(self) -> None:
        """Transfer until `stop`."""
        connection = await psycopg.AsyncConnection.connect(self._source)
        async with connection:
            while not self._stopping:
                many = 400 if self._random.random() < 0.01 else self._random.randint(1, 3)
                for _ in range(many):
                    debit, credit = self._random.sample(range(1, ACCOUNTS + 1), 2)
                    parameters = {"debit": debit, "credit": credit, "amount": self._random.randint(1, 50)}
                    await connection.execute(_TRANSFER, parameters)
                await connection.commit()
                self.transfers += many
                await asyncio.sleep(0.001)

    def stop(self) -> None:
        self._stopping = True

    async def watch(self) -> None:
        """Look at the destination all the time: what it shows is always a state that the bank had."""
        connection = await psycopg.AsyncConnection.connect(self._destination, autocommit=True)
        async with connection:
            while True:
                exists = await (await connection.execute("SELECT to_regclass('accounts')")).fetchone()
                if exists != (None,):
                    row = await (await connection.execute("SELECT count(*), sum(balance) FROM accounts")).fetchone()
                    assert row in ((0, None), (ACCOUNTS, TOTAL)), row
                await asyncio.sleep(0.005)

    async def settle(self, seconds_max: float = 60) -> None:
        """Wait until the destination has all that the source has, and compare every row."""
        queries = ("SELECT * FROM accounts ORDER BY id", "SELECT * FROM ledger ORDER BY id")
        async with asyncio.timeout(seconds_max):
            while True:
                source, destination = (
                    await self._rows(self._source, queries),
                    await self._rows(self._destination, queries),
                )
                if source == destination:
                    return
                await asyncio.sleep(0.05)

    async def _rows(self, conninfo: str, queries: tuple[str, ...]) -> list[object]:
        connection = await psycopg.AsyncConnection.connect(conninfo, autocommit=True)
        async with connection:
            if await (await connection.execute("SELECT to_regclass('ledger')")).fetchone() == (None,):
                return []
            return [await (await connection.execute(query)).fetchall() for query in queries]  # type: ignore[arg-type]
