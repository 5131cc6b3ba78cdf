-- +goose Up

-- Which node holds connections of a device. Written in batches; a row of a node that is no longer there
-- says nothing. n is how many are open; a closed one is kept for how it ended.
CREATE TABLE monitoring_link (
    num     BIGINT  NOT NULL,
    node    TEXT    NOT NULL,
    tenant  TEXT    NOT NULL,
    via     TEXT    NOT NULL, -- of the last connection: mqtt/5+ws
    address TEXT    NOT NULL,
    since   BIGINT  NOT NULL, -- since when there is one without a hole
    n       INTEGER NOT NULL,
    ended   BIGINT  NOT NULL, -- 0 while one is open
    why     TEXT    NOT NULL,
    PRIMARY KEY (num, node)
);
CREATE INDEX monitoring_link_open ON monitoring_link (node, num) WHERE n > 0;
CREATE INDEX monitoring_link_tenant ON monitoring_link (tenant, node) WHERE n > 0;
CREATE INDEX monitoring_link_ended ON monitoring_link (ended) WHERE n = 0;

-- Silence before it is not the device's own: its node was gone.
ALTER TABLE monitoring_seen ADD COLUMN excused BIGINT NOT NULL DEFAULT 0;

-- Which node has watched last: silence while none did says nothing.
ALTER TABLE monitoring_watch ADD COLUMN node TEXT NOT NULL DEFAULT '';

-- What devices say that has happened on them. nr counts per device, so that the newest are kept by a range.
CREATE TABLE monitoring_event (
    num         BIGINT   NOT NULL,
    nr          BIGINT   NOT NULL,
    tenant      TEXT     NOT NULL,
    device      TEXT     NOT NULL, -- its public ID
    at          BIGINT   NOT NULL, -- when it arrived
    name        TEXT     NOT NULL,
    severity    SMALLINT NOT NULL, -- 0 info, 1 warning, 2 error
    text        TEXT     NOT NULL,
    data        TEXT     NOT NULL, -- a JSON value, or empty
    device_time BIGINT   NOT NULL, -- 0: it gave none
    digest      TEXT     NOT NULL, -- of an event with a time: sent again, it is the same event
    PRIMARY KEY (num, nr)
);
CREATE UNIQUE INDEX monitoring_event_digest ON monitoring_event (num, digest) WHERE digest <> '';
-- Newest first, of the fleet: all, from warning on, errors.
CREATE INDEX monitoring_event_at ON monitoring_event (tenant, at, num, nr);
CREATE INDEX monitoring_event_warning ON monitoring_event (tenant, at, num, nr) WHERE severity > 0;
CREATE INDEX monitoring_event_error ON monitoring_event (tenant, at, num, nr) WHERE severity > 1;
