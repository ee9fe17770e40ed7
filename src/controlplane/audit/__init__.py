"""The audit log: every tenant's events as a chain of hashes, and signed checkpoints of its head."""
