-- +goose Up

-- Devices whose samples up to a time are to be deleted: each node that keeps metrics of its own does so,
-- and remembers how far it has come. Rows stay for as long as metrics are kept.
CREATE TABLE monitoring_forgotten (
    at     BIGINT NOT NULL,
    device TEXT   NOT NULL,
    PRIMARY KEY (at, device)
);
-- What the earlier form had not done yet. Somebody watched last when it was written.
INSERT INTO monitoring_forgotten (at, device) SELECT COALESCE((SELECT MAX(alive) FROM monitoring_watch), 1), device FROM monitoring_forget;
DROP TABLE monitoring_forget;
