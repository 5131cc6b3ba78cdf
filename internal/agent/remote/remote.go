// Package remote does what an operator asks of the device once, now. It installs and changes nothing:
// that takes a signed release.
//
//	command → begun (journal) → done → result (journal) → sent until acknowledged → told (journal)
//
// Each ID is done at most once, whatever the kills: a command that was begun and has no result when the
// agent starts again has failed. The server gives a command until it has the result, so what was lost
// before it was begun comes again. IDs are remembered until the deadline after which nothing is done.
package remote

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"strings"
	"sync"
	"time"

	"steward/internal/agent/journal"
	"steward/internal/agent/link"
	"steward/internal/wire"
)

// Bounds of what is kept.
const (
	maxWaiting = 64  // commands that were taken and not begun; the server gives the others again
	maxRecords = 256 // IDs that are remembered
	// graceAfter is how long an ID is remembered beyond its deadline: clocks are set.
	graceAfter = time.Hour
	keptOutput = 2 << 10 // bytes of an output that outlive the server's acknowledgement
	// giveUpAfter ends the sending of a result that nobody takes.
	giveUpAfter = 7 * 24 * time.Hour
)

// keyPrefix of the journal's records, one per command.
const keyPrefix = "remote/"

// idPattern keeps an ID from being a path, a topic filter or a long key.
var idPattern = regexp.MustCompile(`^[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}$`)

// Command does one thing; output is any JSON value of at most wire.MaxCommandBytes, or nil. ctx ends at
// the deadline. ErrRefused in the error's chain tells that nothing was done.
type Command func(ctx context.Context, params json.RawMessage) (output any, err error)

// ErrRefused makes a result "refused" instead of "failed".
var ErrRefused = errors.New("refused")

// Sender sends a result; nil means that the server has stored it.
type Sender interface {
	PostResult(ctx context.Context, id string, r wire.RemoteResult) error
}

// Config of a Room; everything but Retry is required.
type Config struct {
	Journal  *journal.Journal
	Sender   Sender
	Commands map[string]Command // by name
	// Now is the agent's clock, which the server has set right.
	Now   func() time.Time
	Retry link.Backoff
	Log   *slog.Logger
}

// record is what must survive of a command.
type record struct {
	Deadline time.Time          `json:"deadline"`
	Result   *wire.RemoteResult `json:"result,omitempty"` // nil: begun
	Told     bool               `json:"told,omitempty"`   // the server has the result, of which a long output is kept no longer
}

// Room is safe for use by several goroutines.
type Room struct {
	cfg  Config
	wake chan struct{} // capacity 1: there is something to do

	mu      sync.Mutex
	waiting []wire.RemoteCommand // taken, not begun
	records map[string]record    // by ID; of the one that runs, too
}

// New reads the journal. What was begun and has no result has failed.
func New(cfg Config) (*Room, error) {
	r := &Room{cfg: cfg, wake: make(chan struct{}, 1), records: map[string]record{}}
	for _, key := range cfg.Journal.Keys(keyPrefix) {
		id := strings.TrimPrefix(key, keyPrefix)
		var rec record
		if _, err := cfg.Journal.Get(key, &rec); err != nil {
			return nil, err
		}
		if rec.Result == nil {
			rec.Result = &wire.RemoteResult{State: wire.CommandFailed, Cause: "the agent was stopped while the command ran", At: cfg.Now().UTC()}
		}
		r.records[id] = rec
	}
	return r, nil
}

// Name of the room.
func (r *Room) Name() string { return "remote" }

// Section is empty: commands are no desired state.
func (r *Room) Section() wire.Section { return "" }

// Apply has nothing to take.
func (r *Room) Apply(context.Context, []byte) error { return nil }

// Reported is empty: results have a way of their own.
func (r *Room) Reported(context.Context) (map[wire.Section]any, error) { return nil, nil }

// Take notes commands that the server gives, the same ones any number of times, and returns at once.
func (r *Room) Take(commands []wire.RemoteCommand) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range commands {
		r.take(c)
	}
	select {
	case r.wake <- struct{}{}:
	default: // it will look anyway
	}
}

// take is called with the lock held.
func (r *Room) take(c wire.RemoteCommand) {
	if !idPattern.MatchString(c.ID) {
		r.cfg.Log.Warn("command without a usable ID ignored", "id", fmt.Sprintf("%.80q", c.ID))
		return
	}
	if rec, known := r.records[c.ID]; known {
		rec.Told = false // the server has lost the result, or this crossed it on the way
		r.records[c.ID] = rec
		return
	}
	for _, w := range r.waiting {
		if w.ID == c.ID {
			return
		}
	}
	if len(r.waiting) >= maxWaiting || len(r.records)+len(r.waiting) >= maxRecords {
		r.cfg.Log.Warn("too many commands at once: one is left to come again", "id", c.ID)
		return
	}
	r.waiting = append(r.waiting, c)
}

// Run does commands one after another and sends results until ctx ends.
func (r *Room) Run(ctx context.Context) error {
	retry := r.cfg.Retry
	for ctx.Err() == nil {
		for r.doNext(ctx) {
		}
		r.forget()
		var again <-chan time.Time
		var timer *time.Timer
		if err := r.tell(ctx); err != nil && ctx.Err() == nil {
			r.cfg.Log.Debug("result of a command not sent", "error", err)
			timer = time.NewTimer(retry.Next(err))
			again = timer.C
		} else {
			retry.Reset()
		}
		select {
		case <-ctx.Done():
		case <-r.wake:
		case <-again:
		}
		if timer != nil {
			timer.Stop()
		}
	}
	return nil
}

// doNext does the oldest command that waits and tells whether there was one.
func (r *Room) doNext(ctx context.Context) bool {
	r.mu.Lock()
	if len(r.waiting) == 0 || ctx.Err() != nil {
		r.mu.Unlock()
		return false
	}
	c := r.waiting[0]
	r.waiting = r.waiting[1:]
	r.records[c.ID] = record{Deadline: c.Deadline}
	r.mu.Unlock()
	result := r.perform(ctx, c)
	if result == nil {
		return false // stopped in the middle: the next start says so
	}
	r.cfg.Log.Info("command", "name", c.Name, "id", c.ID, "state", result.State, "cause", result.Cause)
	r.keep(c.ID, record{Deadline: c.Deadline, Result: result})
	return true
}

// perform returns the result, or nil when ctx has ended before there was one.
func (r *Room) perform(ctx context.Context, c wire.RemoteCommand) *wire.RemoteResult {
	now := r.cfg.Now()
	end := func(state, format string, args ...any) *wire.RemoteResult {
		return &wire.RemoteResult{State: state, Cause: fmt.Sprintf(format, args...), At: r.cfg.Now().UTC()}
	}
	run, known := r.cfg.Commands[c.Name]
	switch {
	case !now.Before(c.Deadline):
		return end(wire.CommandRefused, "the deadline was %s, it is %s", c.Deadline.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	case !known:
		return end(wire.CommandRefused, "this agent has no command %.80q", c.Name)
	case len(c.Params) > wire.MaxCommandBytes:
		return end(wire.CommandRefused, "parameters of %d bytes: at most %d", len(c.Params), wire.MaxCommandBytes)
	}
	// Without this on stable storage a kill could have it done twice.
	if err := r.cfg.Journal.Put(keyPrefix+c.ID, record{Deadline: c.Deadline}); err != nil {
		return end(wire.CommandFailed, "not begun, since that can't be written down: %v", err)
	}
	within, cancel := context.WithTimeout(ctx, c.Deadline.Sub(now))
	defer cancel()
	output, err := run(within, c.Params)
	switch {
	case ctx.Err() != nil:
		return nil
	case errors.Is(err, ErrRefused):
		return end(wire.CommandRefused, "%v", err)
	case within.Err() != nil:
		return end(wire.CommandFailed, "did not end before the deadline")
	case err != nil:
		return end(wire.CommandFailed, "%v", err)
	}
	result := end(wire.CommandDone, "")
	if output == nil {
		return result
	}
	if result.Output, err = json.Marshal(output); err != nil {
		return end(wire.CommandFailed, "encode the output: %v", err)
	}
	if n := len(result.Output); n > wire.MaxCommandBytes {
		return end(wire.CommandFailed, "output of %d bytes: at most %d", n, wire.MaxCommandBytes)
	}
	return result
}

// keep stores a record. What a full disk does not let be stored is kept in memory and still sent.
func (r *Room) keep(id string, rec record) {
	r.mu.Lock()
	r.records[id] = rec
	r.mu.Unlock()
	if err := r.cfg.Journal.Put(keyPrefix+id, rec); err != nil {
		r.cfg.Log.Warn("command's record not stored", "id", id, "error", err)
	}
}

// tell sends the results that the server does not have.
func (r *Room) tell(ctx context.Context) error {
	for id, rec := range r.untold() {
		err := r.cfg.Sender.PostResult(ctx, id, *rec.Result)
		if err != nil && !final(err) {
			return err
		}
		if err != nil {
			r.cfg.Log.Warn("the server does not take the result of a command", "id", id, "error", err)
		}
		r.keep(id, record{Deadline: rec.Deadline, Result: trimmed(*rec.Result), Told: true})
	}
	return nil
}

// trimmed is what is kept of a result that the server has, for the case that it asks again.
func trimmed(result wire.RemoteResult) *wire.RemoteResult {
	if len(result.Output) > keptOutput {
		result.Output, result.Cause = nil, "the output was sent before and is no longer kept"
	}
	return &result
}

func (r *Room) untold() map[string]record {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := map[string]record{}
	for id, rec := range r.records {
		if rec.Result != nil && !rec.Told {
			out[id] = rec
		}
	}
	return out
}

// final tells whether sending the result again gives the same: the server knows no such command of this
// device (404, 410), or does not take this content (400, 409, 413, 422).
func final(err error) bool {
	switch link.StatusOf(err) {
	case 400, 404, 409, 410, 413, 422:
		return true
	}
	return false
}

// forget drops what is over.
func (r *Room) forget() {
	now := r.cfg.Now()
	var over []string
	r.mu.Lock()
	for id, rec := range r.records {
		end := rec.Deadline.Add(graceAfter)
		if rec.Result != nil && !rec.Told {
			end = rec.Result.At.Add(giveUpAfter)
		}
		if now.After(end) {
			over = append(over, id)
		}
	}
	r.mu.Unlock()
	for _, id := range over {
		if err := r.cfg.Journal.Delete(keyPrefix + id); err != nil {
			r.cfg.Log.Debug("command's record not removed", "id", id, "error", err)
			continue // it is tried again at the next pass
		}
		r.mu.Lock()
		delete(r.records, id)
		r.mu.Unlock()
	}
}
