package move

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"steward/internal/backup"
	"steward/internal/keys"
	"steward/internal/server"
	"steward/internal/sqldb/sqldbtest"
	"steward/internal/stewardtest"
)

// source is a data directory with rows in many tables, whose server is stopped.
func source(t *testing.T) string {
	t.Helper()
	h := stewardtest.Start(t, stewardtest.Options{ManagedKeys: true})
	fleet := h.Enlist(h.API, 0, 2)
	h.Push("", "1.0.0", stewardtest.Good)
	h.AwaitState(h.Assign("1.0.0", ""), "committed", len(fleet))
	for _, d := range fleet {
		if err := d.Stop(); err != nil {
			t.Fatal(err)
		}
	}
	h.StopServer()
	return h.Dir
}

func target(t *testing.T) string { return sqldbtest.URL(t, sqldbtest.PostgresEngine) }

func change(t *testing.T, dir string, statements ...string) {
	t.Helper()
	db, err := sql.Open("sqlite", "file:"+filepath.Join(dir, databaseName)+"?_pragma=foreign_keys(ON)")
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range statements {
		if _, err := db.ExecContext(t.Context(), s); err != nil {
			t.Fatalf("%s: %v", s, err)
		}
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
}

func query[T any](t *testing.T, url, q string) (out T) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background()) //nolint:errcheck // a test's
	if err := conn.QueryRow(t.Context(), q).Scan(&out); err != nil {
		t.Fatalf("%s: %v", q, err)
	}
	return out
}

// starts tells whether a server starts on the data directory, and its error.
func starts(t *testing.T, cfg server.Config) error {
	t.Helper()
	cfg.ConsoleAddr, cfg.LinkAddr = "127.0.0.1:0", "127.0.0.1:0"
	s, err := server.Open(t.Context(), cfg)
	if err != nil {
		return err
	}
	return s.Close()
}

func TestMoveTakesEverythingAndHoldsTheSource(t *testing.T) {
	t.Parallel()
	dir, to := source(t), target(t)
	got, err := Run(t.Context(), Config{DataDir: dir, Target: to})
	if err != nil {
		t.Fatal(err)
	}
	if got.Rows < 100 || got.Tables < 30 || got.Events == 0 || got.Root == "" || got.Changed != 0 {
		t.Errorf("moved: %+v", got)
	}
	if n := query[int64](t, to, "SELECT COUNT(*) FROM registry_device"); n != 2 {
		t.Errorf("%d devices", n)
	}
	if n := query[int64](t, to, "SELECT COUNT(*) FROM pg_namespace WHERE nspname = '"+incoming+"'"); n != 0 {
		t.Error("the schema of the copy is left")
	}
	if _, err := os.Stat(filepath.Join(dir, snapshotDir)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the snapshot is left: %v", err)
	}
	if err := starts(t, server.Config{DataDir: dir}); err == nil || !strings.Contains(err.Error(), "moved to PostgreSQL") {
		t.Errorf("a server on the source: %v", err)
	}
	if err := starts(t, server.Config{DataDir: dir, Database: to}); err != nil {
		t.Errorf("a server on the target: %v", err)
	}
	if _, err := Run(t.Context(), Config{DataDir: dir, Target: to}); !errors.Is(err, ErrNotEmpty) {
		t.Errorf("moved once more: %v", err)
	}
}

// schemaOf describes all tables of a schema: columns, indexes, constraints, without the schema's name.
func schemaOf(t *testing.T, url string) string {
	t.Helper()
	return query[string](t, url, `SELECT string_agg(line, E'\n' ORDER BY line) FROM (
		SELECT 'column ' || concat_ws(' ', table_name, column_name, data_type, is_nullable, column_default, is_identity, generation_expression) AS line
			FROM information_schema.columns WHERE table_schema = 'public'
		UNION ALL SELECT 'index ' || indexdef FROM pg_indexes WHERE schemaname = 'public'
		UNION ALL SELECT 'constraint ' || c.relname || ' ' || x.conname || ' ' || pg_get_constraintdef(x.oid) FROM pg_constraint x JOIN pg_class c ON c.oid = x.conrelid
			JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = 'public') AS l`)
}

func TestMovedSchemaIsTheOneThatMigrationsMake(t *testing.T) {
	t.Parallel()
	dir, to := source(t), target(t)
	if _, err := Run(t.Context(), Config{DataDir: dir, Target: to}); err != nil {
		t.Fatal(err)
	}
	fresh := sqldbtest.URL(t, sqldbtest.PostgresEngine, server.Migrations()...)
	want, got := strings.Split(schemaOf(t, fresh), "\n"), strings.Split(schemaOf(t, to), "\n")
	for i := range max(len(want), len(got)) {
		if i >= len(want) || i >= len(got) || want[i] != got[i] {
			t.Fatalf("line %d:\n%s\n%s", i, strings.Join(want[min(i, len(want)):min(i+2, len(want))], "\n"), strings.Join(got[min(i, len(got)):min(i+2, len(got))], "\n"))
		}
	}
}

func TestWhatChangesAfterTheFirstPassIsBrought(t *testing.T) {
	t.Parallel()
	dir, to := source(t), target(t)
	change(t, dir, // what the change below needs
		`INSERT INTO access_account SELECT 'a1', tenant, 'ann', email, role, selector, program, password, must_change, disabled, created, signed_in, revision FROM access_account LIMIT 1`,
		`INSERT INTO access_account SELECT 'a2', tenant, 'bob', email, role, selector, program, password, must_change, disabled, created, signed_in, revision FROM access_account LIMIT 1`,
		`INSERT INTO access_session VALUES ('h1', 'a1', 'default', 1, 1, 1, '', ''), ('h2', 'a2', 'default', 1, 1, 1, '', '')`,
		`INSERT INTO registry_term VALUES ('default', x'00ff', 1), ('default', x'0100', 1)`)
	unlock, err := server.Lock(dir) // somebody runs
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Run(t.Context(), Config{DataDir: dir, Target: to}); !errors.Is(err, ErrRunning) {
		t.Fatalf("beside a server: %v", err)
	}
	change(t, dir,
		// two rows swap a unique value
		`UPDATE access_account SET name = 'tmp' WHERE id = 'a1'`, `UPDATE access_account SET name = 'ann' WHERE id = 'a2'`, `UPDATE access_account SET name = 'bob' WHERE id = 'a1'`,
		// a child goes, a parent goes with its child, a new pair comes
		`DELETE FROM access_session WHERE hash = 'h1'`, `DELETE FROM access_account WHERE id = 'a2'`,
		`INSERT INTO access_account SELECT 'a3', tenant, 'cid', email, role, selector, program, password, must_change, disabled, created, signed_in, revision FROM access_account LIMIT 1`,
		`INSERT INTO access_session VALUES ('h3', 'a3', 'default', 1, 1, 1, '', '')`,
		// keys of bytes, and a row that moves to another key
		`DELETE FROM registry_term WHERE term = x'0100'`, `UPDATE registry_term SET num = 2 WHERE term = x'00ff'`,
		// a number that was given and deleted: it must not be given again
		`UPDATE sqlite_sequence SET seq = 4711 WHERE name = 'registry_device'`)
	if err := unlock(); err != nil {
		t.Fatal(err)
	}
	got, err := Run(t.Context(), Config{DataDir: dir, Target: to})
	if err != nil || got.Changed < 6 {
		t.Fatalf("%+v, %v", got, err)
	}
	if names := query[string](t, to, "SELECT string_agg(id || '=' || name, ' ' ORDER BY id) FROM access_account WHERE id LIKE 'a_'"); names != "a1=bob a3=cid" {
		t.Errorf("accounts: %s", names)
	}
	if n := query[int64](t, to, `INSERT INTO registry_device (id, tenant, serial, model, name, stage, stage_since, reason, labels, created, revision)
		VALUES ('x', 'default', '', '', '', 'ordered', 0, '', '{}', 0, 1) RETURNING num`); n != 4712 {
		t.Errorf("the next device has the number %d", n)
	}
}

// failing cancels a run at the n-th call of its progress.
func failing(t *testing.T, dir, to string, n int) (calls int, err error) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	_, err = Run(ctx, Config{DataDir: dir, Target: to, Progress: func(string, int64, int64) {
		if calls++; calls == n {
			cancel()
		}
	}})
	return calls, err
}

func TestMoveThatFailsAnywhereIsRepeatedToTheSameEnd(t *testing.T) {
	t.Parallel()
	dir, to := source(t), target(t)
	failures := 0
	for n := 1; ; n += 3 + n/3 { // each run fails some steps later than the one before; between them the source goes on
		_, err := failing(t, dir, to, n)
		if err == nil {
			break
		}
		failures++
		change(t, dir, fmt.Sprintf(`INSERT INTO monitoring_forgotten (at, device) VALUES (%d, 'd%d')`, n, n), `DELETE FROM monitoring_forgotten WHERE device LIKE 'd1%'`)
		if n > 5000 {
			t.Fatalf("it never ends: %v", err)
		}
	}
	if failures < 8 {
		t.Errorf("it failed only %d times", failures)
	}
	if n := query[int64](t, to, "SELECT COUNT(*) FROM registry_device"); n != 2 {
		t.Errorf("%d devices", n)
	}
	if err := starts(t, server.Config{DataDir: dir, Database: to}); err != nil {
		t.Error(err)
	}
}

func TestSecondRunGoesOnWhereTheFirstHasFailed(t *testing.T) {
	t.Parallel()
	dir, to := source(t), target(t)
	all, err := failing(t, dir, target(t), -1)
	if err != nil {
		t.Fatal(err)
	}
	if err := server.Unhold(dir); err != nil {
		t.Fatal(err)
	}
	if _, err := failing(t, dir, to, all/3); err == nil {
		t.Fatal("it did not fail")
	}
	var began []string
	if _, err := Run(t.Context(), Config{DataDir: dir, Target: to, Progress: func(what string, _, _ int64) { began = append(began, what) }}); err != nil {
		t.Fatal(err)
	}
	if began[0] == "snapshot" || len(began) >= all {
		t.Errorf("it began anew: %d steps of %d, first %s", len(began), all, began[0])
	}
}

func TestMoveNamesWhatItRefuses(t *testing.T) {
	t.Parallel()
	dir := source(t)
	for _, c := range []struct {
		name  string
		spoil func(dir, to string)
		want  error
		text  string
	}{
		{"a table in the way", func(_, to string) { exec(t, to, "CREATE TABLE mine (a int)") }, ErrNotEmpty, ""},
		{"a foreign schema of our name", func(_, to string) { exec(t, to, "CREATE SCHEMA "+incoming+"; CREATE TABLE "+incoming+".x (a int)") }, ErrNotEmpty, incoming},
		{"an older source", func(dir, _ string) {
			change(t, dir, "DELETE FROM twin_migration WHERE version_id = (SELECT MAX(version_id) FROM twin_migration)")
		}, ErrVersion, "twin"},
		{"a source with a table of the future", func(dir, _ string) { change(t, dir, "CREATE TABLE future_thing (a TEXT PRIMARY KEY)") }, nil, "future_thing"},
		{"text with a NUL", func(dir, _ string) {
			change(t, dir, "INSERT INTO monitoring_forgotten VALUES (1, 'a' || char(0) || 'b')")
		}, nil, "monitoring_forgotten"},
		{"a changed event", func(dir, _ string) { change(t, dir, "UPDATE ledger_event SET reason = 'other' WHERE sequence = 3") }, nil, "ledger does not verify"},
	} {
		copied, to := filepath.Join(t.TempDir(), "data"), target(t)
		if err := errors.Join(os.CopyFS(copied, os.DirFS(dir)), os.Chmod(copied, 0o700)); err != nil {
			t.Fatal(err)
		}
		c.spoil(copied, to)
		_, err := Run(t.Context(), Config{DataDir: copied, Target: to})
		if err == nil || (c.want != nil && !errors.Is(err, c.want)) || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: %v", c.name, err)
		}
		if err := server.Held(copied); err != nil {
			t.Errorf("%s: the source is held: %v", c.name, err)
		}
	}
	if _, err := Run(t.Context(), Config{DataDir: t.TempDir(), Target: "postgres://localhost/x"}); !errors.Is(err, backup.ErrNotEmbedded) {
		t.Errorf("without a source: %v", err)
	}
	if _, err := Run(t.Context(), Config{DataDir: dir, Target: "mysql://localhost/x"}); err == nil {
		t.Error("another kind of target is taken")
	}
}

func exec(t *testing.T, url, statement string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background()) //nolint:errcheck // a test's
	if _, err := conn.Exec(t.Context(), statement); err != nil {
		t.Fatal(err)
	}
}

func TestKeysAreSealedInTheTargetForNodesThatShareOnlyTheMasterKey(t *testing.T) {
	t.Parallel()
	dir, to := source(t), target(t)
	master := filepath.Join(t.TempDir(), "master")
	if err := keys.NewMaster(master); err != nil {
		t.Fatal(err)
	}
	got, err := Run(t.Context(), Config{DataDir: dir, Target: to, MasterKeyFile: master})
	if err != nil || got.Keys < 4 {
		t.Fatalf("%+v, %v", got, err)
	}
	if err := starts(t, server.Config{DataDir: filepath.Join(t.TempDir(), "other"), Database: to, MasterKeyFile: master}); err != nil {
		t.Errorf("another node: %v", err)
	}
}
