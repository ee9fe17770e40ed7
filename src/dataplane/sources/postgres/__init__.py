"""PostgreSQL as a source: its logical replication stream and snapshot, as change sets of Arrow columns.

Decide and do no I/O: `messages`, `transactions`, `decoder`, `tuples`, `copytext`, `opening`, `publication`, `marks`.
Do the I/O: `catalog`, `slots`, `replication`, `stream`, `snapshot`. `preparation` gets a session ready, and `source` joins
all to the `Source` of the port.
"""

from dataplane.sources.postgres.source import PostgresSource as PostgresSource
