package sqldb_test

import (
	"fmt"
	"maps"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	"steward/internal/sqldb"
	"steward/internal/sqldb/sqldbtest"
)

func migration(files map[string]string) sqldb.Migration {
	m := fstest.MapFS{}
	for name, text := range files {
		m[name] = &fstest.MapFile{Data: []byte("-- +goose Up\n" + text)}
	}
	return sqldb.Migration{Room: "thing", Files: m}
}

func TestMigrationsAppendAndKeepWhatIsThere(t *testing.T) {
	files := map[string]string{"00001_a.sql": "CREATE TABLE thing (num AUTOKEY, body BYTES);"}
	sqldbtest.Each(t, nil, func(t *testing.T, db *sqldb.DB) {
		files := maps.Clone(files)
		for range 2 { // the second time does nothing
			if err := db.Migrate(t.Context(), migration(files)); err != nil {
				t.Fatal(err)
			}
		}
		err := db.Write(t.Context(), func(tx *sqldb.Tx) error {
			_, err := tx.Exec(t.Context(), "INSERT INTO thing (body) VALUES ($1)", []byte("\x00\xff"))
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		files["00002_b.sql"] = "ALTER TABLE thing ADD COLUMN name TEXT NOT NULL DEFAULT 'none';"
		if err := db.Migrate(t.Context(), migration(files)); err != nil {
			t.Fatal(err)
		}
		var num int64
		var body []byte
		var name string
		err = db.QueryRowContext(t.Context(), "SELECT num, body, name FROM thing").Scan(&num, &body, &name)
		if err != nil || num != 1 || string(body) != "\x00\xff" || name != "none" {
			t.Errorf("num %d, body %q, name %q, error %v", num, body, name, err)
		}
	})
}

func TestBrokenMigrationIsNamedAndLeavesTheOldVersion(t *testing.T) {
	sqldbtest.Each(t, nil, func(t *testing.T, db *sqldb.DB) {
		bad := migration(map[string]string{"00001_a.sql": "CREATE TABLE thing (num AUTOKEY);", "00002_b.sql": "CREATE NONSENSE;"})
		if err := db.Migrate(t.Context(), bad); err == nil {
			t.Fatal("no error")
		}
		good := migration(map[string]string{"00001_a.sql": "CREATE TABLE thing (num AUTOKEY);", "00002_b.sql": "CREATE TABLE thing_b (num AUTOKEY);"})
		if err := db.Migrate(t.Context(), good); err != nil {
			t.Error(err)
		}
	})
}

func TestDialectHasItsOwnFileInThePlaceOfTheCommonOne(t *testing.T) {
	m := migration(map[string]string{
		"00001_a.sql":          "CREATE TABLE thing (n BIGINT); INSERT INTO thing VALUES (1);",
		"00001_a.postgres.sql": "CREATE TABLE thing (n BIGINT); INSERT INTO thing VALUES (2);",
	})
	sqldbtest.Each(t, []sqldb.Migration{m}, func(t *testing.T, db *sqldb.DB) {
		want := 1
		if db.Dialect() == sqldb.Postgres {
			want = 2
		}
		var n int
		if err := db.QueryRowContext(t.Context(), "SELECT n FROM thing").Scan(&n); err != nil || n != want {
			t.Errorf("n %d, want %d, error %v", n, want, err)
		}
	})
}

func TestNodesMayMigrateAtTheSameTime(t *testing.T) {
	for _, engine := range []string{sqldbtest.SQLiteEngine, sqldbtest.PostgresEngine} {
		t.Run(engine, func(t *testing.T) {
			url := sqldbtest.URL(t, engine)
			m := migration(map[string]string{"00001_a.sql": "CREATE TABLE thing (num AUTOKEY);", "00002_b.sql": "CREATE TABLE thing_b (num AUTOKEY);"})
			var wg sync.WaitGroup
			for range 4 {
				db := sqldbtest.OpenURL(t, url)
				wg.Go(func() {
					if err := db.Migrate(t.Context(), m); err != nil {
						t.Error(err)
					}
				})
			}
			wg.Wait()
		})
	}
}

func TestBuilderNumbersPlaceholdersInOrder(t *testing.T) {
	q := sqldb.NewQuery("SELECT 1 WHERE a = ?", 1).Add("AND b IN (?, ?)", "x", "y").Add("ORDER BY a")
	if want := "SELECT 1 WHERE a = $1 AND b IN ($2, $3) ORDER BY a"; q.SQL() != want || len(q.Args()) != 3 {
		t.Errorf("%s %v", q.SQL(), q.Args())
	}
	defer func() {
		if recover() == nil {
			t.Error("a missing argument was not noticed")
		}
	}()
	q.Add("AND c = ?")
}

func TestQueriesWithManyPlaceholdersKeepTheirArguments(t *testing.T) {
	each(t, func(t *testing.T, db *sqldb.DB) {
		once := "SELECT '$1 is ''quoted''' || $1"
		again := once
		args := []any{"v1"}
		for i := 2; i <= 30; i++ {
			once += fmt.Sprintf(" || $%d", i)
			again += fmt.Sprintf(" || $%d || $1", i)
			args = append(args, fmt.Sprint("v", i))
		}
		for name, c := range map[string]struct{ query, want string }{
			"each once": {once, "$1 is 'quoted'v1v2v3"}, "one again": {again, "$1 is 'quoted'v1v2v1v3v1"},
		} {
			err := db.Write(t.Context(), func(tx *sqldb.Tx) error {
				var got string
				if err := tx.QueryRowContext(t.Context(), c.query, args...).Scan(&got); err != nil {
					return err
				}
				if !strings.HasPrefix(got, c.want) || !strings.Contains(got, "v30") {
					t.Errorf("%s: %s", name, got)
				}
				return nil
			})
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
	})
}

func TestTimesKeepTheirMicroseconds(t *testing.T) {
	at := time.Date(2026, 2, 3, 4, 5, 6, 789_000, time.FixedZone("x", 3600))
	each(t, func(t *testing.T, db *sqldb.DB) {
		for _, want := range []time.Time{at, {}} {
			var got time.Time
			err := db.QueryRowContext(t.Context(), "SELECT CAST($1 AS BIGINT)", sqldb.Micros(want)).Scan(sqldb.ScanMicros(&got))
			if err != nil || !got.Equal(want) || got.IsZero() != want.IsZero() {
				t.Errorf("%v became %v, error %v", want, got, err)
			}
		}
		got := at
		if err := db.QueryRowContext(t.Context(), "SELECT CAST(NULL AS BIGINT)").Scan(sqldb.ScanMicros(&got)); err != nil || !got.IsZero() {
			t.Errorf("NULL became %v, error %v", got, err)
		}
	})
}
