-- +goose Up

-- Documents of both directions, each stored once. touched is when somebody last began to use it, within
-- half a day; what nobody uses a day after that is swept.
CREATE TABLE twin_document (
    document AUTOKEY,
    hash     TEXT NOT NULL UNIQUE,
    size     BIGINT NOT NULL,
    touched  BIGINT NOT NULL,
    body     BYTES NOT NULL   -- last, so that the other columns are read without it
);

-- What a device should be. Rows name documents by number, not by hash, since there are sections times
-- devices of them and a rollout rewrites many.
CREATE TABLE twin_desired (
    num      BIGINT NOT NULL,
    section  TEXT NOT NULL,
    document BIGINT NOT NULL,
    since    BIGINT NOT NULL,
    PRIMARY KEY (num, section)
);

-- Grows with each change of a device's desired state.
CREATE TABLE twin_epoch (
    num   BIGINT PRIMARY KEY,
    epoch BIGINT NOT NULL,
    since BIGINT NOT NULL
);

-- What a device says that it is. problem is why the server could not use the document.
CREATE TABLE twin_reported (
    num      BIGINT NOT NULL,
    section  TEXT NOT NULL,
    document BIGINT NOT NULL,
    at       BIGINT NOT NULL,
    problem  TEXT NOT NULL,
    PRIMARY KEY (num, section)
);

-- Documents that a device has named and the server does not know yet: only these may be uploaded.
CREATE TABLE twin_pending (
    num     BIGINT NOT NULL,
    section TEXT NOT NULL,
    hash    TEXT NOT NULL,
    at      BIGINT NOT NULL,
    PRIMARY KEY (num, section)
);

-- Who has reported for a device: tells replays and clones.
CREATE TABLE twin_session (
    num      BIGINT PRIMARY KEY,
    instance TEXT NOT NULL,
    boot     TEXT NOT NULL,
    sequence BIGINT NOT NULL,   -- of the last report that changed something
    past     TEXT NOT NULL,     -- boots before this one, newest first
    strange  BIGINT NOT NULL,   -- contacts that speak for a second device with the same identity
    cloned   BIGINT NOT NULL,   -- when Config.Clone was last told; 0 when never
    accepted BIGINT NOT NULL,   -- epoch that the device has last accepted
    accepted_at BIGINT NOT NULL,
    reported_at BIGINT NOT NULL -- of the last report that changed something
);
