-- +goose Up

-- Changes of what many devices run that are under way: giving an assignment to its devices, taking it
-- back, asking for another attempt. Each step takes the next devices in the order of their numbers.
CREATE TABLE update_work (
    assignment BIGINT PRIMARY KEY,
    id         TEXT NOT NULL,   -- of the assignment
    kind       TEXT NOT NULL,   -- assign, cancel, retry
    cause      TEXT NOT NULL,   -- of retry: only those that failed for it
    position   BIGINT NOT NULL, -- number of the last device looked at
    total      BIGINT NOT NULL, -- devices, as counted at the beginning
    done       BIGINT NOT NULL,
    started    BIGINT NOT NULL,
    touched    BIGINT NOT NULL
);
CREATE INDEX update_work_touched ON update_work (touched);

-- Kept counters know now which devices are still asked for the assignment: what devices are asked for of
-- a release, and how far they are, is read and not counted.
CREATE TABLE update_tally (
    assignment  BIGINT NOT NULL,
    state       TEXT NOT NULL,
    current     SMALLINT NOT NULL,
    shard       INTEGER NOT NULL,
    n           BIGINT NOT NULL,
    PRIMARY KEY (assignment, state, current, shard)
);
INSERT INTO update_tally (assignment, state, current, shard, n)
    SELECT assignment, state, current, num % 16, COUNT(*) FROM update_state GROUP BY assignment, state, current, num % 16;
DROP TABLE update_count;

-- What devices are asked for now is listed by assignment, each of which belongs to one tenant, release and
-- version.
CREATE INDEX update_state_asked ON update_state (assignment, state, num) WHERE current = 1;
