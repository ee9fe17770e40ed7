"""PostgreSQL as a source: its logical replication stream and snapshot, as change sets of Arrow columns.

`decoder`, `transactions`, `tuples`, `copytext`, `messages`, `opening` and `publication` decide and do no I/O;
`replication`, `snapshot`, `catalog` and `slots` do the I/O; `source` joins them to the `Source` of the port.
"""

from dataplane.sources.postgres.source import PostgresSource as PostgresSource
