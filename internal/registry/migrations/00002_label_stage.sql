-- +goose Up

-- Kept counts by label and stage at once: how many devices of a site are in which stage is read, not
-- counted. They take the place of registry_label_count, whose numbers are their sums.
CREATE TABLE registry_label_stage (
    tenant  TEXT NOT NULL,
    key     TEXT NOT NULL,
    value   TEXT NOT NULL,
    stage   TEXT NOT NULL,
    shard   BIGINT NOT NULL,
    devices BIGINT NOT NULL,
    PRIMARY KEY (tenant, key, value, stage, shard)
);
INSERT INTO registry_label_stage (tenant, key, value, stage, shard, devices)
    SELECT l.tenant, l.key, l.value, d.stage, 0, COUNT(*) FROM registry_label l JOIN registry_device d ON d.num = l.num
    GROUP BY l.tenant, l.key, l.value, d.stage;
DROP TABLE registry_label_count;

-- Models are counted too: lists choose where to begin by such counts.
CREATE TABLE registry_model_count (
    tenant  TEXT NOT NULL,
    model   TEXT NOT NULL,
    shard   BIGINT NOT NULL,
    devices BIGINT NOT NULL,
    PRIMARY KEY (tenant, model, shard)
);
INSERT INTO registry_model_count (tenant, model, shard, devices)
    SELECT tenant, model, 0, COUNT(*) FROM registry_device WHERE model <> '' GROUP BY tenant, model;

-- Changes of many devices that are under way or were done: one row per wish, and the devices that are
-- still to be changed in parts, so that a transaction takes some of them off and changes them.
CREATE TABLE registry_bulk (
    id      TEXT PRIMARY KEY,
    tenant  TEXT NOT NULL,
    scope   TEXT NOT NULL, -- the author's, as a selector
    actor   TEXT NOT NULL, -- JSON
    wish    TEXT NOT NULL, -- JSON
    total   BIGINT NOT NULL,
    done    BIGINT NOT NULL,
    refused BIGINT NOT NULL,
    created BIGINT NOT NULL,
    touched BIGINT NOT NULL,
    ended   BIGINT NOT NULL  -- 0 while it is under way
);
CREATE INDEX registry_bulk_waiting ON registry_bulk (touched) WHERE ended = 0;
CREATE INDEX registry_bulk_tenant ON registry_bulk (tenant, created, id);
CREATE TABLE registry_bulk_part (
    bulk TEXT NOT NULL,
    part BIGINT NOT NULL,
    nums TEXT NOT NULL, -- JSON array of device numbers
    PRIMARY KEY (bulk, part)
);
-- The first of those that the action was not possible for.
CREATE TABLE registry_bulk_refused (
    bulk   TEXT NOT NULL,
    device TEXT NOT NULL,
    name   TEXT NOT NULL,
    detail TEXT NOT NULL,
    PRIMARY KEY (bulk, device)
);
