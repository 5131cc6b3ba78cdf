-- +goose Up
-- One row per Idempotency-Key that is being worked on or was answered; see idempotency.go.
CREATE TABLE httpapi_idempotency (
    key         TEXT PRIMARY KEY,   -- SHA-256 of principal and key: the key itself opens the answer
    principal   TEXT NOT NULL,
    fingerprint TEXT NOT NULL,      -- SHA-256 of the request
    state       SMALLINT NOT NULL,  -- 0 running, 1 answered
    lease       BIGINT NOT NULL,    -- microseconds; a row still running after it belongs to a dead server
    expires     BIGINT NOT NULL,    -- microseconds
    answer      BYTES               -- encrypted
);
CREATE INDEX httpapi_idempotency_expires ON httpapi_idempotency (expires);
CREATE INDEX httpapi_idempotency_principal ON httpapi_idempotency (principal);
