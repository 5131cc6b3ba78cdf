package sqldb

import (
	"container/list"
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"

	"modernc.org/sqlite"
)

// maxStatements bounds how many compiled statements one SQLite connection keeps, some 10 KiB each.
const maxStatements = 200

// openCached is sql.Open("sqlite", dsn) with connections that keep compiled statements: compiling costs
// SQLite more than running most of ours does, and a transaction over thousands of devices runs the same
// few again and again. SQLite itself compiles one anew when the schema has changed.
func openCached(dsn string) *sql.DB { return sql.OpenDB(&connector{dsn: dsn}) }

type connector struct {
	driver sqlite.Driver
	dsn    string
}

func (c *connector) Driver() driver.Driver { return &c.driver }

func (c *connector) Connect(context.Context) (driver.Conn, error) {
	conn, err := c.driver.Open(c.dsn)
	if err != nil {
		return nil, err
	}
	full, ok := conn.(sqliteConn)
	if !ok {
		return nil, errors.Join(fmt.Errorf("the SQLite driver's connection %T lacks a method", conn), conn.Close())
	}
	return &cachedConn{sqliteConn: full, byText: map[string]*list.Element{}, used: list.New()}, nil
}

// sqliteConn is what database/sql uses of the driver's connection.
type sqliteConn interface {
	driver.Conn
	driver.ConnBeginTx
	driver.ConnPrepareContext
	driver.Pinger
	driver.SessionResetter
	driver.Validator
}

// cachedConn is a connection with its compiled statements. Like every driver's connection it is used by
// one goroutine at a time.
type cachedConn struct {
	sqliteConn
	byText map[string]*list.Element // of *cachedStmt that nobody uses just now
	used   *list.List               // the most recently used first
}

type cachedStmt struct {
	text string
	stmt driver.Stmt
}

// take returns a compiled statement that is the caller's until it is given back. A statement whose rows
// are still being read is not in the cache, so the same text is compiled again then.
func (c *cachedConn) take(ctx context.Context, text string) (*cachedStmt, error) {
	if e, has := c.byText[text]; has {
		delete(c.byText, text)
		return c.used.Remove(e).(*cachedStmt), nil
	}
	stmt, err := c.PrepareContext(ctx, text)
	if err != nil {
		return nil, err
	}
	return &cachedStmt{text: text, stmt: stmt}, nil
}

// give keeps a statement for its next use. One that has failed is not kept.
func (c *cachedConn) give(s *cachedStmt, failed error) error {
	if _, has := c.byText[s.text]; has || failed != nil || c.byText == nil {
		return s.stmt.Close()
	}
	c.byText[s.text] = c.used.PushFront(s)
	if c.used.Len() <= maxStatements {
		return nil
	}
	oldest := c.used.Remove(c.used.Back()).(*cachedStmt)
	delete(c.byText, oldest.text)
	return oldest.stmt.Close()
}

// ExecContext implements driver.ExecerContext.
func (c *cachedConn) ExecContext(ctx context.Context, text string, args []driver.NamedValue) (driver.Result, error) {
	s, err := c.take(ctx, text)
	if err != nil {
		return nil, err
	}
	result, err := s.stmt.(driver.StmtExecContext).ExecContext(ctx, args)
	if gave := c.give(s, err); err == nil {
		err = gave
	}
	return result, err
}

// QueryContext implements driver.QueryerContext.
func (c *cachedConn) QueryContext(ctx context.Context, text string, args []driver.NamedValue) (driver.Rows, error) {
	s, err := c.take(ctx, text)
	if err != nil {
		return nil, err
	}
	rows, err := s.stmt.(driver.StmtQueryContext).QueryContext(ctx, args)
	if err != nil {
		return nil, errors.Join(err, c.give(s, err))
	}
	return &cachedRows{Rows: rows, conn: c, stmt: s}, nil
}

// Close closes the statements before their connection.
func (c *cachedConn) Close() (err error) {
	for e := c.used.Front(); e != nil; e = e.Next() {
		err = errors.Join(err, e.Value.(*cachedStmt).stmt.Close())
	}
	c.byText, c.used = nil, list.New()
	return errors.Join(err, c.sqliteConn.Close())
}

// cachedRows gives the statement back when all is read.
type cachedRows struct {
	driver.Rows
	conn *cachedConn
	stmt *cachedStmt
}

// Close implements driver.Rows; database/sql calls it once.
func (r *cachedRows) Close() error {
	err := r.Rows.Close()
	return errors.Join(err, r.conn.give(r.stmt, err))
}
