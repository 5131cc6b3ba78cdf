package update

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"steward/internal/wire"
)

// phase is where a run stands: the step that is to be done or was begun.
type phase string

const (
	fetching   phase = "fetch"
	unpacking  phase = "unpack"
	preparing  phase = "pre"
	switching  phase = "switch"
	finishing  phase = "post"
	checking   phase = "health"
	goingBack  phase = "rollback"
	ended      phase = "" // the state says how
	maxStarts        = 5  // how often one step may be begun before the run goes back
	maxTries         = 3  // how often a refused or damaged delivery is fetched again before the run fails
	maxOutput        = 2 << 10
	maxCause         = 500
	stepFetch        = "download"
	stepVerify       = "verify"
	stepUnpack       = "unpack"
	stepSwitch       = "switch"
	neverAgain       = "is not tried again until the operator asks for another attempt"
)

// run is one attempt at one release.
type run struct {
	Ref      wire.ReleaseRef     `json:"ref"`
	Phase    phase               `json:"phase"`
	Starts   int                 `json:"starts"` // of the present phase
	Parts    []part              `json:"parts,omitempty"`
	Manifest wire.Hash           `json:"manifest,omitempty"`
	Progress wire.UpdateProgress `json:"progress"`
}

// bound tells whether the run must go to its end: something that runs may have been touched.
func (x *run) bound() bool {
	switch x.Phase {
	case preparing, switching, finishing, checking, goingBack:
		return true
	}
	return false
}

// is tells whether the run is the attempt that a wish asks for.
func (x *run) is(ref wire.ReleaseRef) bool {
	return x.Ref.Version == ref.Version && x.Ref.Assignment == ref.Assignment && x.Ref.Attempt == ref.Attempt
}

// refusal is an error that ends the run: repeating would give the same.
type refusal struct {
	step   string
	cause  string
	output string
}

func (e *refusal) Error() string { return e.cause }

func refuse(step, format string, args ...any) error {
	return &refusal{step: step, cause: fmt.Sprintf(format, args...)}
}

// Run works until ctx ends: it first ends what a kill has left in the middle, then sees to the wishes.
func (r *Room) Run(ctx context.Context) error {
	for _, dir := range []string{r.cfg.Dir, r.downloads(), r.tufDir(), r.cfg.StateDir + "/manifests"} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("make directory: %w", err)
		}
	}
	trouble := 0
	for {
		done, err := r.step(ctx)
		if ctx.Err() != nil {
			return nil //nolint:nilerr // the journal knows where to go on
		}
		switch {
		case err != nil:
			trouble++
			r.cfg.Log.Warn("update", "error", err, "repetition", trouble)
			r.pause(ctx, r.cfg.Backoff(trouble))
		case done:
			trouble = 0
			select {
			case <-r.wake:
			case <-ctx.Done():
				return nil
			}
		default:
			trouble = 0
		}
	}
}

// pause waits for the time or for a new wish.
func (r *Room) pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-r.wake:
	case <-ctx.Done():
	}
}

// step does the next piece of work; done says that there is none. An error may pass.
func (r *Room) step(ctx context.Context) (done bool, err error) {
	s, desired, applied := r.snapshot()
	for _, name := range sortedKeys(s.Runs) {
		if s.Runs[name].bound() {
			return false, r.advance(ctx, s.Runs[name])
		}
	}
	if !applied {
		return true, nil // what was being fetched goes on once the wish is heard again
	}
	wanted := map[string]bool{}
	for _, ref := range desired {
		wanted[ref.Name] = true
	}
	for _, name := range sortedKeys(s.Runs) {
		if x := s.Runs[name]; x.Phase != ended && !wanted[name] {
			return false, r.drop(name)
		}
	}
	for _, ref := range desired {
		x := s.Runs[ref.Name]
		if x == nil || !x.is(ref) {
			return false, r.begin(ref, s)
		}
		if x.Phase != ended {
			return false, r.advance(ctx, x)
		}
	}
	return true, nil
}

// drop forgets a run that nobody wants any more and that has touched nothing. An update that ended
// stays in the report.
func (r *Room) drop(name string) error {
	return r.save(func(s *state) { delete(s.Runs, name) })
}

// begin starts a run, or commits at once when the wanted version runs already.
func (r *Room) begin(ref wire.ReleaseRef, s state) error {
	now := r.now()
	x := &run{Ref: ref, Phase: fetching, Progress: wire.UpdateProgress{
		Name: ref.Name, Version: ref.Version, Assignment: ref.Assignment, Attempt: ref.Attempt,
	}}
	x.reach(wire.UpdateDownloading, now)
	if s.Installed[ref.Name].Version == ref.Version {
		x.Phase = ended
		x.Progress.Reached = nil
		x.reach(wire.UpdateCommitted, now)
	}
	return r.save(func(s *state) { s.Runs[ref.Name] = x })
}

func (x *run) reach(st wire.UpdateState, at time.Time) {
	x.Progress.State, x.Progress.Changed = st, at
	x.Progress.Reached = append(x.Progress.Reached, wire.UpdateReached{State: st, At: at})
}

// advance does the run's present phase. It is written down before that the phase is begun once more,
// so that a phase that kills the machine is noticed.
func (r *Room) advance(ctx context.Context, x *run) error {
	if x.bound() {
		if err := r.countStart(x); err != nil {
			return err
		}
	}
	err := r.perform(ctx, x)
	if err == nil || ctx.Err() != nil {
		return err
	}
	var no *refusal
	if !errors.As(err, &no) {
		return err
	}
	if x.bound() {
		return r.goBack(x, no)
	}
	return r.fail(x, no)
}

// errStarts is what a phase that was begun too often ends with.
func errStarts(x *run) *refusal {
	return &refusal{step: string(x.Phase), cause: fmt.Sprintf("the device stopped %d times during the step %q", x.Starts, x.Phase)}
}

// countStart notes that the phase begins (again). Going back is not bounded: it must end.
func (r *Room) countStart(x *run) error {
	x.Starts++
	return r.save(func(s *state) { s.Runs[x.Ref.Name].Starts = x.Starts })
}

// perform does one phase and, when it worked, writes down the next one.
func (r *Room) perform(ctx context.Context, x *run) error {
	if x.bound() && x.Phase != goingBack && x.Starts > maxStarts {
		return errStarts(x)
	}
	switch x.Phase {
	case fetching:
		return r.fetch(ctx, x)
	case unpacking:
		return r.unpackAll(ctx, x)
	case preparing:
		if err := r.commands(ctx, x, preparing); err != nil {
			return err
		}
		return r.enter(x, switching, nil)
	case switching:
		if err := r.switchAll(x); err != nil {
			return err
		}
		return r.enter(x, finishing, nil)
	case finishing:
		if err := r.commands(ctx, x, finishing); err != nil {
			return err
		}
		return r.enter(x, checking, func(next *run) { next.reach(wire.UpdateInstalled, r.now()) })
	case checking:
		if err := r.health(ctx, x); err != nil {
			return err
		}
		return r.commit(x)
	case goingBack:
		return r.rollBack(ctx, x)
	}
	return fmt.Errorf("update %s stands in the unknown phase %q", x.Ref.Name, x.Phase)
}

// enter writes down that the run goes on with the phase.
func (r *Room) enter(x *run, p phase, with func(next *run)) error {
	return r.save(func(s *state) {
		next := s.Runs[x.Ref.Name]
		next.Phase, next.Starts = p, 0
		if with != nil {
			with(next)
		}
	})
}

// commit makes the new version the installed one and ends the run, in one write. Until it is on disk
// the update is not committed, and a kill before it checks the health once more.
func (r *Room) commit(x *run) error {
	now := r.now()
	err := r.save(func(s *state) {
		next := s.Runs[x.Ref.Name]
		next.reach(wire.UpdateHealthy, now)
		next.reach(wire.UpdateCommitted, now)
		next.Phase, next.Starts = ended, 0
		s.Installed[x.Ref.Name] = installed{Version: x.Ref.Version, Since: now, Manifest: x.Manifest, Parts: x.Parts}
	})
	if err != nil {
		return err
	}
	r.cfg.Log.Info("update committed", "release", x.Ref.Name, "version", x.Ref.Version)
	r.tidy() // what it can't remove now, the next one does
	return nil
}

// fail ends a run that has touched nothing.
func (r *Room) fail(x *run, why *refusal) error {
	r.cfg.Log.Error("update failed", "release", x.Ref.Name, "version", x.Ref.Version, "step", why.step, "cause", why.cause)
	err := r.save(func(s *state) {
		next := s.Runs[x.Ref.Name]
		next.Phase, next.Starts = ended, 0
		next.blame(why)
		next.reach(wire.UpdateFailed, r.now())
	})
	if err == nil {
		r.tidy()
	}
	return err
}

// goBack writes down the decision to go back with its first cause.
func (r *Room) goBack(x *run, why *refusal) error {
	r.cfg.Log.Error("update goes back", "release", x.Ref.Name, "version", x.Ref.Version, "step", why.step, "cause", why.cause)
	return r.enter(x, goingBack, func(next *run) { next.blame(why) })
}

// blame keeps the first cause.
func (x *run) blame(why *refusal) {
	if x.Progress.Cause == "" {
		x.Progress.Cause, x.Progress.Step, x.Progress.Output = clip(why.cause, maxCause), why.step, tail(why.output, maxOutput)
	}
}

// rollBack puts the links back, starts again what ran before, and ends the run.
func (r *Room) rollBack(ctx context.Context, x *run) error {
	if err := r.switchBack(x); err != nil {
		return err // tried again: there is nothing better to do
	}
	// The commands may be what stops the device: they get a few chances, the end of the run does not
	// depend on them.
	if x.Starts <= maxStarts {
		if err := r.restartPrevious(ctx, x); err != nil {
			if ctx.Err() != nil {
				return err
			}
			r.cfg.Log.Error("start what ran before", "release", x.Ref.Name, "error", err)
		}
	}
	err := r.save(func(s *state) {
		next := s.Runs[x.Ref.Name]
		next.Phase, next.Starts = ended, 0
		next.reach(wire.UpdateRolledBack, r.now())
	})
	if err == nil {
		r.tidy()
	}
	return err
}

func clip(s string, n int) string {
	if len(s) > n {
		s = s[:n]
	}
	return s
}

func tail(s string, n int) string {
	if len(s) > n {
		s = s[len(s)-n:]
	}
	return s
}
