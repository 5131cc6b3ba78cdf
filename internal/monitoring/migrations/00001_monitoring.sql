-- +goose Up

-- One narrow row per device that was ever in contact. A contact changes last_contact alone, which no
-- index holds; check_at moves only when a deadline has passed and is looked at.
CREATE TABLE monitoring_seen (
    num          BIGINT   NOT NULL PRIMARY KEY,
    tenant       TEXT     NOT NULL,
    device       TEXT     NOT NULL, -- its ID, by which its series are named
    last_contact BIGINT   NOT NULL,
    interval_s   INTEGER  NOT NULL, -- how often the device reports at the latest
    state        SMALLINT NOT NULL, -- 0 new, 1 online, 2 late, 3 offline
    state_since  BIGINT   NOT NULL,
    check_at     BIGINT   NOT NULL  -- when the state may have to change for the worse
);
CREATE INDEX monitoring_seen_check ON monitoring_seen (check_at) WHERE state < 3;
CREATE INDEX monitoring_seen_state ON monitoring_seen (tenant, state) WHERE state > 1;

-- How many devices of a tenant are in a state, kept with each change.
CREATE TABLE monitoring_count (
    tenant TEXT     NOT NULL,
    state  SMALLINT NOT NULL,
    n      BIGINT   NOT NULL,
    PRIMARY KEY (tenant, state)
);

-- Since when some node watches without a hole: silence before it says nothing about a device.
CREATE TABLE monitoring_watch (
    id    SMALLINT NOT NULL PRIMARY KEY,
    since BIGINT   NOT NULL,
    alive BIGINT   NOT NULL
);

-- What is wrong with what a device sends: kind is clock, series or metrics.
CREATE TABLE monitoring_trouble (
    num    BIGINT NOT NULL,
    kind   TEXT   NOT NULL,
    tenant TEXT   NOT NULL,
    n      BIGINT NOT NULL,
    first  BIGINT NOT NULL,
    last   BIGINT NOT NULL,
    detail TEXT   NOT NULL,
    PRIMARY KEY (num, kind)
);
CREATE INDEX monitoring_trouble_last ON monitoring_trouble (tenant, kind, last);

-- How often the devices of a tenant report and measure.
CREATE TABLE monitoring_policy (
    tenant          TEXT    NOT NULL PRIMARY KEY,
    report_seconds  INTEGER NOT NULL,
    metrics_seconds INTEGER NOT NULL,
    revision        BIGINT  NOT NULL,
    changed         BIGINT  NOT NULL
);

-- Named selectors.
CREATE TABLE monitoring_group (
    tenant   TEXT   NOT NULL,
    name     TEXT   NOT NULL,
    selector TEXT   NOT NULL,
    note     TEXT   NOT NULL,
    revision BIGINT NOT NULL,
    created  BIGINT NOT NULL,
    PRIMARY KEY (tenant, name)
);

-- Devices whose series are still to be deleted: the time-series store is outside of transactions.
CREATE TABLE monitoring_forget (
    device TEXT NOT NULL PRIMARY KEY
);
