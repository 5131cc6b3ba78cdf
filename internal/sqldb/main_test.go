package sqldb_test

import (
	"context"
	"fmt"
	"os"
	"testing"
	"testing/fstest"

	"steward/internal/sqldb"
	"steward/internal/sqldb/sqldbtest"
)

// childEnv names the database to which this test binary writes as the child of the durability test.
const childEnv = "SQLDB_TEST_CHILD"

func TestMain(m *testing.M) {
	if url := os.Getenv(childEnv); url != "" {
		os.Exit(writeUntilKilled(url))
	}
	os.Exit(sqldbtest.Main(m))
}

var items = sqldb.Migration{Room: "item", Files: fstest.MapFS{
	"00001_item.sql": {Data: []byte(`-- +goose Up
CREATE TABLE item (num AUTOKEY, name TEXT NOT NULL UNIQUE, n BIGINT NOT NULL DEFAULT 0, body BYTES);`)},
}}

func each(t *testing.T, test func(t *testing.T, db *sqldb.DB)) {
	t.Helper()
	sqldbtest.Each(t, []sqldb.Migration{items}, test)
}

func insert(ctx context.Context, db *sqldb.DB, name string) error {
	return db.Write(ctx, func(tx *sqldb.Tx) error { return insertIn(ctx, tx, name) })
}

func insertIn(ctx context.Context, tx *sqldb.Tx, name string) error {
	_, err := tx.Exec(ctx, "INSERT INTO item (name) VALUES ($1)", name)
	return err
}

func count(t testing.TB, q sqldb.Reader) (n int) {
	t.Helper()
	if err := q.QueryRowContext(context.Background(), "SELECT COUNT(*) FROM item").Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

func has(t testing.TB, q sqldb.Reader, name string) bool {
	t.Helper()
	var n int
	err := q.QueryRowContext(context.Background(), "SELECT COUNT(*) FROM item WHERE name = $1", name).Scan(&n)
	if err != nil {
		t.Fatal(err)
	}
	return n == 1
}

// writeUntilKilled inserts rows from several goroutines and prints each name once Write has said that
// it is durable.
func writeUntilKilled(url string) int {
	db, err := sqldb.Open(context.Background(), url)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	for w := range 4 {
		go func() {
			for i := 0; ; i++ {
				// With the process in the name: what a killed child has sent may still be committed while
				// the next one runs.
				name := fmt.Sprintf("%d-%d-%d", os.Getpid(), w, i)
				if err := insert(context.Background(), db, name); err != nil {
					fmt.Fprintln(os.Stderr, err)
					os.Exit(1)
				}
				fmt.Println(name) // one write call: lines stay whole
			}
		}()
	}
	select {}
}
