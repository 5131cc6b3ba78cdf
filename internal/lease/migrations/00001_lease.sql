-- +goose Up

-- The nodes, one row per start of a process. beat counts up while the node lives: others watch that it
-- changes, by their own clocks. seen is when it last did, by the database's clock, and only shown.
CREATE TABLE lease_node (
    id      TEXT PRIMARY KEY,
    name    TEXT NOT NULL,
    version TEXT NOT NULL,
    console TEXT NOT NULL,
    link    TEXT NOT NULL,
    bus     TEXT NOT NULL,
    started BIGINT NOT NULL, -- microseconds
    seen    BIGINT NOT NULL, -- microseconds
    beat    BIGINT NOT NULL
);

-- What one node does for all. term counts the holders and never goes back: it is the fencing token.
CREATE TABLE lease_lease (
    name   TEXT PRIMARY KEY,
    holder TEXT NOT NULL, -- lease_node.id; '' while nobody holds it
    term   BIGINT NOT NULL
);
