-- +goose Up

-- Certificate authorities. tenant '' is the link's own. generation counts the issuing authorities of
-- one root; the highest one signs. The private key is in the key store under the name in "key".
CREATE TABLE provisioning_authority (
    id         TEXT PRIMARY KEY,
    tenant     TEXT NOT NULL,
    kind       TEXT NOT NULL, -- root, issuing
    generation INTEGER NOT NULL,
    key        TEXT NOT NULL,
    body       BYTES NOT NULL, -- DER
    created    BIGINT NOT NULL,
    expires    BIGINT NOT NULL,
    UNIQUE (tenant, kind, generation)
);

-- Trust documents by their hash, for as long as a device may ask for the one its token pins.
CREATE TABLE provisioning_trust (
    hash    TEXT PRIMARY KEY,
    tenant  TEXT NOT NULL,
    body    BYTES NOT NULL,
    created BIGINT NOT NULL
);

-- Enrollment tokens. num 0: for a serial number that was not in stock. The secret itself is nowhere.
CREATE TABLE provisioning_token (
    id          TEXT PRIMARY KEY,
    tenant      TEXT NOT NULL,
    secret_hash BYTES NOT NULL UNIQUE, -- SHA-256
    serial      TEXT NOT NULL,
    num         BIGINT NOT NULL,
    device      TEXT NOT NULL,
    pin         TEXT NOT NULL,
    note        TEXT NOT NULL,
    created     BIGINT NOT NULL,
    created_by  TEXT NOT NULL,
    expires     BIGINT NOT NULL,
    used        BIGINT NOT NULL DEFAULT 0,
    used_key    TEXT NOT NULL DEFAULT '', -- key ID that used it
    certificate TEXT NOT NULL DEFAULT '', -- serial number of what it gave
    revoked     BIGINT NOT NULL DEFAULT 0,
    reused      BIGINT NOT NULL DEFAULT 0 -- last time that another key tried it
);
CREATE INDEX provisioning_token_page ON provisioning_token (tenant, created, id);
CREATE INDEX provisioning_token_serial ON provisioning_token (tenant, serial);
CREATE INDEX provisioning_token_num ON provisioning_token (num);
CREATE INDEX provisioning_token_reused ON provisioning_token (tenant, reused) WHERE reused > 0;

-- Every device certificate that was ever issued. Times are 0 until they come.
CREATE TABLE provisioning_certificate (
    serial        TEXT PRIMARY KEY, -- lower case hex
    tenant        TEXT NOT NULL,
    num           BIGINT NOT NULL,
    device        TEXT NOT NULL,
    authority     TEXT NOT NULL,
    key_id        TEXT NOT NULL, -- SHA-256 of the public key
    key_kind      TEXT NOT NULL,
    body          BYTES NOT NULL, -- DER
    issued        BIGINT NOT NULL,
    expires       BIGINT NOT NULL,
    renewal_late  BIGINT NOT NULL, -- after three quarters of its life the agent should have renewed it
    address       TEXT NOT NULL,   -- from where it was asked for
    first_used    BIGINT NOT NULL DEFAULT 0,
    superseded    BIGINT NOT NULL DEFAULT 0,
    revoked       BIGINT NOT NULL DEFAULT 0,
    reason        TEXT NOT NULL DEFAULT ''
);
CREATE INDEX provisioning_certificate_num ON provisioning_certificate (num, issued);
CREATE INDEX provisioning_certificate_key ON provisioning_certificate (key_id);
CREATE INDEX provisioning_certificate_late ON provisioning_certificate (tenant, renewal_late) WHERE superseded = 0 AND revoked = 0;
CREATE INDEX provisioning_certificate_expires ON provisioning_certificate (tenant, expires, serial) WHERE superseded = 0 AND revoked = 0;
CREATE INDEX provisioning_certificate_void ON provisioning_certificate (authority, expires) WHERE superseded > 0 OR revoked > 0;
CREATE INDEX provisioning_certificate_issued ON provisioning_certificate (tenant, issued);

-- The revocation list of each issuing authority. changes counts what should be on it, signed how much
-- of that the stored body holds.
CREATE TABLE provisioning_crl (
    authority   TEXT PRIMARY KEY,
    tenant      TEXT NOT NULL,
    changes     BIGINT NOT NULL,
    signed      BIGINT NOT NULL,
    number      BIGINT NOT NULL,
    next_update BIGINT NOT NULL,
    body        BYTES
);

CREATE TABLE provisioning_policy (
    tenant      TEXT PRIMARY KEY,
    unpurchased TEXT NOT NULL,
    revision    BIGINT NOT NULL,
    changed     BIGINT NOT NULL,
    changed_by  TEXT NOT NULL
);

-- Devices that came by enrolling, without a purchase.
CREATE TABLE provisioning_unpurchased (
    num      BIGINT PRIMARY KEY,
    tenant   TEXT NOT NULL,
    enrolled BIGINT NOT NULL
);

-- Identities that two machines were seen to use. The row stays when an operator clears it.
CREATE TABLE provisioning_clone (
    num       BIGINT PRIMARY KEY,
    tenant    TEXT NOT NULL,
    device    TEXT NOT NULL,
    instances TEXT NOT NULL, -- JSON array of the machines' instance IDs
    since     BIGINT NOT NULL,
    last      BIGINT NOT NULL,
    cleared   BIGINT NOT NULL DEFAULT 0
);
CREATE INDEX provisioning_clone_open ON provisioning_clone (tenant) WHERE cleared = 0;
