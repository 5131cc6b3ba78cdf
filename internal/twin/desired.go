package twin

import (
	"context"
	"fmt"

	"steward/internal/sqldb"
	"steward/internal/wire"
)

// SetDesired makes doc the device's desired document of the section. When it is another one than
// before, the epoch grows and, after the commit, who waits for it is woken.
func (s *Service) SetDesired(ctx context.Context, tx *sqldb.Tx, num int64, section wire.Section, doc any) error {
	body, err := encode(section, doc)
	if err != nil {
		return err
	}
	number, err := s.putDocument(ctx, tx, wire.HashOf(body), body)
	if err != nil {
		return err
	}
	n, err := tx.Exec(ctx, `INSERT INTO twin_desired (num, section, document, since) VALUES ($1, $2, $3, $4)
		ON CONFLICT (num, section) DO UPDATE SET document = excluded.document, since = excluded.since
		WHERE twin_desired.document <> excluded.document`, num, section, number, sqldb.Micros(s.now()))
	if err != nil {
		return fmt.Errorf("set desired section %s: %w", section, err)
	}
	if n == 0 {
		return nil
	}
	return s.bump(ctx, tx, num)
}

// ClearDesired takes the section out of the device's desired state; one that is not there is fine.
func (s *Service) ClearDesired(ctx context.Context, tx *sqldb.Tx, num int64, section wire.Section) error {
	n, err := tx.Exec(ctx, "DELETE FROM twin_desired WHERE num = $1 AND section = $2", num, section)
	if err != nil {
		return fmt.Errorf("clear desired section %s: %w", section, err)
	}
	if n == 0 {
		return nil
	}
	return s.bump(ctx, tx, num)
}

// bump gives the device its next epoch.
func (s *Service) bump(ctx context.Context, tx *sqldb.Tx, num int64) error {
	_, err := tx.Exec(ctx, `INSERT INTO twin_epoch (num, epoch, since) VALUES ($1, 1, $2)
		ON CONFLICT (num) DO UPDATE SET epoch = twin_epoch.epoch + 1, since = excluded.since`, num, sqldb.Micros(s.now()))
	if err != nil {
		return fmt.Errorf("raise epoch: %w", err)
	}
	tx.AfterCommit(func() { s.wake(num) })
	return nil
}

// SetDesiredWhere does what SetDesired does for all devices whose numbers the sub-SELECT gives (one
// column, "?" placeholders, no number twice), and returns for how many it was a change. It takes a
// fixed number of statements however many devices there are.
func (s *Service) SetDesiredWhere(ctx context.Context, tx *sqldb.Tx, numsSQL string, args []any, section wire.Section, doc any) (int64, error) {
	body, err := encode(section, doc)
	if err != nil {
		return 0, err
	}
	number, err := s.putDocument(ctx, tx, wire.HashOf(body), body)
	if err != nil {
		return 0, err
	}
	set := bulk{nums: numsSQL, args: args, section: section, document: number, now: sqldb.Micros(s.now())}
	n, err := set.run(ctx, tx, set.setSQLite, set.setPostgres)
	if err != nil {
		return 0, fmt.Errorf("set desired section %s of many devices: %w", section, err)
	}
	s.wakeAllAfter(tx, n)
	return n, nil
}

// ClearDesiredWhere does what ClearDesired does for all devices of the sub-SELECT; see SetDesiredWhere.
func (s *Service) ClearDesiredWhere(ctx context.Context, tx *sqldb.Tx, numsSQL string, args []any, section wire.Section) (int64, error) {
	set := bulk{nums: numsSQL, args: args, section: section, now: sqldb.Micros(s.now())}
	n, err := set.run(ctx, tx, set.clearSQLite, set.clearPostgres)
	if err != nil {
		return 0, fmt.Errorf("clear desired section %s of many devices: %w", section, err)
	}
	s.wakeAllAfter(tx, n)
	return n, nil
}

func (s *Service) wakeAllAfter(tx *sqldb.Tx, changed int64) {
	if changed > 0 {
		tx.AfterCommit(func() { s.wake(allDevices) })
	}
}

// bulk is a change of one section of many devices. Epochs must grow for exactly the devices whose
// section really changes, and rows and epochs must agree under concurrent changes. The engines need
// different statements for it:
//
// SQLite has one writer, so nothing changes between two statements: first the epochs of the devices that
// are about to change, then the change. PostgreSQL may see another transaction's commit between two
// statements: there the change hands its devices to the epochs inside of one.
type bulk struct {
	nums     string
	args     []any
	section  wire.Section
	document int64
	now      int64
}

// executor is what a bulk change needs of a transaction.
type executor interface {
	Dialect() sqldb.Dialect
	Exec(ctx context.Context, query string, args ...any) (int64, error)
}

// run executes the statements of the transaction's engine and returns the rows of the first.
func (b bulk) run(ctx context.Context, tx executor, sqlite, postgres func() []*sqldb.Builder) (n int64, err error) {
	statements := sqlite
	if tx.Dialect() == sqldb.Postgres {
		statements = postgres
	}
	for i, q := range statements() {
		rows, err := tx.Exec(ctx, q.SQL(), q.Args()...)
		if err != nil {
			return 0, err
		}
		if i == 0 {
			n = rows
		}
	}
	return n, nil
}

const (
	raiseEpoch = "ON CONFLICT (num) DO UPDATE SET epoch = twin_epoch.epoch + 1, since = excluded.since"
	replaceDoc = `ON CONFLICT (num, section) DO UPDATE SET document = excluded.document, since = excluded.since
		WHERE twin_desired.document <> excluded.document`
)

// picked opens a statement with the devices under the name n.
func (b bulk) picked() *sqldb.Builder {
	return sqldb.NewQuery("WITH n (num) AS ("+b.nums+")", b.args...)
}

func (b bulk) setSQLite() []*sqldb.Builder {
	return []*sqldb.Builder{
		b.picked().Add(`INSERT INTO twin_epoch (num, epoch, since) SELECT n.num, 1, ? FROM n
			LEFT JOIN twin_desired t ON t.num = n.num AND t.section = ? WHERE t.document IS NULL OR t.document <> ? `+raiseEpoch,
			b.now, b.section, b.document),
		// WHERE true keeps SQLite from reading ON CONFLICT as the condition of a join.
		b.picked().Add(`INSERT INTO twin_desired (num, section, document, since) SELECT n.num, ?, ?, ? FROM n WHERE true `+replaceDoc,
			b.section, b.document, b.now),
	}
}

func (b bulk) setPostgres() []*sqldb.Builder {
	// The order lets two such statements lock the same rows in the same order.
	return []*sqldb.Builder{b.picked().Add(`, changed AS (INSERT INTO twin_desired (num, section, document, since)
			SELECT DISTINCT n.num, CAST(? AS TEXT), CAST(? AS BIGINT), CAST(? AS BIGINT) FROM n ORDER BY n.num `+replaceDoc+` RETURNING num)
		INSERT INTO twin_epoch (num, epoch, since) SELECT changed.num, 1, CAST(? AS BIGINT) FROM changed ORDER BY changed.num `+raiseEpoch,
		b.section, b.document, b.now, b.now)}
}

func (b bulk) clearSQLite() []*sqldb.Builder {
	return []*sqldb.Builder{
		b.picked().Add(`INSERT INTO twin_epoch (num, epoch, since) SELECT n.num, 1, ? FROM n
			JOIN twin_desired t ON t.num = n.num AND t.section = ? WHERE true `+raiseEpoch, b.now, b.section),
		b.picked().Add("DELETE FROM twin_desired WHERE num IN (SELECT num FROM n) AND section = ?", b.section),
	}
}

func (b bulk) clearPostgres() []*sqldb.Builder {
	return []*sqldb.Builder{b.picked().Add(`, changed AS (DELETE FROM twin_desired WHERE num IN (SELECT num FROM n) AND section = ? RETURNING num)
		INSERT INTO twin_epoch (num, epoch, since) SELECT changed.num, 1, CAST(? AS BIGINT) FROM changed ORDER BY changed.num `+raiseEpoch,
		b.section, b.now)}
}
