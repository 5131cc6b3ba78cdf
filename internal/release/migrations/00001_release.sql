-- +goose Up
-- One TUF repository per tenant. The versions and expiries repeat what the metadata says, so that the
-- timer and the status page need not parse it.
CREATE TABLE release_repository (
    tenant             TEXT PRIMARY KEY,
    managed            SMALLINT NOT NULL DEFAULT 0, -- 1: this server also holds root and targets keys
    snapshot_key       TEXT NOT NULL,               -- public keys of the online roles, hex
    timestamp_key      TEXT NOT NULL,
    root_version       BIGINT NOT NULL DEFAULT 0,
    root_expires       BIGINT NOT NULL DEFAULT 0,
    root_threshold     INTEGER NOT NULL DEFAULT 0,
    targets_version    BIGINT NOT NULL DEFAULT 0,
    targets_expires    BIGINT NOT NULL DEFAULT 0,
    targets_threshold  INTEGER NOT NULL DEFAULT 0,
    snapshot_version   BIGINT NOT NULL DEFAULT 0,
    snapshot_expires   BIGINT NOT NULL DEFAULT 0,
    timestamp_version  BIGINT NOT NULL DEFAULT 0,
    timestamp_expires  BIGINT NOT NULL DEFAULT 0,
    created            BIGINT NOT NULL
);
CREATE INDEX release_repository_due ON release_repository (timestamp_expires);

-- Metadata files by the names that devices ask for.
CREATE TABLE release_metadata (
    tenant  TEXT NOT NULL,
    name    TEXT NOT NULL, -- 3.root.json, 12.targets.json, 40.snapshot.json, timestamp.json
    role    TEXT NOT NULL,
    version BIGINT NOT NULL,
    body    BYTES NOT NULL,
    created BIGINT NOT NULL,
    PRIMARY KEY (tenant, name)
);

-- What is in the blob store for a tenant: a device may fetch only its own tenant's.
CREATE TABLE release_artifact (
    tenant       TEXT NOT NULL,
    sha256       TEXT NOT NULL,
    size_bytes   BIGINT NOT NULL,
    created      BIGINT NOT NULL,
    created_by   TEXT NOT NULL,
    PRIMARY KEY (tenant, sha256)
);
CREATE INDEX release_artifact_sha256 ON release_artifact (sha256);

CREATE TABLE release_release (
    num         AUTOKEY,
    tenant      TEXT NOT NULL,
    name        TEXT NOT NULL,
    version     TEXT NOT NULL,
    target      TEXT NOT NULL, -- name among the TUF targets
    sha256      TEXT NOT NULL, -- of the manifest
    manifest    TEXT NOT NULL,
    size_bytes  BIGINT NOT NULL, -- of all artifacts
    created     BIGINT NOT NULL,
    created_by  TEXT NOT NULL,
    UNIQUE (tenant, name, version)
);

-- Which artifacts a release holds on to.
CREATE TABLE release_component (
    release_num BIGINT NOT NULL REFERENCES release_release (num) ON DELETE CASCADE,
    position    INTEGER NOT NULL,
    name        TEXT NOT NULL,
    version     TEXT NOT NULL,
    type        TEXT NOT NULL,
    artifact    TEXT NOT NULL, -- target's name
    sha256      TEXT NOT NULL,
    size_bytes  BIGINT NOT NULL,
    PRIMARY KEY (release_num, position)
);
CREATE INDEX release_component_sha256 ON release_component (sha256);
