-- What a command needs to decide, written in the same transaction as the events that change it.

-- The live documents of each tenant, as the write path sees them: never behind the log.
CREATE TABLE IF NOT EXISTS catalogue (
    tenant text NOT NULL,
    kind text NOT NULL,
    name text NOT NULL,
    state text NOT NULL,
    PRIMARY KEY (tenant, kind, name)
);

-- A number per tenant that each change of the catalogue raises: two commands that saw the same state cannot both commit.
CREATE TABLE IF NOT EXISTS catalogue_guards (
    tenant text PRIMARY KEY,
    version bigint NOT NULL
);

-- What is known of members as persons: the only place, so that it can be erased. Written with a member's events; no event, no
-- record of an Idempotency-Key and no log repeats it.
CREATE TABLE IF NOT EXISTS personal_data (
    tenant text NOT NULL,
    member text NOT NULL,
    display_name text NOT NULL,
    email text NOT NULL,
    PRIMARY KEY (tenant, member)
);

-- When each API key was last used: telemetry, to the minute.
CREATE TABLE IF NOT EXISTS telemetry_api_keys (
    tenant text NOT NULL,
    key_id text NOT NULL,
    at timestamptz NOT NULL,
    PRIMARY KEY (tenant, key_id)
);

-- What was answered under an Idempotency-Key.
CREATE TABLE IF NOT EXISTS idempotency_records (
    tenant text NOT NULL,
    key text NOT NULL,
    request_digest text NOT NULL,
    nonce text NOT NULL,
    status integer NOT NULL,
    body text NOT NULL,
    revision bigint NOT NULL,
    at timestamptz NOT NULL,
    PRIMARY KEY (tenant, key)
);
CREATE INDEX IF NOT EXISTS idempotency_records_at ON idempotency_records (at);
