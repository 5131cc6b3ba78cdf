-- +goose Up

-- One row for each physical unit that Steward has ever known; rows are never deleted.
CREATE TABLE registry_device (
    num         AUTOKEY,
    id          TEXT NOT NULL UNIQUE,
    tenant      TEXT NOT NULL,
    serial      TEXT NOT NULL,   -- '' while it is not known
    model       TEXT NOT NULL,   -- '' when the device was not bought through Steward
    name        TEXT NOT NULL,
    stage       TEXT NOT NULL,
    stage_since BIGINT NOT NULL,
    reason      TEXT NOT NULL,
    labels      TEXT NOT NULL,   -- JSON; the same as the rows in registry_label, so that a list needs one query
    created     BIGINT NOT NULL,
    revision    BIGINT NOT NULL
);

-- Makers number their units each on their own, so a serial number is unique per model only.
CREATE UNIQUE INDEX registry_device_serial ON registry_device (tenant, serial, model) WHERE serial <> '';

-- One index for each way to begin a list; all end in num, the order of pages.
CREATE INDEX registry_device_tenant ON registry_device (tenant, num);
CREATE INDEX registry_device_stage ON registry_device (tenant, stage, num);
CREATE INDEX registry_device_model ON registry_device (tenant, model, num);

-- A device has one value per key; the value is in the primary key so that its index answers alone whether
-- a device has a label.
CREATE TABLE registry_label (
    num    BIGINT NOT NULL,
    tenant TEXT NOT NULL,
    key    TEXT NOT NULL,
    value  TEXT NOT NULL,
    PRIMARY KEY (num, key, value)
);
CREATE INDEX registry_label_value ON registry_label (tenant, key, value, num);

-- What a search by prefix finds: ID, serial number, name and the words of the name, in lower case.
-- The bytes are compared as bytes, whatever the database's collation is.
CREATE TABLE registry_term (
    tenant TEXT NOT NULL,
    term   BYTES NOT NULL,
    num    BIGINT NOT NULL,
    PRIMARY KEY (tenant, term, num)
);
CREATE INDEX registry_term_num ON registry_term (num, term);

-- Kept counts: the sum over the shards is the number of devices. On PostgreSQL each connection counts
-- in a shard of its own, so that two transactions hardly ever wait for each other's row.
CREATE TABLE registry_count (
    tenant  TEXT NOT NULL,
    stage   TEXT NOT NULL,
    shard   BIGINT NOT NULL,
    devices BIGINT NOT NULL,
    PRIMARY KEY (tenant, stage, shard)
);
CREATE TABLE registry_label_count (
    tenant  TEXT NOT NULL,
    key     TEXT NOT NULL,
    value   TEXT NOT NULL,
    shard   BIGINT NOT NULL,
    devices BIGINT NOT NULL,
    PRIMARY KEY (tenant, key, value, shard)
);
