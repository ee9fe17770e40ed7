-- The channel's tables. Run at every start; must stay repeatable.

-- What the channel remembers that does not follow from the log: the epoch, and the list of trusted keys last issued.
CREATE TABLE IF NOT EXISTS channel_state (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    epoch bigint NOT NULL DEFAULT 1,
    issued_epoch bigint NOT NULL DEFAULT 0,
    issued_trust text NOT NULL DEFAULT ''
);
INSERT INTO channel_state (one) VALUES (true) ON CONFLICT DO NOTHING;

-- Projected from the log.
CREATE TABLE IF NOT EXISTS channel_tenants (
    tenant text PRIMARY KEY
);
CREATE TABLE IF NOT EXISTS channel_planes (
    tenant text NOT NULL,
    data_plane text NOT NULL,
    revision bigint NOT NULL,
    PRIMARY KEY (tenant, data_plane)
);
CREATE TABLE IF NOT EXISTS channel_leaves (
    tenant text NOT NULL,
    leaf_key text NOT NULL,
    data_plane text NOT NULL,
    revoked_at bigint,
    PRIMARY KEY (tenant, leaf_key)
);
CREATE TABLE IF NOT EXISTS channel_nodes (
    tenant text NOT NULL,
    node text NOT NULL,
    data_plane text NOT NULL,
    key text NOT NULL,
    contract int NOT NULL,
    revoked boolean NOT NULL,
    PRIMARY KEY (tenant, node)
);
CREATE TABLE IF NOT EXISTS channel_resources (
    tenant text NOT NULL,
    kind text NOT NULL,
    name text NOT NULL,
    state text NOT NULL,
    PRIMARY KEY (tenant, kind, name)
);
CREATE TABLE IF NOT EXISTS channel_documents (
    tenant text NOT NULL,
    data_plane text NOT NULL,
    contract int NOT NULL,
    kind text NOT NULL,
    name text NOT NULL,
    generation bigint NOT NULL,
    digest text NOT NULL,
    body text NOT NULL,
    PRIMARY KEY (tenant, data_plane, contract, kind, name)
);

-- Telemetry and bookkeeping of what came up: never projected, last value only.
CREATE TABLE IF NOT EXISTS telemetry_nodes (
    tenant uuid NOT NULL,
    data_plane text NOT NULL,
    node text NOT NULL,
    at timestamptz NOT NULL,
    started_at timestamptz NOT NULL,
    agent_version text NOT NULL,
    contract int NOT NULL,
    index_digest text,
    -- Which of the node's messages this is, so that one that is played again renews nothing.
    key text NOT NULL,
    sequence bigint NOT NULL,
    PRIMARY KEY (tenant, data_plane, node)
);
CREATE TABLE IF NOT EXISTS telemetry_pipelines (
    tenant uuid NOT NULL,
    pipeline text NOT NULL,
    data_plane text NOT NULL,
    node text NOT NULL,
    at timestamptz NOT NULL,
    numbers jsonb NOT NULL,
    PRIMARY KEY (tenant, pipeline)
);
CREATE TABLE IF NOT EXISTS node_errors (
    tenant uuid NOT NULL,
    data_plane text NOT NULL,
    node text NOT NULL,
    code text NOT NULL,
    pipeline text NOT NULL,
    count bigint NOT NULL,
    first_at timestamptz NOT NULL,
    last_at timestamptz NOT NULL,
    "table" text,
    "column" text,
    sql_state text,
    PRIMARY KEY (tenant, node, code, pipeline)
);
CREATE TABLE IF NOT EXISTS schemas_seen (
    tenant uuid NOT NULL,
    pipeline text NOT NULL,
    "table" text NOT NULL,
    node text NOT NULL,
    columns jsonb NOT NULL,
    PRIMARY KEY (tenant, pipeline, "table")
);
-- Which reports were taken: a node's numbers only grow, and each is taken once.
CREATE TABLE IF NOT EXISTS channel_receipts (
    key text NOT NULL,
    sequence bigint NOT NULL,
    PRIMARY KEY (key, sequence)
);
-- Nodes that hold a newer index than this control plane ever made: it was restored from an old backup.
CREATE TABLE IF NOT EXISTS channel_ahead (
    tenant text NOT NULL,
    data_plane text NOT NULL,
    node text NOT NULL,
    epoch bigint NOT NULL,
    revision bigint NOT NULL,
    PRIMARY KEY (tenant, data_plane, node)
);
