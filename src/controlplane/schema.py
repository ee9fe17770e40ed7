"""Creates the control plane's tables: each room keeps its own `schema.sql`, and all of them run at every start.

They must be repeatable, and they run under an advisory lock, so several processes may start at the same moment. Who may
see which row is settled in the same transaction: no table is ever there unguarded.
"""

from importlib.resources import files

from controlplane import row_security
from controlplane.projection import Pool
from controlplane.store import EventStore

ROOMS = ("", "commands", "readmodels", "audit", "channel")
"""Folders of this package that have tables, in the order in which they are created."""
_LOCK = "pointsman/schema"


def migrate(pool: Pool, store: EventStore) -> None:
    """Create what is missing, guard it, and open the store.

    `pool` acts as the tables' owner: the user that the settings name.

    Raises:
        controlplane.row_security.RightsMissingError: the user may not make the roles.
        psycopg.Error: the database refuses, for example because the role may not create tables.
        eventsourcing.persistence.PersistenceError: the same, from the library.
    """
    with pool.connection() as connection, connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", [_LOCK])
        store.create_tables()
        for room in ROOMS:
            file = files("controlplane").joinpath(room, "schema.sql")
            connection.execute(file.read_text().encode(), prepare=False)
        row_security.secure(connection)
    store.open()
