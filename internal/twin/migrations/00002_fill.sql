-- +goose Up
SELECT 1; -- of concern to PostgreSQL only
