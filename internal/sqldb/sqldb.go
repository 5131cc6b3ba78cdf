// Package sqldb is the door to the database: SQLite inside the process, or PostgreSQL. Rooms write
// their SQL once for both; where the dialects differ they keep one query per dialect under the same
// name (see Dialect.Pick).
//
// Reading: DB.Query and DB.QueryRow see committed state. Writing: only inside DB.Write. On SQLite
// there is one writer with group commit: functions of concurrent callers run one after the other,
// each in its own savepoint, and share one fsync; Write returns after it. On PostgreSQL each function
// has its own serializable transaction, run again when the database asks for it; with WriteShared
// concurrent callers share one there too. So a function given
// to Write may run more than once: it must have no effect but through its Tx. And it must not call
// Write again or wait for somebody who does: on SQLite both would wait for ever.
//
// What both dialects share and what to avoid: $n placeholders in ascending order, ON CONFLICT,
// RETURNING, row values, UPDATE … FROM, partial indexes work; never now(), "::", ILIKE, BOOLEAN
// columns (use SMALLINT), SERIAL. Times are BIGINT microseconds (Micros, ScanMicros), JSON is TEXT.
package sqldb

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"
)

// Dialect is the kind of SQL that a database speaks.
type Dialect int

// The dialects.
const (
	SQLite Dialect = iota
	Postgres
)

func (d Dialect) String() string {
	if d == Postgres {
		return "postgres"
	}
	return "sqlite"
}

// Pick returns the text for this dialect.
func (d Dialect) Pick(sqliteText, postgresText string) string {
	if d == Postgres {
		return postgresText
	}
	return sqliteText
}

// Reader reads: a *DB outside of a transaction, a *Tx inside of one.
type Reader interface {
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}

// DB is an open database; safe for concurrent use.
type DB struct {
	dialect Dialect
	path    string // of SQLite's file
	read    *sql.DB
	write   *sql.DB // the same as read on PostgreSQL; one connection on SQLite

	group groupCommit // on PostgreSQL for WriteShared only

	writes           atomic.Int64
	commits, retries atomic.Int64 // of PostgreSQL; SQLite's commits are counted by group

	closeOnce sync.Once
}

// Stats counts since Open.
type Stats struct {
	Writes  int64 // successful calls of Write
	Commits int64 // transactions; on SQLite fewer than Writes when writers shared one
	Retries int64 // runs of a function that PostgreSQL asked to repeat
}

// Stats returns the counts so far; for metrics and benchmarks.
func (db *DB) Stats() Stats {
	return Stats{Writes: db.writes.Load(), Commits: db.commits.Load() + db.group.commits.Load(), Retries: db.retries.Load() + db.group.retries.Load()}
}

// readConnections is how many readers SQLite serves at a time; more only compete for two cores.
const readConnections = 8

// postgresConnections bounds the pool of one node.
const postgresConnections = 24

// Open opens "sqlite:PATH" (made with mode 0600 when absent) or "postgres://…". It does not migrate.
func Open(ctx context.Context, url string) (*DB, error) {
	if path, ok := strings.CutPrefix(url, "sqlite:"); ok {
		return openSQLite(ctx, path)
	}
	if strings.HasPrefix(url, "postgres://") || strings.HasPrefix(url, "postgresql://") {
		return openPostgres(ctx, url)
	}
	return nil, errors.New("database URL: want sqlite:PATH or postgres://…")
}

func openSQLite(ctx context.Context, path string) (*DB, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("make the database's directory: %w", err)
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the database file: %w", err)
	}
	if err := f.Close(); err != nil {
		return nil, err
	}
	const pragmas = "_pragma=busy_timeout(10000)&_pragma=journal_mode(WAL)&_pragma=synchronous(FULL)" +
		"&_pragma=foreign_keys(ON)&_pragma=cache_size(-16000)&_pragma=journal_size_limit(67108864)"
	file := "file:" + uriPath.Replace(path)
	// The writer's temp_store is not memory: its savepoints would keep each page that they change there, and
	// walk the list of those after every statement, which takes minutes in a transaction over 100,000 devices.
	write := openCached(file + "?_txlock=immediate&" + pragmas)
	write.SetMaxOpenConns(1)
	read := openCached(file + "?" + pragmas + "&_pragma=temp_store(MEMORY)&_pragma=query_only(ON)")
	read.SetMaxOpenConns(readConnections)
	read.SetMaxIdleConns(readConnections)
	db := &DB{dialect: SQLite, path: path, read: read, write: write}
	if err := write.PingContext(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("open sqlite %s: %w", path, err), db.Close())
	}
	return db, nil
}

// uriPath escapes what has a meaning in SQLite's file URIs (https://www.sqlite.org/uri.html).
var uriPath = strings.NewReplacer("%", "%25", "?", "%3f", "#", "%23")

func openPostgres(ctx context.Context, url string) (*DB, error) {
	pool, err := openPool(url)
	if err != nil {
		return nil, fmt.Errorf("open postgres: %w", err)
	}
	pool.SetMaxOpenConns(postgresConnections)
	pool.SetMaxIdleConns(postgresConnections)
	pool.SetConnMaxIdleTime(5 * time.Minute)
	db := &DB{dialect: Postgres, read: pool, write: pool}
	db.group.alone = db.writePostgres
	if err := pool.PingContext(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("connect to postgres: %w", err), db.Close())
	}
	return db, nil
}

// Close waits for the current write and closes all connections.
func (db *DB) Close() (err error) {
	db.closeOnce.Do(func() {
		db.group.close()
		err = db.write.Close()
		if db.read != db.write {
			err = errors.Join(err, db.read.Close())
		}
	})
	return err
}

// Dialect returns which SQL the database speaks.
func (db *DB) Dialect() Dialect { return db.dialect }

// Ping tells whether the database answers; for readiness.
func (db *DB) Ping(ctx context.Context) error {
	var one int
	return db.read.QueryRowContext(ctx, "SELECT 1").Scan(&one)
}

// QueryContext reads committed rows.
func (db *DB) QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error) {
	traced(ctx, query, args)
	return db.read.QueryContext(ctx, query, args...)
}

// QueryRowContext reads one committed row.
func (db *DB) QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row {
	traced(ctx, query, args)
	return db.read.QueryRowContext(ctx, query, args...)
}

// Write runs fn in a transaction and returns after the commit is durable, with fn's error or the
// database's. When fn fails, nothing of it remains. fn may run more than once.
func (db *DB) Write(ctx context.Context, fn func(tx *Tx) error) error {
	if db.dialect == SQLite {
		return db.WriteShared(ctx, fn)
	}
	return db.writeBy(ctx, db.writePostgres, fn)
}

// WriteShared is Write for the many small changes that a fleet makes: fn may share its transaction with
// those of concurrent callers, as it always does on SQLite. On PostgreSQL a node runs one such
// transaction at a time, which spares commits, and the repetitions that serializable transactions
// beside one another would need. fn must not wait for anything but the database.
func (db *DB) WriteShared(ctx context.Context, fn func(tx *Tx) error) error {
	return db.writeBy(ctx, func(ctx context.Context, fn func(*Tx) error) (*Tx, error) { return db.group.do(ctx, db.write, fn) }, fn)
}

func (db *DB) writeBy(ctx context.Context, write func(context.Context, func(*Tx) error) (*Tx, error), fn func(tx *Tx) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	tx, err := write(ctx, fn)
	if err != nil {
		return err
	}
	db.writes.Add(1)
	tx.committed() // here, so that a panic of it hits its own caller
	return nil
}

// A function is run again after a serialization failure or deadlock until this much time has passed;
// each pause is random, up to a bound that doubles.
const (
	retryTime     = 15 * time.Second
	retryPauseMin = 2 * time.Millisecond
	retryPauseMax = 250 * time.Millisecond
)

func (db *DB) writePostgres(ctx context.Context, fn func(tx *Tx) error) (*Tx, error) {
	bound := retryPauseMin
	for started := time.Now(); ; bound = min(2*bound, retryPauseMax) {
		tx, err := db.tryPostgres(ctx, fn)
		if err == nil {
			db.commits.Add(1)
			return tx, nil
		}
		if !retryable(err) || time.Since(started) > retryTime {
			return nil, err
		}
		db.retries.Add(1)
		pause := time.NewTimer(rand.N(bound))
		select {
		case <-pause.C:
		case <-ctx.Done():
			pause.Stop()
			return nil, ctx.Err()
		}
	}
}

func (db *DB) tryPostgres(ctx context.Context, fn func(tx *Tx) error) (*Tx, error) {
	conn, err := db.write.Conn(ctx)
	if err != nil {
		return nil, fmt.Errorf("begin: %w", err)
	}
	defer conn.Close() //nolint:errcheck // gives it back to the pool
	// Serializable, so that a function may read, decide and write as if it were alone, as it is on
	// SQLite. The transaction outlives ctx: a commit under way must not be torn into "perhaps".
	sqlTx, err := conn.BeginTx(context.WithoutCancel(ctx), &sql.TxOptions{Isolation: sql.LevelSerializable})
	if err != nil {
		return nil, fmt.Errorf("begin: %w", err)
	}
	defer sqlTx.Rollback() //nolint:errcheck // after a commit it does nothing
	tx := &Tx{tx: sqlTx, dialect: Postgres}
	if err := guarded(tx, fn); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := sqlTx.Commit(); err != nil {
		return nil, &commitError{err}
	}
	return tx, nil
}

// retryable tells whether PostgreSQL asks for the transaction to be run again:
// 40001 serialization_failure, 40P01 deadlock_detected.
func retryable(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && (pg.Code == "40001" || pg.Code == "40P01")
}

// IsUnique tells whether err is the refusal of a row that a unique index already has.
func IsUnique(err error) bool {
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		return pg.Code == "23505"
	}
	var lite *sqlite.Error
	return errors.As(err, &lite) &&
		(lite.Code() == sqlite3.SQLITE_CONSTRAINT_UNIQUE || lite.Code() == sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY)
}

// IsFull tells whether err says that the disk is full.
func IsFull(err error) bool {
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		return pg.Code == "53100"
	}
	var lite *sqlite.Error
	return errors.As(err, &lite) && lite.Code()&0xff == sqlite3.SQLITE_FULL
}

// Tx is a running transaction. It belongs to one goroutine and dies with the function it was given to:
// then its methods fail with sql.ErrTxDone.
type Tx struct {
	tx      *sql.Tx
	dialect Dialect
	grouped bool // others' functions share the transaction
	after   []func()
	over    atomic.Bool // the function has returned
}

// Dialect returns which SQL the database speaks.
func (tx *Tx) Dialect() Dialect { return tx.dialect }

// begin returns the context to run a statement under. An interrupted statement would take the
// transaction of a whole group with it, so there a context is looked at before each statement only.
func (tx *Tx) begin(ctx context.Context) (context.Context, error) {
	if tx.over.Load() {
		return ctx, sql.ErrTxDone
	}
	if tx.grouped {
		return context.WithoutCancel(ctx), ctx.Err()
	}
	return ctx, ctx.Err()
}

// text returns the query as the engine takes it best.
func (tx *Tx) text(query string) string {
	if tx.dialect == SQLite {
		return positional(query)
	}
	return query
}

// ExecContext changes rows.
func (tx *Tx) ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error) {
	ctx, err := tx.begin(ctx)
	if err != nil {
		return nil, err
	}
	traced(ctx, query, args)
	return tx.tx.ExecContext(ctx, tx.text(query), args...)
}

// Exec changes rows and returns how many.
func (tx *Tx) Exec(ctx context.Context, query string, args ...any) (int64, error) {
	res, err := tx.ExecContext(ctx, query, args...)
	if err != nil {
		return 0, err
	}
	return res.RowsAffected()
}

// QueryContext reads rows, those changed by this transaction included. They must be closed before the
// next statement: PostgreSQL serves one at a time.
func (tx *Tx) QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error) {
	ctx, err := tx.begin(ctx)
	if err != nil {
		return nil, err
	}
	traced(ctx, query, args)
	return tx.tx.QueryContext(ctx, tx.text(query), args...)
}

// QueryRowContext reads one row.
func (tx *Tx) QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row {
	ctx, err := tx.begin(ctx)
	if err != nil {
		// An sql.Row can only be made by a query: one that fails before it begins.
		dead, cancel := context.WithCancelCause(ctx)
		cancel(err)
		return tx.tx.QueryRowContext(dead, query, args...)
	}
	traced(ctx, query, args)
	return tx.tx.QueryRowContext(ctx, tx.text(query), args...)
}

// ReadCommitted lets the transaction see what others commit while it runs, instead of one unchanging
// snapshot that ends in a retry when they collide. It is for work ordered by a row lock of its own,
// must be the first statement, and changes nothing on SQLite, where there is one writer.
func (tx *Tx) ReadCommitted(ctx context.Context) error {
	if tx.dialect != Postgres {
		return nil
	}
	if tx.grouped {
		return errors.New("a shared transaction is serializable for all its functions")
	}
	_, err := tx.ExecContext(ctx, "SET TRANSACTION ISOLATION LEVEL READ COMMITTED")
	return err
}

// AfterCommit has fn called once the transaction is durable, and never when it is not. It is for
// wake-ups only: what must not be lost belongs into the transaction.
func (tx *Tx) AfterCommit(fn func()) { tx.after = append(tx.after, fn) }

func (tx *Tx) committed() {
	for _, fn := range tx.after {
		fn()
	}
}
