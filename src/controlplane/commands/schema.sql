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
