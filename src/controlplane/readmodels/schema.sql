-- Every resource of every tenant as its events made it. A deleted one stays as a row that is not live, because its stream
-- goes on when the name is used again. `state` is JSON in a fixed order, so that a rebuild gives the same bytes.

CREATE TABLE IF NOT EXISTS resources (
    id uuid PRIMARY KEY,
    tenant text NOT NULL,
    kind text NOT NULL,
    name text COLLATE "C" NOT NULL,
    live boolean NOT NULL,
    revision bigint NOT NULL,
    state text NOT NULL
);
CREATE UNIQUE INDEX IF NOT EXISTS resources_by_name ON resources (tenant, kind, name);
CREATE INDEX IF NOT EXISTS resources_api_keys ON resources (name) WHERE kind = 'ApiKey';
CREATE INDEX IF NOT EXISTS resources_tenants ON resources (name) WHERE kind = 'Tenant';
