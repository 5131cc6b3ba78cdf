package move

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"steward/internal/backup"
	"steward/internal/device"
	"steward/internal/server"
	"steward/internal/sqldb"
)

// prepare resumes what an earlier run has begun, or begins.
func (m *mover) prepare(ctx context.Context) error {
	if err := m.checkHome(ctx); err != nil {
		return err
	}
	resumed, err := m.resume(ctx)
	if err != nil || resumed {
		return err
	}
	if err := m.takeSnapshot(ctx); err != nil {
		return err
	}
	return m.makeSchema(ctx)
}

// checkHome refuses a schema in which something is, whatever it is.
func (m *mover) checkHome(ctx context.Context) error {
	names, err := m.relations(ctx, m.home)
	if err != nil {
		return err
	}
	if len(names) > 0 {
		return fmt.Errorf("%w: the schema %s of %s holds %s%s", ErrNotEmpty, m.home, nameOf(m.cfg.Target), strings.Join(names[:min(3, len(names))], ", "), andMore(len(names)-3))
	}
	return nil
}

func andMore(n int) string {
	if n <= 0 {
		return ""
	}
	return fmt.Sprintf(" and %d more", n)
}

// relations lists what a schema holds, without indexes, which belong to tables.
func (m *mover) relations(ctx context.Context, schema string) ([]string, error) {
	return m.strs(ctx, `SELECT c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE n.nspname = $1 AND c.relkind IN ('r', 'p', 'v', 'm', 'S', 'f') ORDER BY c.relkind = 'S', c.relname`, schema)
}

func (m *mover) strs(ctx context.Context, query string, args ...any) ([]string, error) {
	rows, err := m.pg.Query(ctx, query, args...)
	if err != nil {
		return nil, fmt.Errorf("look at the target: %w", err)
	}
	out, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, fmt.Errorf("look at the target: %w", err)
	}
	return out, nil
}

// The tables of the incoming schema that are ours alone. They go with the switch.
const (
	moveTable  = "move_run"   // one row: whose snapshot it is, and how far
	moveCopied = "move_table" // how far each table is copied
	moveDDL    = "move_ddl"   // indexes and foreign keys that are made after the copying
)

// The states of a run.
const (
	copying   = "copying"
	finishing = "finishing" // the difference is applied: what comes after a failure begins anew
)

func (m *mover) snapshotID() string {
	data, err := os.ReadFile(m.snap + ".id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(data))
}

// resume goes on when the schema was made from the snapshot that is still there, and clears away what can't
// be gone on with.
func (m *mover) resume(ctx context.Context) (bool, error) {
	names, err := m.relations(ctx, incoming)
	if err != nil {
		return false, err
	}
	ours := slices.Contains(names, moveTable)
	if len(names) > 0 && !ours {
		return false, fmt.Errorf("%w: it has a schema %s that no migration has made; drop it if nobody needs it", ErrNotEmpty, incoming)
	}
	if ours {
		var id, state string
		if err := m.pg.QueryRow(ctx, "SELECT snapshot, state FROM "+incoming+"."+moveTable).Scan(&id, &state); err != nil && !errors.Is(err, pgx.ErrNoRows) {
			return false, fmt.Errorf("read how far an earlier migration was: %w", err)
		}
		if id != "" && id == m.snapshotID() && state == copying {
			return true, m.describe(ctx)
		}
	}
	if _, err := m.pg.Exec(ctx, "DROP SCHEMA IF EXISTS "+incoming+" CASCADE"); err != nil {
		return false, fmt.Errorf("clear away an earlier migration: %w", err)
	}
	return false, m.dropSnapshot()
}

func (m *mover) takeSnapshot(ctx context.Context) error {
	m.cfg.Progress.tell("snapshot", 0, 0)
	if err := os.MkdirAll(filepath.Dir(m.snap), 0o700); err != nil {
		return err
	}
	if err := backup.Snapshot(ctx, m.source, m.snap); err != nil {
		return errors.Join(err, m.dropSnapshot())
	}
	return os.WriteFile(m.snap+".id", []byte(device.RandomName(20)+"\n"), 0o600)
}

// makeSchema makes the tables in the incoming schema, empty and without what slows copying down.
func (m *mover) makeSchema(ctx context.Context) error {
	if _, err := m.pg.Exec(ctx, "CREATE SCHEMA "+incoming); err != nil {
		return fmt.Errorf("make the schema %s (the user needs CREATE on the database): %w", incoming, err)
	}
	// First of all, so that whatever comes of it is known for ours.
	_, err := m.pg.Exec(ctx, fmt.Sprintf(`CREATE TABLE %[1]s.%[2]s (snapshot TEXT NOT NULL, state TEXT NOT NULL);
		CREATE TABLE %[1]s.%[3]s (name TEXT PRIMARY KEY, last BIGINT NOT NULL, n BIGINT NOT NULL, done BOOLEAN NOT NULL);
		CREATE TABLE %[1]s.%[4]s (name TEXT PRIMARY KEY, late BOOLEAN NOT NULL, ddl TEXT NOT NULL)`, incoming, moveTable, moveCopied, moveDDL))
	if err != nil {
		return fmt.Errorf("make the schema %s: %w", incoming, err)
	}
	if err := m.migrate(ctx); err != nil {
		return err
	}
	if err := m.describe(ctx); err != nil {
		return err
	}
	return m.strip(ctx)
}

func (m *mover) migrate(ctx context.Context) (err error) {
	inside, err := m.inside()
	if err != nil {
		return err
	}
	db, err := sqldb.Open(ctx, inside)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	for _, mig := range server.Migrations() {
		if err := db.Migrate(ctx, mig); err != nil {
			return err
		}
	}
	return nil
}

// describe reads the snapshot's tables and compares them with the target's.
func (m *mover) describe(ctx context.Context) (err error) {
	snap, err := openSnapshot(m.snap)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, snap.Close()) }()
	if err := m.checkVersions(ctx, snap); err != nil {
		return err
	}
	if m.tables, err = readTables(ctx, snap); err != nil {
		return err
	}
	names, err := m.relations(ctx, incoming)
	if err != nil {
		return err
	}
	for _, name := range names {
		ours := slices.ContainsFunc(m.tables, func(t table) bool { return t.name == name })
		if !ours && !strings.HasSuffix(name, "_migration") && !strings.HasPrefix(name, "move_") && !strings.HasSuffix(name, "_seq") {
			return fmt.Errorf("%w: it has no table %s", ErrVersion, name)
		}
	}
	for i := range m.tables {
		if err := m.describeTarget(ctx, &m.tables[i]); err != nil {
			return err
		}
	}
	m.out.Tables = len(m.tables)
	return nil
}

func (m *mover) checkVersions(ctx context.Context, snap *sql.DB) error {
	for _, mig := range server.Migrations() {
		var have, want int64
		name := quote(mig.Room + "_migration")
		if err := m.pg.QueryRow(ctx, "SELECT MAX(version_id) FROM "+incoming+"."+name+" WHERE is_applied").Scan(&want); err != nil {
			return fmt.Errorf("read the target's version of %s: %w", mig.Room, err)
		}
		err := snap.QueryRowContext(ctx, "SELECT COALESCE(MAX(version_id), 0) FROM "+name+" WHERE is_applied").Scan(&have)
		if err != nil || have != want {
			return fmt.Errorf("%w: its tables of %s are at %d and this version's at %d; start the server on it once with this version, then migrate",
				ErrVersion, mig.Room, have, want)
		}
	}
	return nil
}

func (m *mover) describeTarget(ctx context.Context, t *table) error {
	rows, err := m.pg.Query(ctx, `SELECT column_name, data_type, is_identity = 'YES' FROM information_schema.columns
		WHERE table_schema = $1 AND table_name = $2 AND is_generated = 'NEVER'`, incoming, t.name)
	if err != nil {
		return fmt.Errorf("describe the target's table %s: %w", t.name, err)
	}
	types := map[string]string{}
	var name, dataType string
	var counts bool
	_, err = pgx.ForEachRow(rows, []any{&name, &dataType, &counts}, func() error {
		types[name] = dataType
		if counts {
			t.counts = name
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("describe the target's table %s: %w", t.name, err)
	}
	if len(types) != len(t.columns) {
		return fmt.Errorf("%w: its table %s has %d columns and this version's %d", ErrVersion, t.name, len(t.columns), len(types))
	}
	t.kinds = t.kinds[:0]
	for _, c := range t.columns {
		k, ok := kinds[types[c]]
		if !ok {
			return fmt.Errorf("column %s of table %s: the type %q of the target is not one that is copied", c, t.name, types[c])
		}
		t.kinds = append(t.kinds, k)
	}
	return nil
}

// strip empties the tables of what migrations have put there, and takes indexes and foreign keys away until
// the rows are in. Primary keys and UNIQUE constraints stay.
func (m *mover) strip(ctx context.Context) error {
	return m.inTx(ctx, "make the target's tables ready", func(tx pgx.Tx) error {
		names := make([]string, len(m.tables))
		for i, t := range m.tables {
			names[i] = incoming + "." + quote(t.name)
		}
		if _, err := tx.Exec(ctx, "TRUNCATE "+strings.Join(names, ", ")); err != nil {
			return err
		}
		// Late ones are foreign keys, which are made when all rows are in; indexes are made before the difference.
		_, err := tx.Exec(ctx, fmt.Sprintf(`INSERT INTO %[1]s.%[2]s (name, late, ddl)
			SELECT c.relname, FALSE, pg_get_indexdef(i.indexrelid) FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_namespace n ON n.oid = c.relnamespace
			WHERE n.nspname = '%[1]s' AND NOT EXISTS (SELECT 1 FROM pg_constraint x WHERE x.conindid = i.indexrelid AND x.contype IN ('p', 'u', 'x'))
			AND i.indrelid <> ALL (ARRAY['%[1]s.%[3]s'::regclass, '%[1]s.%[4]s'::regclass, '%[1]s.%[2]s'::regclass])
			UNION ALL SELECT x.conrelid::regclass::text || ' ' || x.conname, TRUE, format('ALTER TABLE %[1]s.%%I ADD CONSTRAINT %%I ', c.relname, x.conname) || pg_get_constraintdef(x.oid)
			FROM pg_constraint x JOIN pg_class c ON c.oid = x.conrelid JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = '%[1]s' AND x.contype = 'f'`,
			incoming, moveDDL, moveTable, moveCopied))
		if err != nil {
			return err
		}
		_, err = tx.Exec(ctx, fmt.Sprintf(`DO $$ DECLARE r RECORD; BEGIN
			FOR r IN SELECT x.conname, c.relname FROM pg_constraint x JOIN pg_class c ON c.oid = x.conrelid JOIN pg_namespace n ON n.oid = c.relnamespace
				WHERE n.nspname = '%[1]s' AND x.contype = 'f' LOOP EXECUTE format('ALTER TABLE %[1]s.%%I DROP CONSTRAINT %%I', r.relname, r.conname); END LOOP;
			FOR r IN SELECT name FROM %[1]s.%[2]s WHERE NOT late LOOP EXECUTE format('DROP INDEX %[1]s.%%I', r.name); END LOOP; END $$`, incoming, moveDDL))
		if err != nil {
			return err
		}
		_, err = tx.Exec(ctx, "INSERT INTO "+incoming+"."+moveTable+" (snapshot, state) VALUES ($1, $2)", m.snapshotID(), copying)
		return err
	})
}

func (m *mover) inTx(ctx context.Context, what string, do func(tx pgx.Tx) error) error {
	if err := pgx.BeginFunc(ctx, m.pg, do); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

// switchOver gives the tables to the schema that servers use, all at once.
func (m *mover) switchOver(ctx context.Context) error {
	m.cfg.Progress.tell("switch", 0, 0)
	return m.inTx(ctx, "switch over", func(tx pgx.Tx) error {
		for _, own := range []string{moveTable, moveCopied, moveDDL} {
			if _, err := tx.Exec(ctx, "DROP TABLE "+incoming+"."+own); err != nil {
				return err
			}
		}
		rows, err := tx.Query(ctx, "SELECT tablename FROM pg_tables WHERE schemaname = $1", incoming)
		if err != nil {
			return err
		}
		names, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			return err
		}
		for _, name := range names { // a name that is taken fails, and with it everything
			if _, err := tx.Exec(ctx, "ALTER TABLE "+incoming+"."+quote(name)+" SET SCHEMA "+quote(m.home)); err != nil {
				return err
			}
		}
		_, err = tx.Exec(ctx, "DROP SCHEMA "+incoming) // refused while anything is left in it
		return err
	})
}

// moved tells whether the switch has happened.
func (m *mover) moved(ctx context.Context) (bool, error) {
	conn, err := pgx.Connect(ctx, m.cfg.Target) // ours may be broken
	if err != nil {
		return false, err
	}
	defer conn.Close(ctx) //nolint:errcheck // nothing is left to lose
	var there bool
	err = conn.QueryRow(ctx, "SELECT EXISTS (SELECT 1 FROM pg_namespace WHERE nspname = $1)", incoming).Scan(&there)
	return !there, err
}
