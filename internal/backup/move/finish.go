package move

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"steward/internal/keys"
	"steward/internal/server"
	"steward/internal/sqldb"
)

// querier is a connection or a transaction.
type querier interface {
	Query(ctx context.Context, query string, args ...any) (pgx.Rows, error)
	Exec(ctx context.Context, query string, args ...any) (pgconn.CommandTag, error)
}

// alreadyThere tells that an index exists: 42P07 duplicate_table, which indexes are for PostgreSQL.
func alreadyThere(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && pg.Code == "42P07"
}

// applyDifference brings what has changed since the snapshot, in one transaction, then makes the foreign keys
// and lets counting columns go on after the highest number that was ever given.
func (m *mover) applyDifference(ctx context.Context, l *live) error {
	return m.inTx(ctx, "bring what has changed meanwhile", func(tx pgx.Tx) error {
		m.out.Changed = 0
		for i := range m.tables {
			t := &m.tables[i]
			m.cfg.Progress.tell("changes", int64(i), int64(len(m.tables)))
			if err := m.tableDifference(ctx, tx, l, t); err != nil {
				return fmt.Errorf("table %s: %w", t.name, err)
			}
		}
		if err := m.makeDDL(ctx, tx, true); err != nil {
			return err
		}
		for i := range m.tables {
			if err := m.goOnCounting(ctx, tx, l, &m.tables[i]); err != nil {
				return err
			}
		}
		_, err := tx.Exec(ctx, "UPDATE "+incoming+"."+moveTable+" SET state = $1", finishing)
		return err
	})
}

// tableDifference deletes from the target the rows that were changed or deleted, and copies those that were
// changed or are new. Doing it in this order keeps unique indexes content at every step: the rows that stay
// are part of both states.
func (m *mover) tableDifference(ctx context.Context, tx pgx.Tx, l *live, t *table) error {
	same, differs := make([]string, len(t.key)), []string{"FALSE"}
	for i, k := range t.key {
		same[i] = "m." + quote(k) + " = s." + quote(k)
	}
	for _, c := range t.columns {
		differs = append(differs, "m."+quote(c)+" IS NOT s."+quote(c))
	}
	on, other, first := strings.Join(same, " AND "), strings.Join(differs, " OR "), quote(t.key[0])
	name := quote(t.name)
	// Named after the table, since pgx remembers the types of the columns that it has copied to by name.
	gone := "gone_" + t.name

	_, err := tx.Exec(ctx, fmt.Sprintf("CREATE TEMP TABLE %s ON COMMIT DROP AS SELECT %s FROM %s.%s WITH NO DATA", quote(gone), list("", t.key), incoming, name))
	if err != nil {
		return err
	}
	keyOnly := &table{name: t.name, columns: t.key, key: t.key, kinds: t.kindsOf(t.key)}
	old, err := l.stream(ctx, keyOnly, fmt.Sprintf("SELECT %s FROM snap.%s s LEFT JOIN main.%s m ON %s WHERE m.%s IS NULL OR %s", list("s.", t.key), name, name, on, first, other))
	if err != nil {
		return err
	}
	deleted, err := tx.CopyFrom(ctx, pgx.Identifier{"pg_temp", gone}, t.key, old)
	if err != nil {
		return err
	}
	if deleted > 0 {
		match := make([]string, len(t.key))
		for i, k := range t.key {
			match[i] = "t." + quote(k) + " = g." + quote(k)
		}
		if _, err := tx.Exec(ctx, fmt.Sprintf("DELETE FROM %s.%s t USING pg_temp.%s g WHERE %s", incoming, name, quote(gone), strings.Join(match, " AND "))); err != nil {
			return err
		}
	}
	fresh, err := l.stream(ctx, t, fmt.Sprintf("SELECT %s FROM main.%s m LEFT JOIN snap.%s s ON %s WHERE s.%s IS NULL OR %s", list("m.", t.columns), name, name, on, first, other))
	if err != nil {
		return err
	}
	written, err := tx.CopyFrom(ctx, pgx.Identifier{incoming, t.name}, t.columns, fresh)
	m.out.Changed += max(deleted, written)
	return err
}

func (t *table) kindsOf(columns []string) (out []kind) {
	for _, c := range columns {
		for i, name := range t.columns {
			if name == c {
				out = append(out, t.kinds[i])
			}
		}
	}
	return out
}

// stream is a pgx.CopyFromSource over a query of the source.
type stream struct {
	t   *table
	in  *sql.Rows
	row []any
	err error
}

func (l *live) stream(ctx context.Context, t *table, query string) (*stream, error) {
	rows, err := l.conn.QueryContext(ctx, query)
	if err != nil {
		return nil, fmt.Errorf("read the source: %w", err)
	}
	return &stream{t: t, in: rows}, nil
}

// Next implements pgx.CopyFromSource; the last call closes the query.
func (s *stream) Next() bool {
	if s.err != nil || !s.in.Next() {
		s.err = errors.Join(s.err, s.in.Err(), s.in.Close())
		return false
	}
	s.row = make([]any, len(s.t.columns))
	to := make([]any, len(s.row))
	for i := range s.row {
		to[i] = &s.row[i]
	}
	if s.err = s.in.Scan(to...); s.err == nil {
		s.err = s.t.convertRow(s.row)
	}
	if s.err != nil {
		_ = s.in.Close()
	}
	return s.err == nil
}

// Values implements pgx.CopyFromSource.
func (s *stream) Values() ([]any, error) { return s.row, s.err }

// Err implements pgx.CopyFromSource.
func (s *stream) Err() error { return s.err }

// goOnCounting makes an identity column go on where SQLite's would have.
func (m *mover) goOnCounting(ctx context.Context, tx pgx.Tx, l *live, t *table) error {
	if t.counts == "" {
		return nil
	}
	highest, err := l.highest(ctx, t.name)
	if err != nil {
		return fmt.Errorf("read the counter of table %s: %w", t.name, err)
	}
	if highest == 0 {
		return nil // it begins at 1
	}
	_, err = tx.Exec(ctx, "SELECT setval(pg_get_serial_sequence($1, $2), $3)", incoming+"."+quote(t.name), t.counts, highest)
	if err != nil {
		return fmt.Errorf("set the counter of table %s: %w", t.name, err)
	}
	return nil
}

// compare reads every row on both sides.
func (m *mover) compare(ctx context.Context, l *live) error {
	m.out.Rows = 0
	for i := range m.tables {
		t := &m.tables[i]
		m.cfg.Progress.tell("compare", int64(i), int64(len(m.tables)))
		here, err := l.digest(ctx, t)
		if err != nil {
			return fmt.Errorf("read the source's table %s: %w", t.name, err)
		}
		there, err := m.digest(ctx, t)
		if err != nil {
			return fmt.Errorf("read the target's table %s: %w", t.name, err)
		}
		if here != there {
			return fmt.Errorf("%w: table %s has %d rows here and %d there, with sums %x%016x and %x%016x",
				ErrDifferent, t.name, here.rows, there.rows, here.hi, here.lo, there.hi, there.lo)
		}
		m.out.Rows += here.rows
	}
	return nil
}

func (l *live) digest(ctx context.Context, t *table) (d digest, err error) {
	s, err := l.stream(ctx, t, fmt.Sprintf("SELECT %s FROM main.%s", list("", t.columns), quote(t.name)))
	if err != nil {
		return d, err
	}
	for s.Next() {
		if err := d.add(s.row); err != nil {
			return d, errors.Join(err, s.in.Close())
		}
	}
	return d, s.err
}

func (m *mover) digest(ctx context.Context, t *table) (d digest, err error) {
	rows, err := m.pg.Query(ctx, fmt.Sprintf("SELECT %s FROM %s.%s", list("", t.columns), incoming, quote(t.name)))
	if err != nil {
		return d, err
	}
	defer rows.Close()
	for rows.Next() {
		row, err := rows.Values()
		if err != nil {
			return d, err
		}
		if err := d.add(widen(row)); err != nil {
			return d, err
		}
	}
	return d, rows.Err()
}

// verifyLedger recomputes the ledger from the target's rows and compares it with the source's signed head.
func (m *mover) verifyLedger(ctx context.Context, l *live) error {
	var head string
	if err := l.conn.QueryRowContext(ctx, "SELECT checkpoint FROM main.ledger_head").Scan(&head); err != nil {
		return fmt.Errorf("read the source's ledger head: %w", err)
	}
	if head == "" {
		return nil // the server has never run
	}
	inside, err := m.inside()
	if err != nil {
		return err
	}
	m.cfg.Progress.tell("ledger", 0, 0)
	cfg := server.Config{DataDir: m.cfg.DataDir, Database: inside, Now: m.cfg.Now}
	if m.sealed {
		cfg.MasterKeyFile = m.cfg.MasterKeyFile
	}
	got, err := server.VerifyLedger(ctx, cfg, []byte(head))
	if err != nil {
		return fmt.Errorf("the ledger does not verify on the target (`steward ledger verify` tells whether it does on the source): %w", err)
	}
	m.out.Events, m.out.Root = got.Size, got.Root.String()
	return nil
}

// copyKeys puts the keys of the data directory into the target, sealed, for nodes that share nothing but the
// master key. Keys that were sealed in the source have come as rows.
func (m *mover) copyKeys(ctx context.Context) (err error) {
	if m.cfg.MasterKeyFile == "" || m.sealed {
		return nil
	}
	inside, err := m.inside()
	if err != nil {
		return err
	}
	master, err := keys.ReadMaster(m.cfg.MasterKeyFile)
	if err != nil {
		return err
	}
	db, err := sqldb.Open(ctx, inside)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	sealed, err := keys.OpenSealed(ctx, db, master)
	if err != nil {
		return err
	}
	dir, err := server.OpenKeyDir(ctx, filepath.Join(m.cfg.DataDir, "keys"))
	if err != nil {
		return err
	}
	m.out.Keys, err = keys.Copy(ctx, dir, sealed)
	return err
}
