-- +goose Up
-- "Assign a release to a selector": what an operator wants. The newest active one whose selector
-- matches a device decides which version of the release's name it should run.
CREATE TABLE update_assignment (
    num            AUTOKEY,
    id             TEXT NOT NULL UNIQUE,
    tenant         TEXT NOT NULL,
    name           TEXT NOT NULL, -- of the release
    version        TEXT NOT NULL,
    target         TEXT NOT NULL,
    selector       TEXT NOT NULL, -- the author's scope included
    author_scope   TEXT NOT NULL, -- selector of the author's scope; empty when they see the whole tenant
    note           TEXT NOT NULL,
    state          TEXT NOT NULL, -- active, superseded, cancelled
    superseded_by  TEXT NOT NULL DEFAULT '',
    created        BIGINT NOT NULL,
    created_by     TEXT NOT NULL,
    ended          BIGINT NOT NULL DEFAULT 0
);
CREATE INDEX update_assignment_active ON update_assignment (tenant, name, num) WHERE state = 'active';
CREATE INDEX update_assignment_tenant ON update_assignment (tenant, num);

-- The documents of the desired section "update" that are in use: devices that want the same share one.
CREATE TABLE update_document (
    num   AUTOKEY,
    hash  TEXT NOT NULL UNIQUE,
    body  TEXT NOT NULL
);

-- One narrow row per device that this room has ever met.
CREATE TABLE update_device (
    num           BIGINT PRIMARY KEY, -- the device's number
    tenant        TEXT NOT NULL,
    wants         BIGINT NOT NULL DEFAULT 0, -- update_document, 0 for none
    picked        BIGINT NOT NULL DEFAULT 0, -- mark of the last change that touched the device together with others
    architecture  TEXT NOT NULL DEFAULT '',  -- of the reported inventory
    product       TEXT NOT NULL DEFAULT ''
);
CREATE INDEX update_device_picked ON update_device (picked);

-- How far a device is with an assignment. current = 1 says that the device is asked for it now: at most
-- one per device and release name.
CREATE TABLE update_state (
    assignment  BIGINT NOT NULL,
    num         BIGINT NOT NULL,
    name        TEXT NOT NULL,
    version     TEXT NOT NULL,
    attempt     INTEGER NOT NULL,
    current     SMALLINT NOT NULL,
    state       TEXT NOT NULL,
    step        TEXT NOT NULL DEFAULT '',
    cause       TEXT NOT NULL DEFAULT '',
    changed     BIGINT NOT NULL,
    PRIMARY KEY (assignment, num)
);
CREATE UNIQUE INDEX update_state_current ON update_state (num, name) WHERE current = 1;
CREATE INDEX update_state_device ON update_state (num, name, assignment);
CREATE INDEX update_state_progress ON update_state (assignment, state, num);
CREATE INDEX update_state_busy ON update_state (changed)
    WHERE current = 1 AND state IN ('downloading', 'downloaded', 'installed', 'healthy');

-- Kept counters, so that progress is read without counting devices; spread over shards so that devices
-- that report at the same time do not wait for one row.
CREATE TABLE update_count (
    assignment  BIGINT NOT NULL,
    state       TEXT NOT NULL,
    shard       INTEGER NOT NULL,
    n           BIGINT NOT NULL,
    PRIMARY KEY (assignment, state, shard)
);

-- Every state that a device reached, for ever: the first report of a state in an attempt stands.
CREATE TABLE update_history (
    num         BIGINT NOT NULL,
    assignment  BIGINT NOT NULL,
    attempt     INTEGER NOT NULL,
    state       TEXT NOT NULL,
    name        TEXT NOT NULL,
    version     TEXT NOT NULL,
    step        TEXT NOT NULL,
    cause       TEXT NOT NULL,
    output      TEXT NOT NULL,
    reached     BIGINT NOT NULL, -- by the device's clock
    received    BIGINT NOT NULL,
    PRIMARY KEY (num, assignment, attempt, state)
);

-- What runs on a device, as it last reported.
CREATE TABLE update_installed (
    num      BIGINT NOT NULL,
    name     TEXT NOT NULL,
    version  TEXT NOT NULL,
    since    BIGINT NOT NULL,
    PRIMARY KEY (num, name)
);
CREATE INDEX update_installed_release ON update_installed (name, version);
