"""Where changes are delivered: one file or folder for each system, all under the law of `port`.

`SINKS` maps a connection's configuration to the sink that delivers there. Workers take it from here, and the law's suite
finds its members here. `memory` and `discard` obey the same law, but no document can name them.
"""

from collections.abc import Mapping

from contracts.v2 import PostgresConfig
from dataplane.sinks.postgres import PostgresSink

SINKS: Mapping[type, type[PostgresSink]] = {PostgresConfig: PostgresSink}
