"""What lies between a source and a sink that run apart: one file for each system, all under the law of `port`."""
