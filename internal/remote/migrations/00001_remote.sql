-- +goose Up

-- What devices are asked to do once, now. state: 0 waiting, 1 delivered, 2 done, 3 failed, 4 refused,
-- 5 expired, 6 cancelled; below 2 is open.
CREATE TABLE remote_command (
    id            TEXT     NOT NULL PRIMARY KEY,
    num           BIGINT   NOT NULL, -- the device
    tenant        TEXT     NOT NULL,
    device        TEXT     NOT NULL, -- its public ID
    batch         TEXT     NOT NULL DEFAULT '',
    name          TEXT     NOT NULL,
    params        TEXT     NOT NULL DEFAULT '', -- a JSON value, or empty
    actor_kind    TEXT     NOT NULL,
    actor_id      TEXT     NOT NULL,
    actor_name    TEXT     NOT NULL,
    issued        BIGINT   NOT NULL,
    deadline      BIGINT   NOT NULL,
    state         SMALLINT NOT NULL,
    delivered     BIGINT   NOT NULL DEFAULT 0,
    finished      BIGINT   NOT NULL DEFAULT 0,
    late          SMALLINT NOT NULL DEFAULT 0, -- 1: the result came after the command had ended without one
    device_time   BIGINT   NOT NULL DEFAULT 0, -- the device's clock when it was done
    cause         TEXT     NOT NULL DEFAULT '',
    output        TEXT     NOT NULL DEFAULT '', -- a JSON value, or empty
    output_sha256 TEXT     NOT NULL DEFAULT ''
);
-- What waits for a device, and what is past its deadline: only open commands, so these stay small.
CREATE INDEX remote_command_open ON remote_command (num, issued, id) WHERE state < 2;
CREATE INDEX remote_command_due ON remote_command (deadline) WHERE state < 2;
-- Lists, newest first: of a tenant, in one state, of a device, of a batch.
CREATE INDEX remote_command_tenant ON remote_command (tenant, issued, id);
CREATE INDEX remote_command_state ON remote_command (tenant, state, issued, id);
CREATE INDEX remote_command_device ON remote_command (num, issued, id);
CREATE INDEX remote_command_batch ON remote_command (batch, state, issued, id) WHERE batch <> '';
-- What is old enough to be forgotten.
CREATE INDEX remote_command_old ON remote_command (finished) WHERE state >= 2;

-- Commands that were given to a selection of devices in one go.
CREATE TABLE remote_batch (
    id         TEXT    NOT NULL PRIMARY KEY,
    tenant     TEXT    NOT NULL,
    selector   TEXT    NOT NULL, -- as it was given; the giver's own scope narrowed it further
    name       TEXT    NOT NULL,
    devices    INTEGER NOT NULL,
    actor_kind TEXT    NOT NULL,
    actor_id   TEXT    NOT NULL,
    actor_name TEXT    NOT NULL,
    issued     BIGINT  NOT NULL,
    deadline   BIGINT  NOT NULL
);
CREATE INDEX remote_batch_issued ON remote_batch (issued);
