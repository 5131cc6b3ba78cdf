-- +goose Up

-- Kept stock: how many delivered units of an order line are in which stage. The sum over the shards is
-- the number; on PostgreSQL each connection counts in a shard of its own, so that transactions hardly
-- ever wait for each other's row. The stages are the registry's, which tells this room of each move.
CREATE TABLE purchase_stock (
    tenant       TEXT NOT NULL,
    stage        TEXT NOT NULL,
    order_id     TEXT NOT NULL,
    line         BIGINT NOT NULL,
    model        TEXT NOT NULL,
    delivered    BIGINT NOT NULL,
    warranty_end TEXT NOT NULL,
    shard        BIGINT NOT NULL,
    units        BIGINT NOT NULL,
    PRIMARY KEY (tenant, stage, order_id, line, model, delivered, warranty_end, shard)
);
INSERT INTO purchase_stock (tenant, stage, order_id, line, model, delivered, warranty_end, shard, units)
    SELECT u.tenant, d.stage, u.order_id, u.line, u.model, u.delivered, u.warranty_end, 0, COUNT(*)
    FROM purchase_unit u JOIN registry_device d ON d.num = u.num WHERE u.state = 'received'
    GROUP BY u.tenant, d.stage, u.order_id, u.line, u.model, u.delivered, u.warranty_end;

-- Long work on an order, at most one at a time: placing it, booking a delivery, cancelling what is open.
-- It is done in small transactions, each of which moves done on.
CREATE TABLE purchase_work (
    order_id TEXT PRIMARY KEY REFERENCES purchase_order (id),
    tenant   TEXT NOT NULL,
    kind     TEXT NOT NULL, -- place, book, cancel
    actor    TEXT NOT NULL, -- JSON: who asked for it
    delivery TEXT NOT NULL, -- of book
    line     BIGINT NOT NULL, -- of cancel; 0 for the whole order
    reason   TEXT NOT NULL, -- of cancel
    total    BIGINT NOT NULL,
    done     BIGINT NOT NULL,
    started  BIGINT NOT NULL,
    touched  BIGINT NOT NULL
);
CREATE INDEX purchase_work_touched ON purchase_work (touched);

-- The rows of a delivery that is being booked, in parts; a part goes when its rows are booked.
CREATE TABLE purchase_work_part (
    order_id TEXT NOT NULL REFERENCES purchase_work (order_id),
    part     BIGINT NOT NULL,
    body     TEXT NOT NULL, -- JSON
    PRIMARY KEY (order_id, part)
);

-- How many rows of a delivery are still to be looked at.
ALTER TABLE purchase_delivery ADD COLUMN waiting BIGINT NOT NULL DEFAULT 0;
