-- +goose Up
-- The room is the first part of the kind. Computed, so that it can't say anything else than the kind.
ALTER TABLE ledger_event ADD COLUMN room TEXT GENERATED ALWAYS AS (split_part(kind, '.', 1)) STORED;
CREATE INDEX ledger_event_room ON ledger_event (tenant, room, sequence) WHERE sequence IS NOT NULL;
