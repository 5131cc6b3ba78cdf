-- +goose Up
CREATE TABLE disposal_record (
    id          TEXT PRIMARY KEY,
    tenant      TEXT NOT NULL,
    num         BIGINT NOT NULL,
    device      TEXT NOT NULL,
    serial      TEXT NOT NULL,
    model       TEXT NOT NULL,
    state       TEXT NOT NULL,
    method      TEXT NOT NULL,
    reason      TEXT NOT NULL,
    actor       TEXT NOT NULL, -- JSON
    created     BIGINT NOT NULL,
    accepted    BIGINT NOT NULL,
    ended       BIGINT NOT NULL,
    cause       TEXT NOT NULL,
    attestation TEXT NOT NULL, -- JSON or empty
    statement   BYTES,         -- DSSE envelope as the device sent it
    chain       TEXT NOT NULL, -- JSON array of DER certificates, the device's first
    certificate TEXT NOT NULL  -- ID of the disposal certificate, or empty
);
CREATE INDEX disposal_record_device ON disposal_record (num, created);
CREATE INDEX disposal_record_list ON disposal_record (tenant, created, id);
CREATE INDEX disposal_record_state ON disposal_record (tenant, state);
-- At most one disposal of a device is open, and at most one is done.
CREATE UNIQUE INDEX disposal_record_open ON disposal_record (num) WHERE state IN ('ordered', 'accepted');
CREATE UNIQUE INDEX disposal_record_done ON disposal_record (num) WHERE state IN ('sanitized', 'attested');

CREATE TABLE disposal_certificate (
    id       TEXT PRIMARY KEY,
    disposal TEXT NOT NULL UNIQUE REFERENCES disposal_record (id),
    tenant   TEXT NOT NULL,
    issued   BIGINT NOT NULL,
    document BYTES NOT NULL -- DSSE envelope
);
