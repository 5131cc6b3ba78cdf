// Package run holds a program's long-running parts together: each is a named function that works until
// its context ends; when one fails, the others are told to stop, and all are waited for.
package run

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"sync"
)

// Group collects functions and runs them as one. The zero Group is ready to use. Add everything
// first, then call Run once; a Group is not safe for concurrent use before that.
type Group struct{ members []member }

type member struct {
	name string
	run  func(context.Context) error
}

// Add puts a function into the group. It should return when its context ends. Returning nil earlier
// means that its work is done and leaves the others running; any other error stops them.
func (g *Group) Add(name string, run func(ctx context.Context) error) {
	g.members = append(g.members, member{name, run})
}

// Run starts all functions and returns when every one has returned. The error is that of the first
// that failed by itself, with its name, joined with those of others that failed for another reason
// than being told to stop. When ctx ends and all follow, it returns nil.
func (g *Group) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var (
		wg   sync.WaitGroup
		mu   sync.Mutex
		errs []error
	)
	for _, m := range g.members {
		wg.Go(func() {
			err := m.guarded(ctx)
			if err == nil || (ctx.Err() != nil && errors.Is(err, context.Canceled)) {
				return
			}
			mu.Lock()
			errs = append(errs, fmt.Errorf("%s: %w", m.name, err))
			mu.Unlock()
			cancel()
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// guarded makes a panic an error, so that the other members can stop in order: journals are closed,
// the database checkpointed, before the program ends with the stack in its last words.
func (m member) guarded(ctx context.Context) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
		}
	}()
	return m.run(ctx)
}
