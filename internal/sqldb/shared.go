package sqldb

import (
	"database/sql"
	"errors"
	"slices"
)

// On PostgreSQL a group is smaller, since a conflict with anybody repeats all of it, and is run together so
// many times at most.
const (
	sharedLimit = 64
	sharedTries = 4
)

// shared runs functions in one serializable transaction of PostgreSQL. They have no savepoints, which cost
// a round trip each and make a transaction with many of them slow for everybody: when a function fails,
// the transaction is undone, the others are run again without it, and it alone.
func (g *group) shared() {
	for w := g.in.next(); w != nil; {
		g.members = append(g.members, w)
		if w = nil; len(g.members) < sharedLimit {
			w = g.in.next()
		}
	}
	run := slices.Clone(g.members)
	for try := 1; len(run) > 1 && try <= sharedTries; try++ {
		failed, err := g.runShared(run)
		var unsure *commitError
		switch {
		case err == nil:
			run = nil
		case retryable(err):
			g.in.retries.Add(1)
		case errors.As(err, &unsure):
			g.err = err
			return
		case failed != nil:
			run = slices.DeleteFunc(run, func(w *groupWrite) bool { return w == failed })
		default:
			try = sharedTries // it could not begin: each shall hear why
		}
	}
	for _, w := range g.members {
		if w.tx == nil && w.err == nil {
			w.tx, w.err = g.in.alone(w.ctx, w.fn)
		}
	}
}

// runShared runs and commits the functions, or leaves nothing of them and returns the one that failed.
func (g *group) runShared(run []*groupWrite) (failed *groupWrite, err error) {
	txs := map[*groupWrite]*Tx{}
	err = inTransaction(g.db, &sql.TxOptions{Isolation: sql.LevelSerializable}, func(sqlTx *sql.Tx) error {
		for _, w := range run {
			if w.err = w.ctx.Err(); w.err != nil {
				continue
			}
			tx := &Tx{tx: sqlTx, dialect: Postgres, grouped: true}
			if err := guarded(tx, w.fn); err != nil {
				failed = w
				return err
			}
			txs[w] = tx
		}
		return nil
	})
	if err != nil {
		return failed, err
	}
	g.in.commits.Add(1)
	for w, tx := range txs {
		w.tx = tx
	}
	return nil, nil
}
