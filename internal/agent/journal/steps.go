package journal

import (
	"context"
	"fmt"
)

// Step is one step of a journaled state machine. Do may run again after a kill that came between it
// and the record of its end, so doing it twice must be the same as once.
type Step struct {
	Name string
	Do   func(ctx context.Context) error
}

// progress is what Steps stores under its key.
type progress struct {
	Run  string `json:"run"`
	Done string `json:"done"` // the last step that ended
}

// Steps runs the steps in order, each until its end is on stable storage before the next begins.
// After a kill or an error, calling it again with the same key and run goes on with the first step
// that had not ended. Another run (a new order, a new attempt) starts from the first step. The key's
// record stays, so that a finished run stays finished.
func (j *Journal) Steps(ctx context.Context, key, run string, steps []Step) error {
	var p progress
	if _, err := j.Get(key, &p); err != nil {
		return err
	}
	next := 0
	if p.Run == run {
		for i, s := range steps {
			if s.Name == p.Done {
				next = i + 1
			}
		}
	}
	for _, s := range steps[next:] {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := s.Do(ctx); err != nil {
			return fmt.Errorf("%s: %w", s.Name, err)
		}
		if err := j.Put(key, progress{Run: run, Done: s.Name}); err != nil {
			return err
		}
	}
	return nil
}
