package sqldb

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"runtime/debug"
	"sync"
)

// groupCommit lets concurrent writers of SQLite share one transaction and so one fsync. There is no
// goroutine of its own: the first writer that finds nobody leading becomes the leader, runs its own
// function and those that others have queued meanwhile, commits, and tells each its result. Who
// arrives during the commit forms the next group.
type groupCommit struct {
	mu      sync.Mutex
	leading bool
	closed  bool
	queue   []*groupWrite
	idle    sync.Cond // signalled when a leader steps down; L is &mu, set by the first close
}

type groupWrite struct {
	ctx    context.Context
	fn     func(*Tx) error
	result chan error // one value
}

// groupLimit bounds how many functions share a commit, so that the first is not kept waiting.
const groupLimit = 512

var errClosed = errors.New("database is closed")

func (g *groupCommit) do(ctx context.Context, db *sql.DB, fn func(*Tx) error) error {
	w := &groupWrite{ctx: ctx, fn: fn, result: make(chan error, 1)}
	g.mu.Lock()
	if g.closed {
		g.mu.Unlock()
		return errClosed
	}
	g.queue = append(g.queue, w)
	if g.leading {
		g.mu.Unlock()
		return <-w.result // not ctx.Done: the outcome must be known once it is queued
	}
	g.leading = true
	for len(g.queue) > 0 {
		batch := g.queue[:min(len(g.queue), groupLimit)]
		g.queue = g.queue[len(batch):]
		g.mu.Unlock()
		commitGroup(db, batch)
		g.mu.Lock()
	}
	g.leading = false
	if g.idle.L != nil {
		g.idle.Broadcast()
	}
	g.mu.Unlock()
	return <-w.result
}

func (g *groupCommit) close() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed = true
	g.idle.L = &g.mu
	for g.leading {
		g.idle.Wait()
	}
}

// commitGroup runs the batch in one transaction, each function in a savepoint, and answers all.
func commitGroup(db *sql.DB, batch []*groupWrite) {
	errs := make([]error, len(batch))
	txs := make([]*Tx, len(batch))
	err := func() error {
		// The group's transaction outlives each caller's context.
		ctx := context.Background()
		sqlTx, err := db.BeginTx(ctx, nil)
		if err != nil {
			return fmt.Errorf("begin: %w", err)
		}
		defer sqlTx.Rollback() //nolint:errcheck // after a commit it does nothing
		for i, w := range batch {
			if errs[i] = w.ctx.Err(); errs[i] != nil {
				continue
			}
			txs[i] = &Tx{tx: sqlTx, dialect: SQLite}
			if errs[i], err = inSavepoint(ctx, sqlTx, txs[i], w.fn); err != nil {
				return err
			}
		}
		if err := sqlTx.Commit(); err != nil {
			return fmt.Errorf("commit: %w", err)
		}
		return nil
	}()
	for i, w := range batch {
		if errs[i] == nil && err != nil {
			errs[i] = err
		}
		if errs[i] == nil {
			txs[i].committed()
		}
		w.result <- errs[i]
	}
}

// inSavepoint returns fn's own error, and an error of the savepoint itself, which ends the group.
func inSavepoint(ctx context.Context, sqlTx *sql.Tx, tx *Tx, fn func(*Tx) error) (fnErr, groupErr error) {
	if _, err := sqlTx.ExecContext(ctx, "SAVEPOINT member"); err != nil {
		return nil, fmt.Errorf("savepoint: %w", err)
	}
	if fnErr = guarded(tx, fn); fnErr != nil {
		if _, err := sqlTx.ExecContext(ctx, "ROLLBACK TO member"); err != nil {
			return fnErr, fmt.Errorf("roll back to savepoint after %w: %w", fnErr, err)
		}
	}
	if _, err := sqlTx.ExecContext(ctx, "RELEASE member"); err != nil {
		return fnErr, fmt.Errorf("release savepoint: %w", err)
	}
	return fnErr, nil
}

// guarded turns a panic into an error: the function may belong to another caller than the one whose
// goroutine runs it.
func guarded(tx *Tx, fn func(*Tx) error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic in a database transaction: %v\n%s", p, debug.Stack())
		}
	}()
	return fn(tx)
}
