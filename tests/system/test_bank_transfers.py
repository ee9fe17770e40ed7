"""A bank whose total never changes: whatever is killed, no reader of the destination ever sees money made or lost."""

import contextlib
import os
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import psutil
import psycopg
import pytest
from tests.system.databases import Databases, Pair
from tests.system.stack import Stack, eventually

pytestmark = [pytest.mark.system, pytest.mark.timeout(420)]

ACCOUNTS = 25
START = 1_000
TOTAL = ACCOUNTS * START
WRITERS = 2
KILLS = 14
SEED = int(os.environ.get("POINTSMAN_SEED", "0")) or random.SystemRandom().randrange(1, 10**9)

SCHEMA = f"""
CREATE TABLE accounts (id int PRIMARY KEY, balance bigint NOT NULL);
CREATE TABLE transfers (id bigserial PRIMARY KEY, sender int NOT NULL, receiver int NOT NULL, amount bigint NOT NULL,
    bundle int);
CREATE TABLE slips (id bigserial PRIMARY KEY, text text NOT NULL);
INSERT INTO accounts SELECT n, {START} FROM generate_series(1, {ACCOUNTS}) n;
"""

LARGE, LARGE_SHARE = 6_000, 0.004
# A transaction that takes many batches on its way: thousands of transfers, megabytes of slips, then the balances.
MANY_TRANSFERS = (
    f"""
    INSERT INTO transfers (sender, receiver, amount, bundle)
    SELECT 1 + floor(random() * {ACCOUNTS}), 1 + floor(random() * {ACCOUNTS}), floor(random() * 100), %(bundle)s
    FROM generate_series(1, {LARGE})
    """,
    f"INSERT INTO slips (text) SELECT repeat(md5(n::text), 50) FROM generate_series(1, {LARGE}) n",
    """
    UPDATE accounts SET balance = balance + moved.amount FROM (
        SELECT id, sum(amount) AS amount FROM (
            SELECT receiver AS id, amount FROM transfers WHERE bundle = %(bundle)s
            UNION ALL SELECT sender, -amount FROM transfers WHERE bundle = %(bundle)s
        ) AS each GROUP BY id
    ) AS moved WHERE accounts.id = moved.id
    """,
)

# Each balance must be what the transfers say: half a transaction anywhere breaks this, whatever the total is.
AUDIT = f"""
SELECT (SELECT sum(balance) FROM accounts), (SELECT count(*) FROM accounts),
    (SELECT count(*) FROM accounts LEFT JOIN (
        SELECT id, sum(amount) AS amount FROM (
            SELECT receiver AS id, amount FROM transfers UNION ALL SELECT sender, -amount FROM transfers
        ) AS each GROUP BY id
    ) AS moved USING (id) WHERE balance <> {START} + coalesce(amount, 0)),
    (SELECT count(*) FROM transfers)
"""


@dataclass
class Bank:
    """Transfers at the source and an auditor at the destination, each in threads of their own."""

    pair: Pair
    seed: int
    stopped: threading.Event = field(default_factory=threading.Event)
    committed: int = 0
    audits: int = 0
    violations: list[str] = field(default_factory=list)

    def transfer(self, number: int) -> None:
        """Move money until stopped, over a new connection whenever the old one was cut."""
        chance = random.Random(self.seed * 1000 + number)
        while not self.stopped.is_set():
            with contextlib.suppress(psycopg.OperationalError), self.pair.source.connect() as connection:
                while not self.stopped.is_set():
                    with connection.transaction():
                        self._one_transaction(connection, chance)
                    self.committed += 1
                    time.sleep(0.004)

    def _one_transaction(self, connection: psycopg.Connection[object], chance: random.Random) -> None:
        if chance.random() < LARGE_SHARE:
            connection.execute("SELECT setseed(%s)", [chance.random()])
            connection.execute("LOCK TABLE accounts IN SHARE ROW EXCLUSIVE MODE")
            bundle = chance.randrange(1, 2**31)
            for statement in MANY_TRANSFERS:
                connection.execute(statement, {"bundle": bundle} if "%(" in statement else None)
            return
        for _ in range(chance.choice([1, 1, 1, 5, 40])):
            # Always in the order of ids, so that two writers never wait for each other in a circle.
            one, other = sorted(chance.sample(range(1, ACCOUNTS + 1), 2))
            amount = chance.randint(-50, 50)
            connection.execute("UPDATE accounts SET balance = balance - %s WHERE id = %s", [amount, one])
            connection.execute("UPDATE accounts SET balance = balance + %s WHERE id = %s", [amount, other])
            connection.execute(
                "INSERT INTO transfers (sender, receiver, amount) VALUES (%s, %s, %s)", [one, other, amount]
            )

    def audit(self) -> None:
        """Read the destination over and over; each read is one snapshot."""
        while not self.stopped.is_set():
            with contextlib.suppress(psycopg.OperationalError), self.pair.sink.connect() as connection:
                connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
                while not self.stopped.is_set():
                    with connection.transaction():
                        row = connection.execute(AUDIT).fetchone()
                    assert row is not None
                    if row[:3] != (TOTAL, ACCOUNTS, 0):
                        self.violations.append(f"total, accounts, wrong balances, transfers: {row}")
                        return
                    self.audits += 1
                    time.sleep(0.02)


def _kill(stack: Stack, databases: Databases, pair: Pair, target: str) -> None:
    if target == "worker":
        for worker in stack.workers()[:1]:
            with contextlib.suppress(psutil.NoSuchProcess):
                worker.kill()
    elif target in ("source", "sink"):
        side = pair.source if target == "source" else pair.sink
        with databases.superuser() as connection:
            connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [side.name])
    else:
        stack.kill_component(target)
        stack.cli("start", target)


@pytest.mark.parametrize("buffer", ["direct", "jetstream"])
def test_no_kill_makes_or_loses_money(
    stack: Stack, databases: Databases, make_pair: Callable[[str], Pair], buffer: str
) -> None:
    """Every read of the destination balances during 14 kills of anything; at the end both sides are equal."""
    print(f"seed: run again with POINTSMAN_SEED={SEED}")
    chance = random.Random(SEED)
    pair = make_pair(f"bank-{buffer}")
    pair.source.execute(SCHEMA)
    stack.apply(pair.manifest("public.accounts", "public.transfers", "public.slips", buffer=buffer))
    stack.wait(pair.name)
    bank = Bank(pair, SEED)
    threads = [threading.Thread(target=bank.transfer, args=[number]) for number in range(WRITERS)]
    threads.append(threading.Thread(target=bank.audit))
    for thread in threads:
        thread.start()
    try:
        targets = ["worker", "node-1", "leaf", "hub", "control-plane", "source", "sink"]
        rounds = targets + chance.choices([*targets, "worker", "worker"], k=KILLS - len(targets))
        chance.shuffle(rounds)
        for target in rounds:
            print(f"kill {target}")
            _kill(stack, databases, pair, target)
            bank.stopped.wait(chance.uniform(0.1, 2.0))
            assert not bank.violations
    finally:
        bank.stopped.set()
        for thread in threads:
            thread.join(timeout=30)
    assert bank.violations == []
    assert bank.committed > 100
    assert bank.audits > 10
    eventually(
        lambda: pair.equal("accounts", "transfers", "slips"), within=90, what="source and destination equal", every=0.5
    )
    assert pair.sink.execute(AUDIT)[0][:3] == (TOTAL, ACCOUNTS, 0)
    stack.wait(pair.name)
    stack.cli("pause", "pipeline", pair.name)
