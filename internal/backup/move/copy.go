package move

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// batchRows is how many rows one transaction brings; what fails is repeated from the last batch on.
const batchRows = 20_000

// copyAll brings the snapshot's rows into the target, from where an earlier run has stopped, and makes the
// indexes.
func (m *mover) copyAll(ctx context.Context) (err error) {
	snap, err := openSnapshot(m.snap)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, snap.Close()) }()
	for i := range m.tables {
		if err := m.copyTable(ctx, snap, &m.tables[i]); err != nil {
			return err
		}
	}
	return m.makeIndexes(ctx)
}

func (m *mover) copyTable(ctx context.Context, snap *sql.DB, t *table) error {
	var last, n, total int64
	var done bool
	err := m.pg.QueryRow(ctx, "SELECT last, n, done FROM "+incoming+"."+moveCopied+" WHERE name = $1", t.name).Scan(&last, &n, &done)
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return fmt.Errorf("read how far table %s is: %w", t.name, err)
	}
	if done {
		return nil
	}
	if err := snap.QueryRowContext(ctx, "SELECT COUNT(*) FROM "+quote(t.name)).Scan(&total); err != nil {
		return fmt.Errorf("count table %s: %w", t.name, err)
	}
	for !done {
		m.cfg.Progress.tell(t.name, n, total)
		b := &batch{t: t, last: last, tell: func(in int64) { m.cfg.Progress.tell(t.name, n+in, total) }}
		err := m.inTx(ctx, "copy table "+t.name, func(tx pgx.Tx) error { return b.copy(ctx, snap, tx, n) })
		if err != nil {
			return err
		}
		last, n, done = b.last, n+b.rows, b.rows < batchRows
	}
	return nil
}

// batch is a pgx.CopyFromSource over the next rows of a table in the order of SQLite's row numbers.
type batch struct {
	t    *table
	last int64 // row number
	rows int64
	tell func(int64)

	in  *sql.Rows
	row []any
	err error
}

func (b *batch) copy(ctx context.Context, snap *sql.DB, tx pgx.Tx, before int64) (err error) {
	b.in, err = snap.QueryContext(ctx, fmt.Sprintf("SELECT rowid, %s FROM %s WHERE rowid > $1 ORDER BY rowid LIMIT %d",
		list("", b.t.columns), quote(b.t.name), batchRows), b.last)
	if err != nil {
		return fmt.Errorf("read the snapshot: %w", err)
	}
	defer b.in.Close() //nolint:errcheck // Err tells
	if _, err := tx.CopyFrom(ctx, pgx.Identifier{incoming, b.t.name}, b.t.columns, b); err != nil {
		return err
	}
	_, err = tx.Exec(ctx, "INSERT INTO "+incoming+"."+moveCopied+` (name, last, n, done) VALUES ($1, $2, $3, $4)
		ON CONFLICT (name) DO UPDATE SET last = excluded.last, n = excluded.n, done = excluded.done`, b.t.name, b.last, before+b.rows, b.rows < batchRows)
	return err
}

// Next implements pgx.CopyFromSource.
func (b *batch) Next() bool {
	if !b.in.Next() {
		b.err = b.in.Err()
		return false
	}
	b.row = make([]any, len(b.t.columns))
	to := make([]any, 0, 1+len(b.row))
	to = append(to, &b.last)
	for i := range b.row {
		to = append(to, &b.row[i])
	}
	if b.err = b.in.Scan(to...); b.err == nil {
		b.err = b.t.convertRow(b.row)
	}
	if b.rows++; b.rows%1000 == 0 {
		b.tell(b.rows)
	}
	return b.err == nil
}

// Values implements pgx.CopyFromSource.
func (b *batch) Values() ([]any, error) { return b.row, b.err }

// Err implements pgx.CopyFromSource.
func (b *batch) Err() error { return b.err }

// makeIndexes makes what strip has taken away, except for foreign keys. Those that an earlier run has made
// are done.
func (m *mover) makeIndexes(ctx context.Context) error { return m.makeDDL(ctx, m.pg, false) }

func (m *mover) makeDDL(ctx context.Context, q querier, late bool) error {
	rows, err := q.Query(ctx, "SELECT name, ddl FROM "+incoming+"."+moveDDL+" WHERE late = $1 ORDER BY name", late)
	if err != nil {
		return fmt.Errorf("list the target's indexes: %w", err)
	}
	type def struct{ Name, DDL string }
	defs, err := pgx.CollectRows(rows, pgx.RowToStructByPos[def])
	if err != nil {
		return fmt.Errorf("list the target's indexes: %w", err)
	}
	for i, d := range defs {
		m.cfg.Progress.tell("indexes", int64(i), int64(len(defs)))
		// Both in one message, which the server takes as one transaction.
		if _, err := q.Exec(ctx, d.DDL); err != nil && !alreadyThere(err) {
			return fmt.Errorf("make %s: %w", d.Name, err)
		}
	}
	return nil
}
