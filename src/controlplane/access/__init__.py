"""Who may do what: API keys, roles, join tokens. Secrets are compared by hash, in constant time, and never stored."""
