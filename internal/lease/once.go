package lease

import (
	"context"
	"errors"
	"time"

	"steward/internal/sqldb"
)

// holding is a lease that this process has.
type holding struct {
	name   string
	term   int64 // the fencing token
	pauses int   // Nodes.pauses when it was taken
}

type holdingKey struct{}

// Once runs do while this node holds the lease of that name, and again each time it gets it back, until
// ctx ends. The context of do ends when the lease is lost; do must return then. A nil result of do before
// that means that there is nothing to do for now: it is run again after a Beat. Any other error of do
// lets the lease go and is returned.
//
// A database that is away ends no Once: the lease is lost in time, and taken again when it is back.
func (n *Nodes) Once(ctx context.Context, name string, do func(ctx context.Context) error) error {
	for {
		h := n.acquire(ctx, name)
		if h == nil {
			return nil
		}
		err, lost := n.hold(ctx, h, do)
		n.release(context.WithoutCancel(ctx), h)
		switch {
		case ctx.Err() != nil && (err == nil || errors.Is(err, context.Canceled)):
			return nil
		case lost:
			n.cfg.Log.Warn("work went to another node: this one was not heard of in time", "lease", name)
		case err != nil:
			return err
		}
		if !n.pause(ctx) {
			return nil
		}
	}
}

// pause waits for a beat, so that work that returns at once does not spin.
func (n *Nodes) pause(ctx context.Context) bool {
	t := time.NewTimer(n.cfg.Beat)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// acquire waits until the lease is this node's; nil when ctx ended before.
func (n *Nodes) acquire(ctx context.Context, name string) *holding {
	for {
		n.mu.Lock()
		looked := n.looked
		n.mu.Unlock()
		h, err := n.try(ctx, name)
		if h != nil {
			return h
		}
		if err != nil && ctx.Err() == nil {
			n.cfg.Log.Warn("a lease could not be taken", "lease", name, "error", err)
		}
		select {
		case <-looked:
		case <-ctx.Done():
			return nil
		}
	}
}

// try takes the lease when nobody holds it whom others may still believe in.
func (n *Nodes) try(ctx context.Context, name string) (*holding, error) {
	n.mu.Lock()
	now, made := n.leases[name]
	beat, free := int64(-1), now.holder == "" || now.holder == n.self.ID
	if made && !free {
		beat, free = n.gone(now.holder)
	}
	if n.held[name] != nil { // another call in this process
		free = false
	}
	if !n.single() && time.Now().After(n.until()) { // not before the next sign of life
		free = false
	}
	h := &holding{name: name, term: now.term + 1, pauses: n.pauses}
	if free {
		n.held[name] = h
	}
	n.mu.Unlock()
	if !free {
		return nil, nil //nolint:nilnil // somebody else's
	}
	var taken bool
	err := n.cfg.DB.Write(ctx, func(tx *sqldb.Tx) (err error) {
		taken, err = n.take(ctx, tx, name, now, beat)
		return err
	})
	if err == nil && taken {
		if made && now.holder != "" && now.holder != n.self.ID {
			n.cfg.Log.Warn("work of a node that is gone goes on here", "lease", name, "node", now.holder, "term", h.term)
		}
		return h, nil
	}
	n.drop(h)
	return nil, err
}

// hold runs do until it returns, and ends its context when this node is no longer believed in.
func (n *Nodes) hold(ctx context.Context, h *holding, do func(ctx context.Context) error) (err error, lost bool) {
	ctx, cancel := context.WithCancelCause(context.WithValue(ctx, holdingKey{}, h))
	defer cancel(nil)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if n.watch(ctx, h) {
			cancel(ErrLost)
		}
	}()
	err = do(ctx)
	lost = errors.Is(context.Cause(ctx), ErrLost)
	cancel(nil)
	<-ended
	return err, lost
}

// watch returns true when this node's last sign of life is too old, false when ctx ends.
func (n *Nodes) watch(ctx context.Context, h *holding) bool {
	if n.single() {
		<-ctx.Done()
		return false
	}
	for {
		n.mu.Lock()
		left := time.Until(n.until())
		paused := n.pauses != h.pauses
		n.mu.Unlock()
		if left <= 0 || paused {
			return true
		}
		t := time.NewTimer(left)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return false
		}
	}
}

// release gives the lease back, so that another node may have it at once. When the database is away, it
// is found to be without a holder later.
func (n *Nodes) release(ctx context.Context, h *holding) {
	ctx, cancel := context.WithTimeout(ctx, leaveTime)
	defer cancel()
	err := n.cfg.DB.Write(ctx, func(tx *sqldb.Tx) error { return free(ctx, tx, h, n.self.ID) })
	if err != nil {
		n.cfg.Log.Warn("a lease was not given back", "lease", h.name, "error", err)
	}
	n.mu.Lock()
	if l := n.leases[h.name]; err == nil && (l.holder == n.self.ID || l.term < h.term) {
		n.leases[h.name] = lease{term: h.term} // until the next look
	}
	n.mu.Unlock()
	n.drop(h)
}

// drop forgets that this process holds the lease.
func (n *Nodes) drop(h *holding) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.held, h.name)
	close(n.idle)
	n.idle = make(chan struct{})
}

func (n *Nodes) holds() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.held)
}

func (n *Nodes) letGo() <-chan struct{} {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.idle
}

// Fence fails with ErrLost when the lease under which ctx runs is another node's by now; on success no
// other node gets it before tx ends. Under a context that is not of Once it does nothing.
func Fence(ctx context.Context, tx *sqldb.Tx) error {
	h, ok := ctx.Value(holdingKey{}).(*holding)
	if !ok {
		return nil
	}
	return fence(ctx, tx, h)
}
