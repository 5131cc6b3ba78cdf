-- +goose Up

-- HMAC-SHA-256 over tenant and certificate with a key of the key store: we have issued it. Empty for older rows,
-- whose chain is verified instead.
ALTER TABLE provisioning_certificate ADD COLUMN seal BYTES NOT NULL DEFAULT '';
