-- +goose Up

-- Each report rewrites a row of these in place, as long as its page has room, without touching an index.
ALTER TABLE twin_session SET (fillfactor = 70);
ALTER TABLE twin_reported SET (fillfactor = 80);
ALTER TABLE twin_epoch SET (fillfactor = 80);
