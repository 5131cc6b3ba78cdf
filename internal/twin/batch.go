package twin

import (
	"context"
	"errors"
	"slices"
	"sync"
)

// together lets concurrent callers share statements and commits. There is no goroutine of its own (as in
// sqldb's group commit): the first caller that finds nobody leading works off what waits and hands the
// lead to the next in the queue. Nothing is delayed on purpose: a caller alone is a batch of one.
//
//	queued ──withdrawn (context ended)──▶ not run
//	queued ──taken by a leader──▶ running ──▶ done
//	queued ──turn──▶ leads the next batch, itself first
type together[T any] struct {
	limit int                                         // calls in one batch
	run   func(ctx context.Context, calls []*call[T]) // sets each call's err; ctx is the leader's without its end

	mu      sync.Mutex
	leading bool // somebody leads or has been given the turn
	queue   []*call[T]
}

// errEnded is the outcome of the calls of a batch that was ended by a panic or runtime.Goexit.
var errEnded = errors.New("the batch was ended before its outcome")

// call is one caller's part of a batch.
type call[T any] struct {
	ctx  context.Context
	item T
	err  error
	turn chan struct{} // one token: lead the next batch
	done chan struct{} // closed when the outcome is final
}

// do has the item worked off in a batch and returns its outcome. When ctx ends before a batch has taken
// it, it is withdrawn; afterwards the outcome is waited for, since it must be known.
func (g *together[T]) do(ctx context.Context, item T) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	c := &call[T]{ctx: ctx, item: item, turn: make(chan struct{}, 1), done: make(chan struct{})}
	g.mu.Lock()
	g.queue = append(g.queue, c)
	if !g.leading {
		g.leading = true
		c.turn <- struct{}{} // the queue was empty
	}
	g.mu.Unlock()
	ended := ctx.Done()
	for {
		select {
		case <-c.turn:
			g.lead(ctx)
		case <-c.done:
			return c.err
		case <-ended:
			if g.withdraw(c) {
				return ctx.Err()
			}
			ended = nil
		}
	}
}

// withdraw takes a call out of the queue, unless a leader has it or it has been given the turn.
func (g *together[T]) withdraw(c *call[T]) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	i := slices.Index(g.queue, c)
	if i < 0 || len(c.turn) > 0 {
		return false
	}
	g.queue = slices.Delete(g.queue, i, i+1)
	return true
}

// lead runs one batch and passes the lead on, also when run panics or ends the goroutine.
func (g *together[T]) lead(ctx context.Context) {
	g.mu.Lock()
	n := min(len(g.queue), g.limit)
	batch := slices.Clone(g.queue[:n])
	clear(g.queue[:n])
	g.queue = g.queue[n:]
	g.mu.Unlock()
	finished := false
	defer func() {
		for _, c := range batch {
			if !finished && c.err == nil {
				c.err = errEnded
			}
			close(c.done)
		}
		g.mu.Lock()
		defer g.mu.Unlock()
		if len(g.queue) > 0 {
			g.queue[0].turn <- struct{}{}
			return
		}
		g.queue, g.leading = nil, false
	}()
	g.run(context.WithoutCancel(ctx), batch)
	finished = true
}
