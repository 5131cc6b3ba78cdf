package sqldb

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// groupCommit lets concurrent writers share one transaction and so one fsync: all of SQLite's, and on
// PostgreSQL those that ask for it (DB.WriteShared). There is no goroutine of its own: the first writer that finds nobody leading becomes the leader, runs its own
// function and those that others have queued meanwhile, commits, and tells each its result. Then it
// hands the lead to the next in the queue: under load nobody leads for ever.
//
//	queued ──withdrawn (context ended)──▶ not run
//	queued ──taken by a leader──▶ running ──▶ committed | failed
//	queued ──turn──▶ leads the next group, itself first
type groupCommit struct {
	mu      sync.Mutex
	leading bool // somebody leads or has been given the turn
	closed  bool
	queue   []*groupWrite
	idle    *sync.Cond // signalled when nobody leads any more; made by close
	commits atomic.Int64
	retries atomic.Int64

	// alone is set for PostgreSQL: it runs one function in a transaction of its own, with repetitions.
	alone func(ctx context.Context, fn func(*Tx) error) (*Tx, error)
}

type groupWrite struct {
	ctx    context.Context
	fn     func(*Tx) error
	tx     *Tx // of the run that was committed
	err    error
	turn   chan struct{} // one token: lead the next group
	result chan struct{} // closed when err and tx are final
}

// A group ends at this many functions or this much time spent in them, so that the first is not kept
// waiting for its commit.
const (
	groupLimit = 512
	groupTime  = 50 * time.Millisecond
)

// ErrClosed is what Write returns after Close.
var ErrClosed = errors.New("database is closed")

func (g *groupCommit) do(ctx context.Context, db *sql.DB, fn func(*Tx) error) (*Tx, error) {
	w := &groupWrite{ctx: ctx, fn: fn, turn: make(chan struct{}, 1), result: make(chan struct{})}
	g.mu.Lock()
	if g.closed {
		g.mu.Unlock()
		return nil, ErrClosed
	}
	g.queue = append(g.queue, w)
	if !g.leading {
		g.leading = true
		w.turn <- struct{}{}
	}
	g.mu.Unlock()
	select {
	case <-w.turn:
		g.lead(db)
	case <-w.result:
	case <-ctx.Done():
		if g.withdraw(w) {
			return nil, ctx.Err()
		}
		// It is being run, or it must lead: the outcome has to be known.
		select {
		case <-w.turn:
			g.lead(db)
		case <-w.result:
		}
	}
	<-w.result
	return w.tx, w.err
}

// withdraw takes a write out of the queue, unless a leader has it or it has been given the turn.
func (g *groupCommit) withdraw(w *groupWrite) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	i := slices.Index(g.queue, w)
	if i < 0 || len(w.turn) > 0 {
		return false
	}
	g.queue = slices.Delete(g.queue, i, i+1)
	return true
}

// next takes the next write off the queue, or nil.
func (g *groupCommit) next() *groupWrite {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.queue) == 0 {
		return nil
	}
	w := g.queue[0]
	g.queue[0] = nil
	g.queue = g.queue[1:]
	return w
}

// lead runs one group, of which the caller's write is the first, and passes the lead on. It does both
// also when a function ends the goroutine (runtime.Goexit, as t.FailNow does).
func (g *groupCommit) lead(db *sql.DB) {
	run := &group{db: db, in: g}
	defer func() {
		run.answer()
		g.mu.Lock()
		defer g.mu.Unlock()
		if len(g.queue) > 0 {
			g.queue[0].turn <- struct{}{}
			return
		}
		g.queue = nil
		g.leading = false
		if g.idle != nil {
			g.idle.Broadcast()
		}
	}()
	if g.alone != nil {
		run.shared()
		return
	}
	run.together()
	var unsure *commitError
	if run.err != nil && len(run.members) > 1 && (!errors.As(run.err, &unsure) || IsFull(run.err)) {
		run.apart()
	}
}

// close waits for what is queued and refuses what comes later.
func (g *groupCommit) close() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed = true
	if g.idle == nil {
		g.idle = sync.NewCond(&g.mu)
	}
	for g.leading {
		g.idle.Wait()
	}
}

// group is what one leader runs.
type group struct {
	db      *sql.DB
	in      *groupCommit
	members []*groupWrite
	err     error // of the transaction, which no member survives
}

// errEnded is the outcome for a function, and its neighbours, that ended the goroutine instead of
// returning.
var errEnded = errors.New("the transaction was ended by its function")

// answer tells every member its result.
func (g *group) answer() {
	for _, w := range g.members {
		if w.err == nil && w.tx == nil {
			w.err = g.err
		}
		if w.err == nil && w.tx == nil {
			w.err = errEnded
		}
		close(w.result)
	}
}

// together runs functions in one transaction, each in a savepoint, for as long as there are some.
func (g *group) together() {
	txs := map[*groupWrite]*Tx{}
	g.err = inTransaction(g.db, nil, func(sqlTx *sql.Tx) error {
		for started := time.Now(); len(g.members) < groupLimit && time.Since(started) < groupTime; {
			w := g.in.next()
			if w == nil {
				break
			}
			g.members = append(g.members, w)
			tx, err := w.runIn(sqlTx)
			if err != nil {
				return err
			}
			txs[w] = tx
		}
		return nil
	})
	if g.err != nil {
		if len(g.members) == 0 { // it could not begin
			if w := g.in.next(); w != nil {
				g.members = append(g.members, w)
			}
		}
		return
	}
	g.in.commits.Add(1)
	for w, tx := range txs {
		w.tx = tx
	}
}

// apart runs each function again in a transaction of its own, after the shared one failed and surely
// left nothing: whose fault it was, a row too big for the disk, must not fail the others.
func (g *group) apart() {
	for _, w := range g.members {
		w.err = nil
		var tx *Tx
		g.err = inTransaction(g.db, nil, func(sqlTx *sql.Tx) (err error) {
			tx, err = w.runIn(sqlTx)
			return err
		})
		switch {
		case w.err != nil:
		case g.err != nil:
			w.err = g.err
		default:
			g.in.commits.Add(1)
			w.tx = tx
		}
	}
}

// inTransaction commits what fn did, or nothing. The transaction outlives each caller's context.
func inTransaction(db *sql.DB, options *sql.TxOptions, fn func(*sql.Tx) error) error {
	sqlTx, err := db.BeginTx(context.Background(), options)
	if err != nil {
		return fmt.Errorf("begin: %w", err)
	}
	defer sqlTx.Rollback() //nolint:errcheck // after a commit it does nothing
	if err := fn(sqlTx); err != nil {
		return err
	}
	if err := sqlTx.Commit(); err != nil {
		return &commitError{err}
	}
	return nil
}

// commitError says that the commit itself failed: whether it took effect may be unknown.
type commitError struct{ err error }

func (e *commitError) Error() string { return "commit: " + e.err.Error() }
func (e *commitError) Unwrap() error { return e.err }

// runIn runs the write in a savepoint. Its own error is in w.err; the returned one is of the savepoint
// and ends the whole transaction. SQLite rolls all of it back by itself when the disk is full.
func (w *groupWrite) runIn(sqlTx *sql.Tx) (*Tx, error) {
	if w.err = w.ctx.Err(); w.err != nil {
		return nil, nil
	}
	ctx := context.Background()
	if _, err := sqlTx.ExecContext(ctx, "SAVEPOINT member"); err != nil {
		return nil, fmt.Errorf("savepoint: %w", err)
	}
	tx := &Tx{tx: sqlTx, dialect: SQLite, grouped: true}
	w.err = guarded(tx, w.fn)
	if w.err != nil {
		if _, err := sqlTx.ExecContext(ctx, "ROLLBACK TO member"); err != nil {
			return nil, fmt.Errorf("roll back to savepoint after %w: %w", w.err, err)
		}
	}
	if _, err := sqlTx.ExecContext(ctx, "RELEASE member"); err != nil {
		return nil, fmt.Errorf("release savepoint: %w", err)
	}
	return tx, nil
}

// guarded turns a panic into an error: the function may belong to another caller than the one whose
// goroutine runs it.
func guarded(tx *Tx, fn func(*Tx) error) (err error) {
	defer func() {
		tx.over.Store(true)
		if p := recover(); p != nil {
			err = fmt.Errorf("panic in a database transaction: %v\n%s", p, debug.Stack())
		}
	}()
	return fn(tx)
}
