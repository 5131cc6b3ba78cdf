package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"steward/internal/agent/link"
	"steward/internal/agent/provisioning"
	"steward/internal/wire"
)

// keyDesired is the journal's key of the desired state that was accepted last.
const keyDesired = "agent/desired"

// Refusals of an envelope.
var (
	errOtherDevice = errors.New("the envelope is for another device")
	errLowerEpoch  = errors.New("the envelope is older than one that was accepted")
	errExpired     = errors.New("the envelope has expired")
	errProtocol    = errors.New("the envelope speaks a newer protocol")
)

// errEnrolledAnew ends the loops after an enrollment of a device that had an identity: trust, release
// root and even the device's ID may be others, so that the rooms are made anew.
var errEnrolledAnew = errors.New("the device has enrolled anew")

// acceptedState is the desired state as it is stored: with the bodies, so that a device that starts
// offline knows what it should be.
type acceptedState struct {
	Device   string                           `json:"device,omitempty"` // whose: another device's epochs say nothing
	Epoch    int64                            `json:"epoch"`
	Sections map[wire.Section]acceptedSection `json:"sections"`
}

type acceptedSection struct {
	Hash wire.Hash       `json:"hash"`
	Body json.RawMessage `json:"body"`
}

// desiredState is what was accepted and what of it is not applied yet.
type desiredState struct {
	mu       sync.Mutex
	accepted acceptedState
	pending  map[wire.Section]bool // to be applied (again)
	poke     context.CancelFunc    // ends the poll that is under way
	expires  time.Time             // of the newest envelope; zero before the first of this start
	refresh  time.Time             // when it is asked for again although nothing has changed
}

func (a *Agent) epoch() int64 {
	a.desired.mu.Lock()
	defer a.desired.mu.Unlock()
	return a.desired.accepted.Epoch
}

// restore applies what was accepted before the start.
func (a *Agent) restore(ctx context.Context) {
	if _, err := a.journal.Get(keyDesired, &a.desired.accepted); err != nil {
		a.problems.set("desired", "stored desired state: "+err.Error())
	}
	if of := a.desired.accepted.Device; of != "" && of != a.provisioning.Identity().Device {
		a.desired.accepted = acceptedState{} // of the device that this machine was before
	}
	a.desired.pending = map[wire.Section]bool{}
	for _, room := range a.rooms {
		if s := room.Section(); s != "" {
			a.desired.pending[s] = true
		}
	}
	a.applyPending(ctx)
}

// follow keeps up with the desired state until ctx ends.
func (a *Agent) follow(ctx context.Context) error {
	retry := a.cfg.Retry
	first := true // the first answer is whole: the state directory may have been restored from a backup
	for ctx.Err() == nil {
		have, wait := a.epoch(), a.pollWait()
		epoch := have
		if first || a.stale() {
			epoch = link.Whole
		}
		started := time.Now()
		envelope, err := a.poll(ctx, epoch, wait)
		switch {
		case err == nil:
			err = a.accept(ctx, envelope)
		case errors.Is(err, link.ErrUnasked):
			a.applyPending(ctx)
			continue
		case errors.Is(err, link.ErrNotModified):
			err = nil
		case ctx.Err() == nil && errors.Is(err, context.Canceled):
			continue // poked: there is something newer
		}
		if err == nil {
			retry.Reset()
			a.contacted(nil)
			a.applyPending(ctx)
			// A server or proxy that does not hold the request is not hammered.
			if short := time.Second - time.Since(started); !first && a.epoch() == have && wait > 0 && short > 0 && !sleep(ctx, short) {
				return nil
			}
			first = false
			continue
		}
		if ctx.Err() != nil {
			return nil
		}
		again, identityErr := a.refused(ctx, err)
		if identityErr != nil {
			return identityErr
		}
		if again {
			continue
		}
		wait = retry.Next(err)
		a.cfg.Log.Warn("desired state not taken", "error", err, "again_in", wait.Round(time.Millisecond))
		if !a.client.Rest(ctx, wait, err) {
			return nil
		}
		a.applyPending(ctx)
	}
	return nil
}

// shortPoll is the wait while a section could not be applied and is to be tried again.
const shortPoll = 30 * time.Second

func (a *Agent) pollWait() time.Duration {
	wait := a.cfg.PollWait
	if wait == 0 {
		wait = wire.MaxWaitSeconds * time.Second
	}
	a.desired.mu.Lock()
	defer a.desired.mu.Unlock()
	if len(a.desired.pending) > 0 {
		wait = min(wait, shortPoll)
	}
	return wait
}

// poll asks for the desired state; a report that learns of a newer epoch ends it.
func (a *Agent) poll(ctx context.Context, epoch int64, wait time.Duration) ([]byte, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	a.desired.mu.Lock()
	a.desired.poke = cancel
	a.desired.mu.Unlock()
	return a.client.Desired(ctx, epoch, wait)
}

// newer is called with the epoch of the server's answers to reports.
func (a *Agent) newer(epoch int64) {
	a.desired.mu.Lock()
	defer a.desired.mu.Unlock()
	if epoch > a.desired.accepted.Epoch && a.desired.poke != nil {
		a.desired.poke()
	}
}

// accept verifies an envelope, fetches what it names, stores it, and marks what has changed.
func (a *Agent) accept(ctx context.Context, envelope []byte) error {
	desired, err := a.verify(envelope)
	a.tell("envelope", "desired state refused", err)
	if err != nil {
		return err
	}
	err = a.fetch(ctx, desired)
	if ctx.Err() == nil {
		a.tell("desired", "desired state not taken", err)
	}
	return err
}

// tell makes an error a problem of the agent, or takes it back, and has it reported.
func (a *Agent) tell(source, what string, err error) {
	text := ""
	if err != nil {
		text = what + ": " + err.Error()
	}
	if a.problems.set(source, text) {
		a.change()
	}
}

// fetch gets the documents that are not known and stores the state.
func (a *Agent) fetch(ctx context.Context, desired wire.Desired) error {
	next := acceptedState{Device: desired.Device, Epoch: desired.Epoch, Sections: map[wire.Section]acceptedSection{}}
	known := a.sections()
	var unknown []string
	for section, hash := range desired.Sections {
		if !slices.Contains(known, section) {
			unknown = append(unknown, string(section))
			continue
		}
		body, err := a.body(ctx, section, hash)
		if err != nil {
			return err
		}
		next.Sections[section] = acceptedSection{hash, body}
	}
	a.noteUnknown(unknown)
	if err := a.take(next); err != nil {
		return err
	}
	a.confirmed(desired.Expires)
	return nil
}

// minRefresh keeps an envelope of a short life from being asked for in a loop.
const minRefresh = time.Minute

// confirmed notes how long the envelope vouches for what was accepted. At half of that it is asked for
// again: "not modified" is not signed, and a server that says it for ever could hold a device back.
func (a *Agent) confirmed(expires time.Time) {
	now := a.clock.Now()
	a.desired.mu.Lock()
	defer a.desired.mu.Unlock()
	a.desired.expires, a.desired.refresh = expires, now.Add(max(expires.Sub(now)/2, minRefresh))
}

// stale tells whether it is time to ask for a fresh envelope.
func (a *Agent) stale() bool {
	now := a.clock.Now()
	a.desired.mu.Lock()
	defer a.desired.mu.Unlock()
	return !a.desired.refresh.IsZero() && !now.Before(a.desired.refresh)
}

// unconfirmed is the problem of a desired state that nobody has vouched for since its envelope ended.
func (a *Agent) unconfirmed() string {
	now := a.clock.Now()
	a.desired.mu.Lock()
	defer a.desired.mu.Unlock()
	if a.desired.expires.IsZero() || now.Before(a.desired.expires) {
		return ""
	}
	return "the desired state has not been confirmed since " + a.desired.expires.UTC().Format(time.RFC3339)
}

func (a *Agent) noteUnknown(sections []string) {
	slices.Sort(sections)
	var err error
	if len(sections) > 0 {
		err = fmt.Errorf("%q", sections)
	}
	a.tell("sections", "sections that this agent does not understand", err)
}

// verify opens the envelope and refuses what is not meant for this device at this time.
func (a *Agent) verify(envelope []byte) (wire.Desired, error) {
	var d wire.Desired
	keys, err := provisioning.EnvelopeKeys(a.provisioning.Trust())
	if err != nil {
		return d, err
	}
	if err := wire.Open(envelope, wire.DesiredType, keys, &d); err != nil {
		return d, err
	}
	own, floor, now := a.provisioning.Identity().Device, a.epoch(), a.clock.Now()
	switch {
	case d.Protocol > wire.Protocol:
		return d, fmt.Errorf("%w: %d, this agent speaks %d", errProtocol, d.Protocol, wire.Protocol)
	case d.Device != own:
		return d, fmt.Errorf("%w: %s, this is %s", errOtherDevice, d.Device, own)
	case d.Epoch < floor:
		return d, fmt.Errorf("%w: epoch %d, accepted %d", errLowerEpoch, d.Epoch, floor)
	case !now.Before(d.Expires):
		return d, fmt.Errorf("%w: at %s, it is %s", errExpired, d.Expires.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	}
	return d, nil
}

// sections lists the desired sections that the rooms take.
func (a *Agent) sections() []wire.Section {
	var out []wire.Section
	for _, room := range a.rooms {
		if s := room.Section(); s != "" {
			out = append(out, s)
		}
	}
	return out
}

// body returns the section's document, from what is stored when the hash is the same.
func (a *Agent) body(ctx context.Context, section wire.Section, hash wire.Hash) ([]byte, error) {
	if _, err := wire.ParseHash(string(hash)); err != nil {
		return nil, fmt.Errorf("desired section %s: %w", section, err)
	}
	a.desired.mu.Lock()
	have := a.desired.accepted.Sections[section]
	a.desired.mu.Unlock()
	if have.Hash == hash {
		return have.Body, nil
	}
	body, err := a.client.Document(ctx, hash)
	if err != nil {
		return nil, fmt.Errorf("desired section %s: %w", section, err)
	}
	if !json.Valid(body) {
		return nil, fmt.Errorf("desired section %s is no JSON", section)
	}
	return body, nil
}

// take stores the state and marks the sections that differ.
func (a *Agent) take(next acceptedState) error {
	a.desired.mu.Lock()
	defer a.desired.mu.Unlock()
	before := a.desired.accepted
	if next.Epoch == before.Epoch && maps.EqualFunc(next.Sections, before.Sections, func(x, y acceptedSection) bool { return x.Hash == y.Hash }) {
		return nil
	}
	if err := a.journal.Put(keyDesired, next); err != nil {
		return fmt.Errorf("store the desired state: %w", err)
	}
	for _, s := range a.sections() {
		if next.Sections[s].Hash != before.Sections[s].Hash {
			a.desired.pending[s] = true
		}
	}
	a.desired.accepted = next
	a.change() // the server learns the epoch
	return nil
}

// applyPending hands the rooms what has changed. What a room refuses stays pending and is reported.
// After a disposal order only its own room is told anything.
func (a *Agent) applyPending(ctx context.Context) {
	for _, room := range a.rooms {
		section := room.Section()
		a.desired.mu.Lock()
		pending, body := a.desired.pending[section], a.desired.accepted.Sections[section].Body
		a.desired.mu.Unlock()
		if !pending || section == "" || a.disposal.Accepted() && room.Name() != a.disposal.Name() {
			continue
		}
		err := room.Apply(ctx, body)
		if ctx.Err() != nil {
			return
		}
		a.tell("section "+string(section), "section "+string(section), err)
		if err != nil {
			a.cfg.Log.Warn("section not applied", "section", section, "error", err)
		} else {
			a.desired.mu.Lock()
			delete(a.desired.pending, section)
			a.desired.mu.Unlock()
		}
	}
}

// refused handles answers that concern the identity itself. It tells whether to go on at once;
// errEnrolledAnew says to begin anew.
func (a *Agent) refused(ctx context.Context, err error) (again bool, _ error) {
	a.contacted(err)
	switch link.CodeOf(err) {
	case wire.CodeSuperseded, wire.CodeExpired, wire.CodeRevoked, wire.CodeUnknownDevice:
	default:
		return false, nil
	}
	// A renewal may have been cut off after the server saw the new certificate.
	if switched, recoverErr := a.provisioning.Recover(ctx); switched {
		a.cfg.Log.Info("went on with the certificate that a renewal had left")
		return true, nil
	} else if recoverErr != nil {
		a.cfg.Log.Warn("certificate of an interrupted renewal not usable", "error", recoverErr)
	}
	if !a.provisioning.NeedsToken(err) {
		return false, nil
	}
	if enrollErr := a.provisioning.Enroll(ctx); enrollErr != nil {
		a.cfg.Log.Warn("not enrolled again", "error", enrollErr)
		return false, nil
	}
	return false, errEnrolledAnew
}
