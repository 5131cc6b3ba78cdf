package move

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// table is one table of the source, without generated columns.
type table struct {
	name    string
	columns []string
	key     []string // of the primary key
	parents []string // that its foreign keys name
	kinds   []kind   // of the target's columns, in the order of columns
	counts  string   // the column that counts by itself; "" for none
}

// list is columns in double quotes, each with a prefix like "m.".
func list(prefix string, columns []string) string {
	out := make([]string, len(columns))
	for i, c := range columns {
		out[i] = prefix + quote(c)
	}
	return strings.Join(out, ", ")
}

// quote makes an identifier of both dialects.
func quote(name string) string { return `"` + strings.ReplaceAll(name, `"`, `""`) + `"` }

var uriPath = strings.NewReplacer("%", "%25", "?", "%3f", "#", "%23")

// openSnapshot opens the snapshot, which nobody changes.
func openSnapshot(path string) (*sql.DB, error) {
	return sql.Open("sqlite", "file:"+uriPath.Replace(path)+"?mode=ro&immutable=1")
}

// readTables lists the tables of rooms, parents before children. Tables of migrations aren't among them: the
// target gets its own.
func readTables(ctx context.Context, db *sql.DB) ([]table, error) {
	names, err := strs(ctx, db, `SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite\_%' ESCAPE '\'
		AND name NOT LIKE '%\_migration' ESCAPE '\' ORDER BY name`)
	if err != nil {
		return nil, fmt.Errorf("list the source's tables: %w", err)
	}
	var out []table
	for _, name := range names {
		t, err := readTable(ctx, db, name)
		if err != nil {
			return nil, fmt.Errorf("describe the source's table %s: %w", name, err)
		}
		out = append(out, t)
	}
	return sorted(out)
}

func readTable(ctx context.Context, db *sql.DB, name string) (t table, err error) {
	t.name = name
	// table_info leaves generated columns out (https://www.sqlite.org/pragma.html#pragma_table_info).
	if t.columns, err = strs(ctx, db, "SELECT name FROM pragma_table_info($1) ORDER BY cid", name); err != nil {
		return t, err
	}
	if t.key, err = strs(ctx, db, "SELECT name FROM pragma_table_info($1) WHERE pk > 0 ORDER BY pk", name); err != nil {
		return t, err
	}
	if len(t.key) == 0 {
		return t, errors.New("it has no primary key")
	}
	t.parents, err = strs(ctx, db, `SELECT DISTINCT "table" FROM pragma_foreign_key_list($1)`, name)
	return t, err
}

// sorted puts parents before children.
func sorted(tables []table) ([]table, error) {
	var out []table
	placed := map[string]bool{}
	for len(out) < len(tables) {
		before := len(out)
		for _, t := range tables {
			ready := !slices.ContainsFunc(t.parents, func(p string) bool { return p != t.name && !placed[p] })
			if ready && !placed[t.name] {
				placed[t.name] = true
				out = append(out, t)
			}
		}
		if len(out) == before {
			return nil, errors.New("the source's tables refer to each other in a circle")
		}
	}
	return out, nil
}

func strs(ctx context.Context, db *sql.DB, query string, args ...any) (out []string, err error) {
	rows, err := db.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close() //nolint:errcheck // rows.Err tells
	for rows.Next() {
		var s string
		if err := rows.Scan(&s); err != nil {
			return nil, err
		}
		out = append(out, s)
	}
	return out, rows.Err()
}

// live is the source with the server stopped, under SQLite's own write lock, and the snapshot beside it.
type live struct {
	db   *sql.DB
	conn *sql.Conn
}

func openLive(ctx context.Context, path, snapshot string) (*live, error) {
	db, err := sql.Open("sqlite", "file:"+uriPath.Replace(path)+"?mode=rw&_pragma=busy_timeout(1000)")
	if err != nil {
		return nil, err
	}
	l := &live{db: db}
	if l.conn, err = db.Conn(ctx); err == nil {
		_, err = l.conn.ExecContext(ctx, "ATTACH $1 AS snap", "file:"+uriPath.Replace(snapshot)+"?mode=ro&immutable=1")
	}
	if err == nil {
		// Whoever else has the file open, a shell for example, can't write until the end.
		_, err = l.conn.ExecContext(ctx, "BEGIN IMMEDIATE")
	}
	if err != nil {
		l.close()
		return nil, fmt.Errorf("open the source: %w", err)
	}
	return l, nil
}

func (l *live) close() {
	if l.conn != nil {
		_, _ = l.conn.ExecContext(context.Background(), "ROLLBACK")
		_ = l.conn.Close()
	}
	_ = l.db.Close()
}

// highest is the highest number that an AUTOINCREMENT table has ever given, of deleted rows too.
func (l *live) highest(ctx context.Context, table string) (n int64, err error) {
	err = l.conn.QueryRowContext(ctx, "SELECT COALESCE(MAX(seq), 0) FROM main.sqlite_sequence WHERE name = $1", table).Scan(&n)
	return n, err
}

// sealed tells whether the source holds keys.
func (l *live) sealed(ctx context.Context) (bool, error) {
	var n int
	if err := l.conn.QueryRowContext(ctx, "SELECT COUNT(*) FROM main.keys_master").Scan(&n); err != nil {
		return false, fmt.Errorf("look for keys in the source: %w", err)
	}
	return n > 0, nil
}
