-- The audit chain, derived from the log. `at` is text because its exact form is part of the hash.

CREATE TABLE IF NOT EXISTS audit_entries (
    tenant text NOT NULL,
    sequence bigint NOT NULL,
    event_id bigint NOT NULL,
    at text NOT NULL,
    kind text NOT NULL,
    name text NOT NULL,
    type text NOT NULL,
    actor text NOT NULL,
    payload text NOT NULL,
    previous text NOT NULL,
    hash text NOT NULL,
    PRIMARY KEY (tenant, sequence)
);
CREATE INDEX IF NOT EXISTS audit_entries_event ON audit_entries (tenant, event_id);
CREATE INDEX IF NOT EXISTS audit_entries_resource ON audit_entries (tenant, kind, split_part(name, '@', 1), event_id);

CREATE TABLE IF NOT EXISTS audit_heads (
    tenant text PRIMARY KEY,
    sequence bigint NOT NULL,
    event_id bigint NOT NULL,
    at text NOT NULL,
    hash text NOT NULL
);
