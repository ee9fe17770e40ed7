"""PostgreSQL as a destination: rows and position in one transaction, fenced by an epoch that lies beside them."""

from dataplane.sinks.postgres.sink import PostgresSink

__all__ = ["PostgresSink"]
