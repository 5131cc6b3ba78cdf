-- +goose Up
-- One row per event. A row is written with the change it tells, sequence NULL; the sequencer gives it
-- its leaf index soon after. num only tells the order of writing and means nothing else.
CREATE TABLE ledger_event (
    num        AUTOKEY,
    id         TEXT NOT NULL UNIQUE,
    sequence   BIGINT,
    at         BIGINT NOT NULL,
    tenant     TEXT NOT NULL,
    kind       TEXT NOT NULL,
    device     TEXT NOT NULL,
    subject    TEXT NOT NULL,
    actor_kind TEXT NOT NULL,
    actor_id   TEXT NOT NULL,
    actor_name TEXT NOT NULL,
    reason     TEXT NOT NULL,
    data       TEXT NOT NULL
);

-- Partial: a row enters the reading indexes once, when it is sequenced, and leaves the pending one then.
CREATE INDEX ledger_event_pending ON ledger_event (num) WHERE sequence IS NULL;
CREATE UNIQUE INDEX ledger_event_sequence ON ledger_event (sequence) WHERE sequence IS NOT NULL;
CREATE INDEX ledger_event_tenant ON ledger_event (tenant, sequence) WHERE sequence IS NOT NULL;
CREATE INDEX ledger_event_kind ON ledger_event (tenant, kind, sequence) WHERE sequence IS NOT NULL;
CREATE INDEX ledger_event_device ON ledger_event (device, sequence) WHERE sequence IS NOT NULL AND device <> '';
CREATE INDEX ledger_event_subject ON ledger_event (subject, sequence) WHERE sequence IS NOT NULL AND subject <> '';

-- The tree's hashes in the order of golang.org/x/mod/sumdb/tlog's stored hash index.
CREATE TABLE ledger_hash (
    idx  BIGINT PRIMARY KEY,
    hash BYTES NOT NULL
);

-- One row: the newest signed tree head. Whoever sequences holds its row lock.
CREATE TABLE ledger_head (
    one        BIGINT PRIMARY KEY CHECK (one = 1),
    size       BIGINT NOT NULL,
    at         BIGINT NOT NULL,
    checkpoint TEXT NOT NULL
);
INSERT INTO ledger_head (one, size, at, checkpoint) VALUES (1, 0, 0, '');

-- How far each consumer has come: the number of events it has handled.
CREATE TABLE ledger_cursor (
    name     TEXT PRIMARY KEY,
    position BIGINT NOT NULL,
    at       BIGINT NOT NULL
);
