"""When each API key was last used: telemetry to the minute, written aside so that no request waits for it or fails with it.

Called for every request that is authenticated. What is not written yet is lost with the process.
"""

import asyncio
import time

import psycopg
from psycopg_pool import PoolTimeout

from controlplane.projection import Pool
from controlplane.row_security import Scope, scoped

RECORD_EVERY_SECONDS = 60.0
KEYS_REMEMBERED_MAX = 10_000
WRITES_MAX = 4
"""How many may wait for the database at a time. What would be more is recorded with the key's next use."""


class KeyUses:
    """Records uses, at most one a minute for each key."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._recorded: dict[str, float] = {}
        self._writing: set[asyncio.Task[None]] = set()

    async def record(self, tenant: str, key_id: str) -> None:
        """Take note that a key was used now. Returns at once."""
        now = time.monotonic()
        if now - self._recorded.get(key_id, -RECORD_EVERY_SECONDS) < RECORD_EVERY_SECONDS:
            return
        if len(self._writing) >= WRITES_MAX:
            return
        if len(self._recorded) >= KEYS_REMEMBERED_MAX:
            self._recorded.clear()
        self._recorded[key_id] = now
        task = asyncio.create_task(asyncio.to_thread(self._write, tenant, key_id), name="key-use")
        self._writing.add(task)
        task.add_done_callback(self._writing.discard)

    def _write(self, tenant: str, key_id: str) -> None:
        try:
            with self._pool.connection() as connection, scoped(connection, Scope(tenant=tenant)):
                connection.execute(
                    "INSERT INTO telemetry_api_keys (tenant, key_id, at) VALUES (%s, %s, now())"
                    " ON CONFLICT (tenant, key_id) DO UPDATE SET at = excluded.at",
                    [tenant, key_id],
                )
        except (psycopg.Error, PoolTimeout):
            self._recorded.pop(key_id, None)
