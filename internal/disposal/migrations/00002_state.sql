-- +goose Up
-- A list of one state is walked in its order.
DROP INDEX disposal_record_state;
CREATE INDEX disposal_record_state ON disposal_record (tenant, state, created, id);
