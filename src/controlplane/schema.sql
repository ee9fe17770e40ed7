-- Where each projection stands, and which tenants it has set aside. Run at every start; must stay repeatable.

CREATE TABLE IF NOT EXISTS projection_positions (
    projection text PRIMARY KEY,
    position bigint NOT NULL
);

CREATE TABLE IF NOT EXISTS projection_quarantines (
    projection text NOT NULL,
    tenant text NOT NULL,
    event_id bigint NOT NULL,
    event_type text NOT NULL,
    error text NOT NULL,
    at timestamptz NOT NULL,
    PRIMARY KEY (projection, tenant)
);
