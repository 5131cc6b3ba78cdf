-- +goose Up

-- Steward's own private keys and secrets, each sealed with AES-256-GCM under the master key, which is
-- nowhere in the database.
CREATE TABLE keys_key (
    name    TEXT PRIMARY KEY,
    sealed  BYTES NOT NULL, -- format, nonce, ciphertext and tag
    created BIGINT NOT NULL
);

-- One row: a known text sealed under the same master key, so that another one is noticed at once.
CREATE TABLE keys_master (
    one    INTEGER PRIMARY KEY CHECK (one = 1),
    sealed BYTES NOT NULL
);
