"""Everything on one machine: the servers, both planes' processes, and the demo. Called by the command line and tests."""
