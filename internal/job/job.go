// Package job drives long work in small steps, each a transaction of its own, so that no other writer
// waits for long, the work outlives the request and the process that began it, and people see how far
// it is.
//
// The work itself is rows of the room that has it: what is to be done, how far it is, and when somebody
// last was at it ("touched"). A step looks there what comes next, does that and notes it, all in its
// transaction; so a step that is lost does nothing, and one that runs on two nodes at a time is
// ordered by the rows that it locks. The touch only keeps nodes from doing the same work side by side.
//
//	begun ──Do──▶ steps ──────────▶ done
//	               │ patience over, or the process died
//	               ▼
//	         Run of any node goes on
package job

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"steward/internal/sqldb"
)

// Work is one kind of long work.
type Work interface {
	// Waiting lists the IDs of unfinished work that nobody has touched since the given time.
	Waiting(ctx context.Context, untouched time.Time) ([]string, error)
	// Step does the next part of about size units and notes that it was touched; done tells that nothing
	// is left, also when there was nothing in the first place. It may run more than once.
	Step(ctx context.Context, tx *sqldb.Tx, id string, size int) (done bool, err error)
}

// Config of a Runner.
type Config struct {
	Name string           // of the kind of work, for the log
	DB   *sqldb.DB        // required
	Work Work             // required
	Now  func() time.Time // nil means time.Now; also what "touched" is compared with
	Log  *slog.Logger     // nil means slog.Default
}

const (
	// stale is after how long without a step another node takes the work over. A step takes well under a
	// second, so this also bears clocks that differ by some seconds.
	stale = 15 * time.Second
	// look is how often Run looks for work that another node has left.
	look = 5 * time.Second
	// A step's size is set so that it takes about this long in its transaction.
	stepTime                    = 60 * time.Millisecond
	firstStep, minStep, maxStep = 200, 100, 5000
	maxPause                    = time.Minute // between tries of work that fails
)

// Runner drives one kind of work; safe for concurrent use.
type Runner struct {
	cfg  Config
	wake chan struct{}

	mu   sync.Mutex
	busy map[string]bool // work that this node is at
	left []string        // by Do, for Run
	size int
}

// New returns a Runner; it starts nothing.
func New(cfg Config) *Runner {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	return &Runner{cfg: cfg, wake: make(chan struct{}, 1), busy: map[string]bool{}, size: firstStep}
}

// Do goes on with the work until it is done, or until the patience or ctx ends; then Run goes on with it.
// An error of a step is returned: the work waits for Run, which tries again.
func (r *Runner) Do(ctx context.Context, id string, patience time.Duration) (done bool, err error) {
	if !r.claim(id) {
		return false, nil // Run is at it
	}
	defer func() { r.release(id, done) }()
	for end := time.Now().Add(patience); !done && err == nil && ctx.Err() == nil && time.Now().Before(end); {
		done, err = r.step(ctx, id)
	}
	return done, err
}

// Run goes on with work that waits, one after the other, until ctx ends. Each node runs it.
func (r *Runner) Run(ctx context.Context) error {
	failures := map[string]failure{}
	tick := time.NewTicker(look)
	defer tick.Stop()
	ids := r.abandoned(ctx)
	for ctx.Err() == nil {
		r.sweep(ctx, ids, failures)
		select {
		case <-r.wake:
			ids = r.takeLeft()
		case <-tick.C:
			ids = r.abandoned(ctx)
		case <-ctx.Done():
		}
	}
	return nil
}

// abandoned lists the work that no other node is at. SQLite has this one process alone.
func (r *Runner) abandoned(ctx context.Context) []string {
	untouched := r.cfg.Now()
	if r.cfg.DB.Dialect() == sqldb.Postgres {
		untouched = untouched.Add(-stale)
	}
	ids, err := r.cfg.Work.Waiting(ctx, untouched)
	if err != nil && ctx.Err() == nil {
		r.cfg.Log.ErrorContext(ctx, "look for unfinished work", "work", r.cfg.Name, "error", err)
	}
	return ids
}

// failure is when work that failed is tried again.
type failure struct {
	pause time.Duration
	again time.Time
}

// sweep brings the work to its end.
func (r *Runner) sweep(ctx context.Context, ids []string, failures map[string]failure) {
	for _, id := range ids {
		f := failures[id]
		if time.Now().Before(f.again) || !r.claim(id) {
			continue
		}
		err := r.finish(ctx, id)
		r.release(id, true)
		if err == nil || ctx.Err() != nil {
			delete(failures, id)
			continue
		}
		f.pause = min(max(2*f.pause, look), maxPause)
		f.again = time.Now().Add(f.pause)
		failures[id] = f
		r.cfg.Log.ErrorContext(ctx, "long work failed and will be tried again", "work", r.cfg.Name, "id", id, "pause", f.pause, "error", err)
	}
}

func (r *Runner) finish(ctx context.Context, id string) error {
	for ctx.Err() == nil {
		if done, err := r.step(ctx, id); done || err != nil {
			return err
		}
	}
	return nil
}

// step runs one step and learns from it how long the next should be. What counts is the time from its
// beginning to the end of its commit, since that is what others wait for: on SQLite writing the pages of
// a large step takes longer than changing them.
func (r *Runner) step(ctx context.Context, id string) (done bool, err error) {
	r.mu.Lock()
	size := r.size
	r.mu.Unlock()
	var began time.Time
	err = r.cfg.DB.Write(ctx, func(tx *sqldb.Tx) error {
		began = time.Now()
		done, err = r.cfg.Work.Step(ctx, tx, id, size)
		return err
	})
	if err != nil {
		return false, err
	}
	if !done {
		r.learn(size, time.Since(began))
	}
	return done, nil
}

// learn follows the machine, by a factor of two at most so that one slow step does not mean much.
func (r *Runner) learn(size int, took time.Duration) {
	next := int(float64(size) * float64(stepTime) / float64(max(took, time.Millisecond)))
	next = min(max(next, size/2, minStep), size*2, maxStep)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.size = next
}

func (r *Runner) claim(id string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.busy[id] {
		return false
	}
	r.busy[id] = true
	return true
}

// release lets others have the work; when it is not done, Run of this node is to go on with it.
func (r *Runner) release(id string, done bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.busy, id)
	if done {
		return
	}
	r.left = append(r.left, id)
	select {
	case r.wake <- struct{}{}:
	default: // a token is waiting already
	}
}

func (r *Runner) takeLeft() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	ids := r.left
	r.left = nil
	return ids
}
