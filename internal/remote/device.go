package remote

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"steward/internal/device"
	"steward/internal/fault"
	"steward/internal/ledger"
	"steward/internal/sqldb"
	"steward/internal/wire"
)

// This file is what the device's side of the link calls.

// Waiting lists what the device has still to answer, oldest first; those whose deadline has passed are not
// among them, nor those that its stage keeps from it. Handing them out is what makes them delivered.
func (s *Service) Waiting(ctx context.Context, d device.Device) ([]wire.RemoteCommand, error) {
	open, err := openOf(ctx, s.cfg.DB, d.Num, s.now())
	if err != nil {
		return nil, fmt.Errorf("commands for %s: %w", d.ID, err)
	}
	out := make([]wire.RemoteCommand, 0, len(open))
	for _, c := range open {
		if mayGet(d.Stage, c.Name) != "" {
			continue // it stays until its deadline, in case the device comes back to service
		}
		if c.State == Waiting {
			s.handed.note(c.ID, s.now())
		}
		out = append(out, wire.RemoteCommand{ID: c.ID, Name: c.Name, Params: c.Params, Issued: c.Issued, Deadline: c.Deadline})
	}
	return out, nil
}

// Pending counts what Waiting would list, without handing anything out.
func (s *Service) Pending(ctx context.Context, d device.Device) (n int, err error) {
	names, err := openNames(ctx, s.cfg.DB, d.Num, s.now())
	if err != nil {
		return 0, fmt.Errorf("commands for %s: %w", d.ID, err)
	}
	for _, name := range names {
		if mayGet(d.Stage, name) == "" {
			n++
		}
	}
	return n, nil
}

// Result takes a device's answer; it returns after the commit. The first answer of a command stands, and
// sending one again is fine. It returns fault.NotFound for another device's command or one that is
// forgotten, and fault.Invalid.
func (s *Service) Result(ctx context.Context, d device.Device, id string, r wire.RemoteResult) error {
	r, state, err := result(r)
	if err != nil {
		return err
	}
	err = s.cfg.DB.Write(ctx, func(tx *sqldb.Tx) error {
		c, ok, err := byID(ctx, tx, id)
		if err != nil {
			return err
		}
		if !ok || c.num != d.Num {
			return fault.New(fault.NotFound, "there is no command %.60q for this device", id)
		}
		late := c.State == Expired || c.State == Cancelled
		if !c.State.Open() && !(late && state != Refused) {
			return nil // the first answer stands; that a late one is refused is what the state says already
		}
		before := c.State
		c.State, c.Late, c.Finished, c.DeviceTime = state, late, s.now().UTC().Truncate(time.Microsecond), r.At
		c.Cause, c.Output, c.OutputSHA256 = r.Cause, r.Output, sum(r.Output)
		by := device.Actor{Kind: device.ActorDevice, ID: string(d.ID), Name: d.DisplayName()}
		return s.finish(ctx, tx, by, before, c)
	})
	if err != nil {
		return fmt.Errorf("result of %s: %w", d.ID, err)
	}
	return nil
}

// finish stores how a command ended, tells the ledger, and wakes who waits for it.
func (s *Service) finish(ctx context.Context, tx *sqldb.Tx, by device.Actor, before State, c Command) error {
	done, err := writeEnd(ctx, tx, before, c)
	if err != nil || !done {
		return err
	}
	facts := map[string]any{"command": c.ID, "name": c.Name, "state": c.State.String(), "seconds": int64(c.Finished.Sub(c.Issued).Seconds())}
	if len(c.Output) > 0 {
		facts["output_bytes"], facts["output_sha256"] = len(c.Output), c.OutputSHA256
	}
	if c.Late {
		facts["late"] = true
	}
	tx.AfterCommit(func() { s.tellFinished([]string{c.ID}) })
	return s.cfg.Ledger.Append(ctx, tx, ledger.Event{
		Tenant: c.tenant, Kind: "remote.finished", Device: c.Device, Subject: c.ID, Actor: by, Reason: c.Cause, Data: ledger.Facts(facts),
	})
}

// handed gathers what has been handed out, to be written once a second: asking what waits must cost no
// transaction.
type handed struct {
	mu  sync.Mutex
	ids map[string]time.Time
}

// maxHanded bounds what is gathered; a command that isn't noted is noted when it is handed out again, or
// stays "waiting" until its result comes.
const maxHanded = 100_000

func (h *handed) note(id string, at time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if _, has := h.ids[id]; !has && len(h.ids) < maxHanded {
		h.ids[id] = at
	}
}

func (h *handed) take() map[string]time.Time {
	h.mu.Lock()
	defer h.mu.Unlock()
	ids := h.ids
	h.ids = map[string]time.Time{}
	return ids
}

// flush writes which commands have been handed out.
func (s *Service) flush(ctx context.Context) error {
	ids := s.handed.take()
	for chunk := range slices.Chunk(slices.Sorted(maps.Keys(ids)), rowsPerStatement) {
		err := s.cfg.DB.Write(ctx, func(tx *sqldb.Tx) error { return writeDelivered(ctx, tx, chunk, ids[chunk[0]]) })
		if err != nil {
			return fmt.Errorf("note delivered commands: %w", err)
		}
	}
	return nil
}
