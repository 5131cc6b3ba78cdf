// Package sqldb is the door to the database: SQLite inside the process, or PostgreSQL. Rooms write
// their SQL once for both; where the dialects differ they keep one query per dialect under the same
// name (see Dialect.Pick).
//
// Reading: DB.Query and DB.QueryRow see committed state. Writing: only inside DB.Write. On SQLite
// there is one writer with group commit: functions of concurrent callers run one after the other,
// each in its own savepoint, and share one fsync; Write returns after it. On PostgreSQL each function
// has its own transaction, run again when the database asks for it. So a function given to Write may
// run more than once: it must have no effect but through its Tx.
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
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	_ "github.com/jackc/pgx/v5/stdlib" // driver "pgx"
	"modernc.org/sqlite"               // driver "sqlite"
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
	read    *sql.DB
	write   *sql.DB // the same as read on PostgreSQL; one connection on SQLite

	group groupCommit // SQLite only

	closeOnce sync.Once
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
		"&_pragma=foreign_keys(ON)&_pragma=temp_store(MEMORY)&_pragma=cache_size(-16000)"
	file := "file:" + uriPath.Replace(path)
	write, err := sql.Open("sqlite", file+"?_txlock=immediate&"+pragmas)
	if err != nil {
		return nil, fmt.Errorf("open sqlite: %w", err)
	}
	write.SetMaxOpenConns(1)
	read, err := sql.Open("sqlite", file+"?"+pragmas+"&_pragma=query_only(ON)")
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open sqlite: %w", err), write.Close())
	}
	read.SetMaxOpenConns(readConnections)
	read.SetMaxIdleConns(readConnections)
	db := &DB{dialect: SQLite, read: read, write: write}
	if err := write.PingContext(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("open sqlite %s: %w", path, err), db.Close())
	}
	return db, nil
}

// uriPath escapes what has a meaning in SQLite's file URIs (https://www.sqlite.org/uri.html).
var uriPath = strings.NewReplacer("%", "%25", "?", "%3f", "#", "%23")

func openPostgres(ctx context.Context, url string) (*DB, error) {
	pool, err := sql.Open("pgx", url)
	if err != nil {
		return nil, fmt.Errorf("open postgres: %w", err)
	}
	pool.SetMaxOpenConns(postgresConnections)
	pool.SetMaxIdleConns(postgresConnections)
	pool.SetConnMaxIdleTime(5 * time.Minute)
	db := &DB{dialect: Postgres, read: pool, write: pool}
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
	return db.read.QueryContext(ctx, query, args...)
}

// QueryRowContext reads one committed row.
func (db *DB) QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row {
	return db.read.QueryRowContext(ctx, query, args...)
}

// Write runs fn in a transaction and returns after the commit is durable, with fn's error or the
// database's. When fn fails, nothing of it remains. fn may run more than once.
func (db *DB) Write(ctx context.Context, fn func(tx *Tx) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if db.dialect == SQLite {
		return db.group.do(ctx, db.write, fn)
	}
	return db.writePostgres(ctx, fn)
}

// postgresTries bounds how often a function is run again after a serialization failure or deadlock.
const postgresTries = 6

func (db *DB) writePostgres(ctx context.Context, fn func(tx *Tx) error) error {
	var err error
	for try := range postgresTries {
		if try > 0 {
			select {
			case <-time.After(time.Duration(1<<try) * 5 * time.Millisecond):
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		if err = db.tryPostgres(ctx, fn); !retryable(err) {
			return err
		}
	}
	return err
}

func (db *DB) tryPostgres(ctx context.Context, fn func(tx *Tx) error) error {
	sqlTx, err := db.write.BeginTx(ctx, nil)
	if err != nil {
		return fmt.Errorf("begin: %w", err)
	}
	defer sqlTx.Rollback() //nolint:errcheck // after a commit it does nothing
	tx := &Tx{tx: sqlTx, dialect: Postgres}
	if err := fn(tx); err != nil {
		return err
	}
	if err := sqlTx.Commit(); err != nil {
		return fmt.Errorf("commit: %w", err)
	}
	tx.committed()
	return nil
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

// Tx is a running transaction. It belongs to one goroutine and dies with the function it was given to.
type Tx struct {
	tx      *sql.Tx
	dialect Dialect
	after   []func()
}

// Dialect returns which SQL the database speaks.
func (tx *Tx) Dialect() Dialect { return tx.dialect }

// ExecContext changes rows.
func (tx *Tx) ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error) {
	return tx.tx.ExecContext(ctx, query, args...)
}

// Exec changes rows and returns how many.
func (tx *Tx) Exec(ctx context.Context, query string, args ...any) (int64, error) {
	res, err := tx.tx.ExecContext(ctx, query, args...)
	if err != nil {
		return 0, err
	}
	return res.RowsAffected()
}

// QueryContext reads rows, those changed by this transaction included.
func (tx *Tx) QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error) {
	return tx.tx.QueryContext(ctx, query, args...)
}

// QueryRowContext reads one row.
func (tx *Tx) QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row {
	return tx.tx.QueryRowContext(ctx, query, args...)
}

// ReadCommitted lets the transaction see what others commit while it runs, instead of one unchanging
// snapshot that ends in a retry when they collide. It is for work ordered by a row lock of its own,
// must be the first statement, and changes nothing on SQLite, where there is one writer.
func (tx *Tx) ReadCommitted(ctx context.Context) error {
	if tx.dialect != Postgres {
		return nil
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
