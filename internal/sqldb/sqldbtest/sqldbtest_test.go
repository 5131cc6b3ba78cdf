package sqldbtest_test

import (
	"os"
	"testing"
	"testing/fstest"

	"steward/internal/sqldb"
	"steward/internal/sqldb/sqldbtest"
)

func TestMain(m *testing.M) { os.Exit(sqldbtest.Main(m)) }

var things = sqldb.Migration{Room: "thing", Files: fstest.MapFS{
	"00001_thing.sql": {Data: []byte("-- +goose Up\nCREATE TABLE thing (num AUTOKEY, name TEXT NOT NULL UNIQUE, body BYTES);")},
}}

func TestEachTestHasItsOwnMigratedDatabase(t *testing.T) {
	for range 2 {
		sqldbtest.Each(t, []sqldb.Migration{things}, func(t *testing.T, db *sqldb.DB) {
			err := db.Write(t.Context(), func(tx *sqldb.Tx) error {
				_, err := tx.Exec(t.Context(), "INSERT INTO thing (name, body) VALUES ($1, $2)", "one", []byte{0, 255})
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			var num int64
			if err := db.QueryRowContext(t.Context(), "SELECT num FROM thing WHERE name = $1", "one").Scan(&num); err != nil || num != 1 {
				t.Fatalf("num %d, error %v: want the first row of an empty table", num, err)
			}
		})
	}
}

func TestEnginesAreWhatTheirNamesSay(t *testing.T) {
	if d := sqldbtest.SQLite(t).Dialect(); d != sqldb.SQLite {
		t.Errorf("SQLite gave %v", d)
	}
	if d := sqldbtest.Open(t, sqldbtest.PostgresEngine).Dialect(); d != sqldb.Postgres {
		t.Errorf("postgres gave %v", d)
	}
}
