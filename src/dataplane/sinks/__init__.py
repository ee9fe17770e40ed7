"""Where changes are delivered: one file or folder for each system, all under the law of `port`."""
