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
    -- A placement's name is `<pipeline>@<data plane>`. A column, because under row-level security no index on an expression
    -- is used that might leak what it computes.
    resource text NOT NULL GENERATED ALWAYS AS (split_part(name, '@', 1)) STORED,
    PRIMARY KEY (tenant, sequence)
);
DO $$ BEGIN
    IF NOT EXISTS (SELECT FROM pg_attribute WHERE attrelid = 'audit_entries'::regclass AND attname = 'resource') THEN
        ALTER TABLE audit_entries
            ADD COLUMN resource text NOT NULL GENERATED ALWAYS AS (split_part(name, '@', 1)) STORED;
    END IF;
END $$;
DROP INDEX IF EXISTS audit_entries_resource;
CREATE INDEX IF NOT EXISTS audit_entries_event ON audit_entries (tenant, event_id);
CREATE INDEX IF NOT EXISTS audit_entries_by_resource ON audit_entries (tenant, kind, resource, event_id);

CREATE TABLE IF NOT EXISTS audit_heads (
    tenant text PRIMARY KEY,
    sequence bigint NOT NULL,
    event_id bigint NOT NULL,
    at text NOT NULL,
    hash text NOT NULL
);
