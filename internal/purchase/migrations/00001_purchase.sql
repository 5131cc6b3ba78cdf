-- +goose Up
CREATE TABLE purchase_supplier (
    tenant   TEXT NOT NULL,
    id       TEXT NOT NULL,
    name     TEXT NOT NULL,
    contact  TEXT NOT NULL,
    email    TEXT NOT NULL,
    website  TEXT NOT NULL,
    note     TEXT NOT NULL,
    created  BIGINT NOT NULL,
    revision BIGINT NOT NULL,
    PRIMARY KEY (tenant, id)
);

CREATE TABLE purchase_model (
    tenant          TEXT NOT NULL,
    id              TEXT NOT NULL,
    maker           TEXT NOT NULL,
    name            TEXT NOT NULL,
    part_number     TEXT NOT NULL,
    architecture    TEXT NOT NULL,
    interfaces      TEXT NOT NULL, -- JSON array
    tpm             TEXT NOT NULL,
    secure_boot     SMALLINT NOT NULL,
    support_end     TEXT NOT NULL, -- YYYY-MM-DD or empty
    warranty_months BIGINT NOT NULL,
    note            TEXT NOT NULL,
    created         BIGINT NOT NULL,
    revision        BIGINT NOT NULL,
    PRIMARY KEY (tenant, id)
);
CREATE UNIQUE INDEX purchase_model_part ON purchase_model (tenant, part_number) WHERE part_number <> '';

CREATE TABLE purchase_order (
    id       TEXT PRIMARY KEY,
    tenant   TEXT NOT NULL,
    number   TEXT NOT NULL,
    supplier TEXT NOT NULL,
    currency TEXT NOT NULL,
    due      TEXT NOT NULL, -- YYYY-MM-DD or empty
    note     TEXT NOT NULL,
    state    TEXT NOT NULL,
    created  BIGINT NOT NULL,
    placed   BIGINT NOT NULL,
    ended    BIGINT NOT NULL,
    revision BIGINT NOT NULL
);
CREATE UNIQUE INDEX purchase_order_number ON purchase_order (tenant, number);
CREATE INDEX purchase_order_created ON purchase_order (tenant, created, id);
CREATE INDEX purchase_order_supplier ON purchase_order (tenant, supplier);

CREATE TABLE purchase_line (
    order_id   TEXT NOT NULL REFERENCES purchase_order (id),
    line       BIGINT NOT NULL,
    model      TEXT NOT NULL,
    quantity   BIGINT NOT NULL,
    unit_price BIGINT NOT NULL,
    note       TEXT NOT NULL,
    extra      BIGINT NOT NULL,
    received   BIGINT NOT NULL,
    cancelled  BIGINT NOT NULL,
    PRIMARY KEY (order_id, line)
);
CREATE INDEX purchase_line_model ON purchase_line (model);

-- One row per device that was ordered; num is the device's number.
CREATE TABLE purchase_unit (
    num          BIGINT PRIMARY KEY,
    tenant       TEXT NOT NULL,
    order_id     TEXT NOT NULL,
    line         BIGINT NOT NULL,
    model        TEXT NOT NULL,
    state        TEXT NOT NULL, -- open, received, cancelled
    delivery_id  TEXT NOT NULL,
    serial       TEXT NOT NULL,
    mac          TEXT NOT NULL,
    delivered    BIGINT NOT NULL,
    warranty_end TEXT NOT NULL  -- YYYY-MM-DD or empty
);
CREATE INDEX purchase_unit_line ON purchase_unit (order_id, line, state, num);
CREATE INDEX purchase_unit_serial ON purchase_unit (tenant, serial) WHERE serial <> '';
CREATE INDEX purchase_unit_warranty ON purchase_unit (tenant, warranty_end) WHERE warranty_end <> '';

CREATE TABLE purchase_delivery (
    id            TEXT PRIMARY KEY,
    tenant        TEXT NOT NULL,
    order_id      TEXT NOT NULL,
    sha256        TEXT NOT NULL,
    note          TEXT NOT NULL,
    row_count     BIGINT NOT NULL,
    booked        BIGINT NOT NULL,
    discrepancies BIGINT NOT NULL,
    created       BIGINT NOT NULL,
    actor         TEXT NOT NULL  -- JSON
);
CREATE UNIQUE INDEX purchase_delivery_file ON purchase_delivery (order_id, sha256);

CREATE TABLE purchase_discrepancy (
    delivery_id   TEXT NOT NULL REFERENCES purchase_delivery (id),
    file_line     BIGINT NOT NULL,
    tenant        TEXT NOT NULL,
    order_id      TEXT NOT NULL,
    kind          TEXT NOT NULL,
    serial        TEXT NOT NULL,
    model         TEXT NOT NULL, -- as the file names it
    line          BIGINT NOT NULL,
    mac           TEXT NOT NULL,
    note          TEXT NOT NULL,
    detail        TEXT NOT NULL,
    decision      TEXT NOT NULL, -- empty while open
    decided       BIGINT NOT NULL,
    actor         TEXT NOT NULL, -- JSON, empty while open
    decision_note TEXT NOT NULL,
    decision_line BIGINT NOT NULL,
    PRIMARY KEY (delivery_id, file_line)
);
CREATE INDEX purchase_discrepancy_open ON purchase_discrepancy (tenant, order_id) WHERE decision = '';
