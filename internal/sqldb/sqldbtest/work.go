package sqldbtest

import (
	"context"
	"database/sql"
	"sync"
	"testing"

	"modernc.org/sqlite"

	"steward/internal/sqldb"
)

// Work is what reading something costs a database, counted instead of timed.
type Work struct {
	Queries int
	Pages   int64 // of 4 KiB that SQLite looks at, from its cache or not
}

// Count runs fn and counts its queries, then runs each of them alone on a connection of its own to count
// the pages that it looks at. It is for reads on SQLite; fn must use the context that it is given.
func Count(t testing.TB, db *sqldb.DB, fn func(ctx context.Context) error) (w Work) {
	t.Helper()
	type call struct {
		query string
		args  []any
	}
	var mu sync.Mutex
	var calls []call
	ctx := sqldb.Trace(t.Context(), func(query string, args []any) {
		mu.Lock()
		defer mu.Unlock()
		calls = append(calls, call{query, args})
	})
	if err := fn(ctx); err != nil {
		t.Fatal(err)
	}
	var file string
	if err := db.QueryRowContext(t.Context(), "SELECT file FROM pragma_database_list WHERE name = 'main'").Scan(&file); err != nil {
		t.Fatalf("count work: %v", err)
	}
	pool, err := sql.Open("sqlite", "file:"+file+"?_pragma=query_only(ON)&_pragma=temp_store(MEMORY)")
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close() //nolint:errcheck // nothing was written
	pool.SetMaxOpenConns(1)
	w.Queries = len(calls)
	for _, c := range calls {
		before := pages(t, pool)
		rows, err := pool.QueryContext(t.Context(), c.query, c.args...)
		if err != nil {
			t.Fatalf("%s: %v", c.query, err)
		}
		for rows.Next() { //nolint:revive // only the reading counts
		}
		if err := rows.Close(); err != nil {
			t.Fatal(err)
		}
		w.Pages += pages(t, pool) - before
	}
	return w
}

// pages is how many pages the connection has looked at so far.
func pages(t testing.TB, pool *sql.DB) (n int64) {
	t.Helper()
	conn, err := pool.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close() //nolint:errcheck // goes back to the pool
	err = conn.Raw(func(driverConn any) error {
		for _, op := range []sqlite.DBStatusOp{sqlite.DBStatusCacheHit, sqlite.DBStatusCacheMiss} {
			some, _, err := driverConn.(sqlite.DBStatus).Status(op, false)
			if err != nil {
				return err
			}
			n += int64(some)
		}
		return nil
	})
	if err != nil {
		t.Fatalf("count pages: %v", err)
	}
	return n
}
