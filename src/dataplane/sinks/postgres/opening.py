"""How a sink's sessions begin: the settings and the name that they have, and the tables that they find or make.

Called by the sink and by the desk that replays dead letters.
"""

import hashlib
from collections.abc import Mapping

from dataplane import postgres
from dataplane.sinks.postgres import checkpoints, lane_table, letter_table, shape_table
from dataplane.sinks.postgres.session import Session

LOCK_SECONDS_MAX = 30
STATEMENT_SECONDS_MAX = 1800
IDLE_IN_TRANSACTION_SECONDS_MAX = 300
"""How long a large transaction may wait for its next set, and how long its locks outlive a process that was frozen."""

SETTINGS: Mapping[str, str] = {
    **postgres.SESSION_SETTINGS,
    "synchronous_commit": "on",
    "lock_timeout": f"{LOCK_SECONDS_MAX}s",
    "statement_timeout": f"{STATEMENT_SECONDS_MAX}s",
    "idle_in_transaction_session_timeout": f"{IDLE_IN_TRANSACTION_SECONDS_MAX}s",
    "client_min_messages": "warning",
    # Staged rows find theirs through the key's index, whatever the statistics of a fresh temporary table say.
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "enable_seqscan": "off",
    "jit": "off",
}
"""What the sink's session sets at its start."""

APPLICATION_NAME_BYTES_MAX = 63


def application_name(pipeline_id: str) -> str:
    """Return the name under which a pipeline's sinks are known to the server: the same for each of its owners."""
    name = f"pointsman sink {pipeline_id}"
    if len(name.encode()) <= APPLICATION_NAME_BYTES_MAX and name.isascii():
        return name
    return f"pointsman sink {hashlib.sha256(pipeline_id.encode()).hexdigest()[:40]}"


async def set_up(session: Session) -> None:
    """Make the checkpoints' table where it is missing; two nodes that do so at once take turns."""
    if (await session.execute(checkpoints.IS_SET_UP))[0][0]:
        return
    await session.execute("BEGIN")
    await session.execute("SELECT pg_advisory_xact_lock(%s)", (checkpoints.SETUP_LOCK,))
    for statement in (*checkpoints.SETUP, *letter_table.SETUP, *shape_table.SETUP, *lane_table.SETUP):
        await session.execute(statement)
    await session.execute("COMMIT")
