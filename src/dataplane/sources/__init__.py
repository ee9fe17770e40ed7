"""Where changes come from: one file or folder for each system, all under the law of `port`."""
