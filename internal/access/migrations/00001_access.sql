-- +goose Up
-- Owners of devices. Policies are kept by the rooms whose they are.
CREATE TABLE access_tenant (
    id       TEXT PRIMARY KEY,
    name     TEXT NOT NULL,
    created  BIGINT NOT NULL,
    revision BIGINT NOT NULL            -- also the row that changes of its administrators lock
);

-- People and programs. The name is what one signs in with, so it is unique in the installation.
CREATE TABLE access_account (
    id          TEXT PRIMARY KEY,
    tenant      TEXT NOT NULL REFERENCES access_tenant (id),
    name        TEXT NOT NULL UNIQUE,
    email       TEXT NOT NULL,
    role        TEXT NOT NULL,
    selector    TEXT NOT NULL,          -- of the devices it may see; empty: all of the tenant
    program     SMALLINT NOT NULL,      -- 1: has no password, only tokens
    password    TEXT NOT NULL,          -- $argon2id$…; empty for programs
    must_change SMALLINT NOT NULL,
    disabled    SMALLINT NOT NULL,
    created     BIGINT NOT NULL,
    signed_in   BIGINT NOT NULL,        -- last time; 0 means never
    revision    BIGINT NOT NULL
);
CREATE INDEX access_account_tenant ON access_account (tenant, name);

-- Sessions of the console, by the SHA-256 of the cookie.
CREATE TABLE access_session (
    hash    TEXT PRIMARY KEY,
    account TEXT NOT NULL REFERENCES access_account (id) ON DELETE CASCADE,
    tenant  TEXT NOT NULL,              -- in which it acts; the account's own, or any for operators of the installation
    created BIGINT NOT NULL,
    seen    BIGINT NOT NULL,
    expires BIGINT NOT NULL,
    address TEXT NOT NULL,
    agent   TEXT NOT NULL
);
CREATE INDEX access_session_account ON access_session (account);
CREATE INDEX access_session_expires ON access_session (expires);

-- API tokens, by the SHA-256 of the secret.
CREATE TABLE access_token (
    id       TEXT PRIMARY KEY,
    hash     TEXT NOT NULL UNIQUE,
    account  TEXT NOT NULL REFERENCES access_account (id) ON DELETE CASCADE,
    parent   TEXT NOT NULL,             -- the token that it was made with; goes with it
    name     TEXT NOT NULL,
    role     TEXT NOT NULL,
    selector TEXT NOT NULL,
    created  BIGINT NOT NULL,
    expires  BIGINT NOT NULL,
    used     BIGINT NOT NULL            -- last time, exact to the minute; 0 means never
);
CREATE INDEX access_token_account ON access_token (account);
CREATE INDEX access_token_parent ON access_token (parent);
