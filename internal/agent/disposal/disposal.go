// Package disposal ends a device's life: it destroys all data that the agent manages, says so in a
// statement signed by the device's key, and then destroys the key.
//
//	order accepted → other rooms stopped → rooms sanitized → files and journal cleared → statement sealed
//	  → sent until the server has it → tombstone written → key, certificate and journal destroyed
//
// Each arrow is on stable storage before the next step begins, so that a kill anywhere is followed by
// the same end: no data, one statement, one tombstone. There is no way back once an order is accepted.
package disposal

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"steward/internal/agent/journal"
	"steward/internal/agent/link"
	"steward/internal/wire"
)

// ErrDecommissioned ends the agent after a disposal: the state directory holds a tombstone only.
var ErrDecommissioned = errors.New("the device is decommissioned")

// methodClear is the only method an agent can do by itself: NIST SP 800-88r1, section 2.5, "clear".
const methodClear = "clear"

// Keys of the journal; keyPrefix is what stays of it until the end.
const (
	keyPrefix    = "disposal/"
	keyOrder     = keyPrefix + "order"
	keySteps     = keyPrefix + "steps"
	keyStatement = keyPrefix + "statement"
	keyItems     = keyPrefix + "items/" // + the sanitizer's name
)

// Source is a room that holds data.
type Source struct {
	Name     string
	Sanitize func(ctx context.Context) []wire.SanitizedItem
}

// Sender sends the statement to the server.
type Sender interface {
	PostDisposal(ctx context.Context, envelope []byte) error
}

// Config of a Room.
type Config struct {
	Dir            string // the state directory
	Journal        *journal.Journal
	Device, Serial string
	// Signer returns the operational key that the server knows now: renewals change it, so it is
	// asked for only when the statement is signed. It first finishes a renewal that was cut off, and
	// fails while that needs the server and the server can't be reached.
	Signer func(ctx context.Context) (crypto.Signer, error)
	Sender Sender
	// Quiesce stops all other rooms and waits for their end. It is called before anything is
	// destroyed, at each start again.
	Quiesce func(ctx context.Context) error
	Sources []Source
	// Destroy wipes key, certificate and trust.
	Destroy func(ctx context.Context) error
	// Keep lists the files of Dir that are not data: they are left until Destroy and the end.
	Keep []string
	// KeepKeys lists further keys of the journal that are needed until the end, such as the
	// server's address.
	KeepKeys []string
	Retry    link.Backoff
	Now      func() time.Time
	Log      *slog.Logger
	Changed  func()
}

// order is an accepted order.
type order struct {
	wire.DisposalDesired
	Accepted time.Time `json:"accepted"`
}

// Room is safe for use by several goroutines.
type Room struct {
	cfg      Config
	accepted chan struct{} // closed when there is an order

	mu    sync.Mutex
	order *order
	state *wire.DisposalReported
}

// New reads the journal: an order that was accepted before a kill is taken up again by Run.
func New(cfg Config) (*Room, error) {
	r := &Room{cfg: cfg, accepted: make(chan struct{})}
	var o order
	found, err := cfg.Journal.Get(keyOrder, &o)
	if err != nil {
		return nil, err
	}
	if found {
		r.order = &o
		r.state = &wire.DisposalReported{Order: o.Order, State: "accepted"}
		close(r.accepted)
	}
	return r, nil
}

// Name of the room.
func (r *Room) Name() string { return "disposal" }

// Section that the room takes.
func (r *Room) Section() wire.Section { return wire.SectionDisposal }

// Accepted tells whether there is an order: from then on nothing else is done on this device.
func (r *Room) Accepted() bool {
	select {
	case <-r.accepted:
		return true
	default:
		return false
	}
}

// Apply accepts an order. An order for another device, without an ID or by a method that the agent
// can't do is refused and nothing is touched.
func (r *Room) Apply(_ context.Context, body []byte) error {
	if body == nil {
		return nil // taken back before it came, or carried out: an accepted order stands
	}
	var d wire.DisposalDesired
	if err := wire.Decode(body, &d); err != nil {
		return fmt.Errorf("disposal order: %w", err)
	}
	switch {
	case d.Order == "":
		return errors.New("disposal order without an ID")
	case d.Device != r.cfg.Device:
		return fmt.Errorf("disposal order %s is for device %s, this is %s", d.Order, d.Device, r.cfg.Device)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.order != nil {
		return nil
	}
	if d.Method != methodClear {
		err := fmt.Errorf("disposal order %s wants the method %q, this agent can only %q", d.Order, d.Method, methodClear)
		r.tell(wire.DisposalReported{Order: d.Order, State: "failed", Cause: err.Error()})
		return err
	}
	o := order{d, r.cfg.Now().UTC()}
	if err := r.cfg.Journal.Put(keyOrder, o); err != nil {
		return fmt.Errorf("accept disposal order %s: %w", d.Order, err)
	}
	r.order = &o
	r.tell(wire.DisposalReported{Order: d.Order, State: "accepted"})
	r.cfg.Log.Warn("disposal order accepted: all managed data will be destroyed", "order", d.Order)
	close(r.accepted)
	return nil
}

// tell sets the reported state; the lock is held. The agent reports from another goroutine.
func (r *Room) tell(state wire.DisposalReported) {
	if r.state != nil && *r.state == state {
		return
	}
	r.state = &state
	go r.cfg.Changed()
}

func (r *Room) setState(state, cause string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.tell(wire.DisposalReported{Order: r.order.Order, State: state, Cause: cause})
}

// Reported returns the state of the order, if there is one.
func (r *Room) Reported(context.Context) (map[wire.Section]any, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.state == nil {
		return nil, nil
	}
	return map[wire.Section]any{wire.SectionDisposal: r.state}, nil
}

// Run waits for an order and carries it out; then it returns ErrDecommissioned.
func (r *Room) Run(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case <-r.accepted:
	}
	retry := r.cfg.Retry
	for {
		err := r.carryOut(ctx)
		if err == nil {
			return ErrDecommissioned
		}
		if ctx.Err() != nil {
			return nil
		}
		r.cfg.Log.Error("disposal interrupted; it goes on", "order", r.order.Order, "error", err)
		r.setState("failed", err.Error())
		timer := time.NewTimer(retry.Next(err))
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-timer.C:
		}
	}
}

func (r *Room) carryOut(ctx context.Context) error {
	if err := r.cfg.Quiesce(ctx); err != nil {
		return fmt.Errorf("stop the other rooms: %w", err)
	}
	r.setState("accepted", "")
	err := r.cfg.Journal.Steps(ctx, keySteps, r.order.Order, []journal.Step{
		{Name: "sanitize rooms", Do: r.sanitize},
		{Name: "clear files", Do: r.clearFiles},
		{Name: "seal statement", Do: r.seal},
		{Name: "send statement", Do: r.send},
		{Name: "write tombstone", Do: r.bury},
	})
	if err != nil {
		return err
	}
	return r.destroy(ctx)
}

// sanitize lets each room destroy its data and keeps what it says on stable storage, room by room. A
// room in which something resisted is asked again at the next attempt; no statement is made before.
func (r *Room) sanitize(ctx context.Context) error {
	for _, source := range r.cfg.Sources {
		key := keyItems + source.Name
		var items []wire.SanitizedItem
		if found, err := r.cfg.Journal.Get(key, &items); err != nil || found {
			if err != nil {
				return err
			}
			continue
		}
		items = source.Sanitize(ctx)
		for _, item := range items {
			if item.Result != destroyed {
				return fmt.Errorf("%s: %s", item.What, item.Result)
			}
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := r.cfg.Journal.Put(key, items); err != nil {
			return err
		}
	}
	return nil
}

const destroyed = "destroyed"

// technique is what Wipe does.
const technique = "overwrite with zeros and unlink"

// clearFiles wipes what is left in the state directory but the identity, and clears the journal of
// everything but the order.
func (r *Room) clearFiles(ctx context.Context) error {
	size, err := r.wipeAllBut(ctx, r.cfg.Keep)
	if err != nil {
		return fmt.Errorf("files of the agent: %w", err)
	}
	if err := r.cfg.Journal.Keep(append(r.cfg.KeepKeys, keyPrefix)...); err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	return r.cfg.Journal.Put(keyItems+"~agent", []wire.SanitizedItem{
		{What: "other files of the agent's state directory", Technique: technique, SizeBytes: size, Result: destroyed},
		{What: "journal of desired state, updates and settings", Technique: "rewrite without them, overwrite the former file with zeros", Result: destroyed},
	})
}

func (r *Room) wipeAllBut(ctx context.Context, keep []string) (sizeBytes int64, err error) {
	entries, err := os.ReadDir(r.cfg.Dir)
	if err != nil {
		return 0, err
	}
	var failed []error
	for _, e := range entries {
		if slices.Contains(keep, e.Name()) || ctx.Err() != nil {
			continue
		}
		wipe := r.cfg.Journal.Wipe
		if e.IsDir() {
			wipe = r.cfg.Journal.WipeTree
		}
		n, err := wipe(filepath.Join(r.cfg.Dir, e.Name()))
		sizeBytes += n
		failed = append(failed, err)
	}
	return sizeBytes, errors.Join(append(failed, ctx.Err())...)
}

// seal makes the statement once: the same bytes are sent however often.
func (r *Room) seal(ctx context.Context) error {
	if found, err := r.cfg.Journal.Get(keyStatement, new([]byte)); err != nil || found {
		return err
	}
	signer, err := r.cfg.Signer(ctx)
	if err != nil {
		return err
	}
	keyID, err := wire.KeyIDOf(signer.Public())
	if err != nil {
		return err
	}
	s := wire.SanitizationStatement{
		Order: r.order.Order, Device: r.cfg.Device, Serial: r.cfg.Serial, Method: r.order.Method,
		KeyID: keyID, Started: r.order.Accepted, Finished: r.cfg.Now().UTC(), Items: []wire.SanitizedItem{},
	}
	for _, key := range r.cfg.Journal.Keys(keyItems) {
		var items []wire.SanitizedItem
		if _, err := r.cfg.Journal.Get(key, &items); err != nil {
			return err
		}
		s.Items = append(s.Items, items...)
	}
	envelope, err := wire.Seal(wire.SanitizationType, s, signer)
	if err != nil {
		return err
	}
	return r.cfg.Journal.Put(keyStatement, envelope)
}

func (r *Room) statement() (envelope []byte, err error) {
	found, err := r.cfg.Journal.Get(keyStatement, &envelope)
	if err == nil && !found {
		err = errors.New("the sealed statement is missing")
	}
	return envelope, err
}

// send posts the statement until the server has it. A server that calls the device decommissioned has
// ended it already: the answer to an earlier attempt was lost.
func (r *Room) send(ctx context.Context) error {
	envelope, err := r.statement()
	if err != nil {
		return err
	}
	r.setState("sanitized", "")
	retry := r.cfg.Retry
	for {
		err := r.cfg.Sender.PostDisposal(ctx, envelope)
		if err == nil || link.CodeOf(err) == wire.CodeDecommissioned {
			r.cfg.Log.Info("the server has the sanitization statement", "order", r.order.Order)
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		r.cfg.Log.Warn("sanitization statement not delivered", "order", r.order.Order, "error", err)
		timer := time.NewTimer(retry.Next(err))
		select {
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		case <-timer.C:
		}
	}
}
