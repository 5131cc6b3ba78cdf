package backup

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"steward/internal/server"
)

// facts are what an archive says about the database in it.
type facts struct {
	at         time.Time
	schema     map[string]int64
	devices    int64
	events     int64
	checkpoint string
	blobs      []string // that it names
}

// readFacts reads them from a snapshot, and has SQLite look through the whole of it: a database that is
// broken should be known before an older backup is thrown away.
func readFacts(ctx context.Context, path string) (f facts, err error) {
	db, err := sql.Open("sqlite", "file:"+uriPath.Replace(path)+"?mode=ro")
	if err != nil {
		return f, err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	var verdict string
	if err := db.QueryRowContext(ctx, "PRAGMA quick_check(1)").Scan(&verdict); err != nil {
		return f, fmt.Errorf("check the database: %w", err)
	}
	if verdict != "ok" {
		return f, fmt.Errorf("the database is broken: %s", verdict)
	}
	if f.schema, err = schemaOf(ctx, db); err != nil {
		return f, err
	}
	if err := db.QueryRowContext(ctx, "SELECT COUNT(*) FROM registry_device").Scan(&f.devices); err != nil {
		return f, fmt.Errorf("count devices: %w", err)
	}
	if err := db.QueryRowContext(ctx, "SELECT size, checkpoint FROM ledger_head").Scan(&f.events, &f.checkpoint); err != nil {
		return f, fmt.Errorf("read the ledger's head: %w", err)
	}
	rows, err := db.QueryContext(ctx, "SELECT sha256 FROM release_artifact UNION SELECT sha256 FROM release_release")
	if err != nil {
		return f, fmt.Errorf("list artifacts: %w", err)
	}
	defer rows.Close() //nolint:errcheck // rows.Err tells
	for rows.Next() {
		var hash string
		if err := rows.Scan(&hash); err != nil {
			return f, err
		}
		f.blobs = append(f.blobs, hash)
	}
	return f, rows.Err()
}

// schemaOf reads which migration each room's tables are at. A room that has none in this database is left out.
func schemaOf(ctx context.Context, db *sql.DB) (map[string]int64, error) {
	out := map[string]int64{}
	for _, m := range server.Migrations() {
		table := m.Room + "_migration"
		var there int
		if err := db.QueryRowContext(ctx, "SELECT COUNT(*) FROM sqlite_master WHERE type = 'table' AND name = $1", table).Scan(&there); err != nil {
			return nil, fmt.Errorf("look for the tables of %s: %w", m.Room, err)
		}
		if there == 0 {
			continue
		}
		var version int64
		if err := db.QueryRowContext(ctx, "SELECT COALESCE(MAX(version_id), 0) FROM "+table+" WHERE is_applied").Scan(&version); err != nil {
			return nil, fmt.Errorf("read the schema of %s: %w", m.Room, err)
		}
		out[m.Room] = version
	}
	return out, nil
}
