// Package sqldbtest gives tests a database on both engines: SQLite in the test's directory and a real
// PostgreSQL, which is started once per test binary from the machine's own installation. Each test has
// a database of its own, already migrated.
package sqldbtest

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"testing"

	"steward/internal/sqldb"
)

// Engines are the names under which Each runs its subtests.
const (
	SQLiteEngine   = "sqlite"
	PostgresEngine = "postgres"
)

// Each runs test twice, as the subtests "sqlite" and "postgres", each with an empty migrated database.
//
// PostgreSQL is the server that STEWARD_TEST_POSTGRES names by URL (its user may create databases),
// else one started from Debian's package postgresql. Where there is none, the subtest is skipped, and
// fails when CI=true.
func Each(t *testing.T, migrations []sqldb.Migration, test func(t *testing.T, db *sqldb.DB)) {
	t.Helper()
	for _, engine := range []string{SQLiteEngine, PostgresEngine} {
		t.Run(engine, func(t *testing.T) { test(t, Open(t, engine, migrations...)) })
	}
}

// SQLite returns a migrated SQLite database that is closed when the test ends.
func SQLite(t testing.TB, migrations ...sqldb.Migration) *sqldb.DB {
	t.Helper()
	return Open(t, SQLiteEngine, migrations...)
}

// Open returns a migrated database on the named engine, closed (and on PostgreSQL dropped) when the
// test ends.
func Open(t testing.TB, engine string, migrations ...sqldb.Migration) *sqldb.DB {
	t.Helper()
	return OpenURL(t, URL(t, engine, migrations...))
}

// URL returns where a fresh migrated database is, for tests that open it themselves or several times.
func URL(t testing.TB, engine string, migrations ...sqldb.Migration) string {
	t.Helper()
	switch engine {
	case SQLiteEngine:
		return sqliteURL(t, migrations)
	case PostgresEngine:
		return postgresURL(t, migrations)
	}
	t.Fatalf("engine %q: want %s or %s", engine, SQLiteEngine, PostgresEngine)
	return ""
}

// OpenURL opens a database and closes it when the test ends.
func OpenURL(t testing.TB, url string) *sqldb.DB {
	t.Helper()
	db, err := sqldb.Open(context.Background(), url)
	if err != nil {
		t.Fatalf("open test database: %v", err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Errorf("close test database: %v", err)
		}
	})
	return db
}

func migrate(ctx context.Context, url string, migrations []sqldb.Migration) error {
	if len(migrations) == 0 {
		return nil
	}
	db, err := sqldb.Open(ctx, url)
	if err != nil {
		return err
	}
	for _, m := range migrations {
		if err := db.Migrate(ctx, m); err != nil {
			_ = db.Close()
			return err
		}
	}
	return db.Close()
}

// sqliteURL copies a migrated template: closing SQLite leaves a single file.
func sqliteURL(t testing.TB, migrations []sqldb.Migration) string {
	t.Helper()
	template, err := templates.get(SQLiteEngine, migrations, func(ctx context.Context, _ string) (string, error) {
		f, err := os.CreateTemp("", "steward-test-*.db")
		if err != nil {
			return "", err
		}
		defer os.Remove(f.Name()) //nolint:errcheck // a leftover in the temporary directory
		defer f.Close()           //nolint:errcheck // read only below
		if err := migrate(ctx, "sqlite:"+f.Name(), migrations); err != nil {
			return "", err
		}
		data, err := os.ReadFile(f.Name())
		return string(data), err
	})
	if err != nil {
		t.Fatalf("migrate the SQLite template: %v", err)
	}
	path := filepath.Join(t.TempDir(), "test.db")
	out, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(out, template); err != nil {
		t.Fatal(err)
	}
	if err := out.Close(); err != nil {
		t.Fatal(err)
	}
	return "sqlite:" + path
}
