package server

import (
	"context"
	"errors"
	"strconv"
	"sync"
	"time"

	"steward/internal/fault"
	"steward/internal/lease"
	"steward/internal/ledger"
	"steward/internal/sqldb"
)

// apart makes good what the bus could not bring while it was cut. Messages are lost then, on either side;
// what they would have told stands in the ledger, since whatever changes a device is an event there. So
// while the nodes are apart, and once after, each node reads on in the ledger and tells its own rooms.
type apart struct {
	r *rooms

	mu     sync.Mutex
	others int // nodes that live, but this one

	sizes []sizeAt // the ledger's sizes lately, the oldest first; from the start, and while the nodes are together
	next  int64    // the first event that rooms may not have heard of, while they are apart
	since time.Time
}

type sizeAt struct {
	size int64
	at   time.Time
}

const (
	apartLook = 5 * time.Second
	// apartLag is how long a cut may go unnoticed, with a margin: a bus finds out after some seconds.
	apartLag = 30 * time.Second
	// apartPage bounds the events of one query.
	apartPage = 500
)

// looked is told how many nodes there are.
func (a *apart) looked(nodes []lease.Node) {
	n := 0
	for _, o := range nodes {
		if o.Alive && !o.Self {
			n++
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.others = n
}

// together tells whether messages reach all nodes.
func (a *apart) together() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.r.bus.Outside() {
		return a.others == 0 || a.r.bus.Connected()
	}
	return a.r.bus.Peers() >= a.others
}

// Run watches until ctx ends.
func (a *apart) Run(ctx context.Context) error {
	if a.r.db.Dialect() == sqldb.SQLite {
		<-ctx.Done() // there are no others
		return nil
	}
	tick := time.NewTicker(apartLook)
	defer tick.Stop()
	for ctx.Err() == nil {
		if err := a.step(ctx); err != nil && ctx.Err() == nil {
			a.r.cfg.Log.Warn("it is not known yet what other nodes did", "error", err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
	return nil
}

func (a *apart) step(ctx context.Context) error {
	together := a.together()
	if a.since.IsZero() && (together || len(a.sizes) == 0) {
		return a.remember(ctx)
	}
	if a.since.IsZero() {
		a.since, a.next = time.Now(), a.sizes[0].size
		a.r.cfg.Log.Warn("the bus between the nodes is cut: their changes are read from the ledger")
	}
	if err := a.catchUp(ctx); err != nil {
		return err
	}
	if together { // this was the last time
		a.r.cfg.Log.Info("the bus between the nodes is whole again", "cut", time.Since(a.since).Round(time.Second).String())
		a.since, a.sizes = time.Time{}, nil
		return a.remember(ctx)
	}
	return nil
}

// remember keeps the ledger's size of apartLag ago, and newer ones.
func (a *apart) remember(ctx context.Context) error {
	size, err := a.r.ledger.Size(ctx)
	if err != nil {
		return err
	}
	now := time.Now()
	a.sizes = append(a.sizes, sizeAt{size, now})
	for len(a.sizes) > 1 && now.Sub(a.sizes[1].at) > apartLag {
		a.sizes = a.sizes[1:]
	}
	return nil
}

// catchUp tells the rooms of this node what has happened on any.
func (a *apart) catchUp(ctx context.Context) error {
	size, err := a.r.ledger.Size(ctx)
	if err != nil {
		return err
	}
	for cursor := ""; ; {
		events, next, err := a.r.ledger.Events(ctx, ledger.Filter{
			Kinds: []string{"device.moved", "provisioning.revoked", "provisioning.superseded", "remote.given", "remote.finished"},
			After: a.next, Before: size, Limit: apartPage, Cursor: cursor,
		})
		if err != nil {
			return err
		}
		for _, e := range events {
			if err := a.tell(ctx, e); err != nil {
				return err
			}
		}
		if cursor = next; cursor == "" {
			break
		}
	}
	a.next = size
	// Desired states have no events of their own; who waits for any looks at its epoch.
	a.r.bus.Hear("twin.all", nil)
	return nil
}

// tell says to this node's rooms what the bus would have said.
func (a *apart) tell(ctx context.Context, e ledger.Event) error {
	if e.Kind == "remote.finished" {
		a.r.bus.Hear(e.Kind, []byte("ledger "+e.Subject))
		return nil
	}
	d, err := a.r.registry.ByID(ctx, a.r.db, e.Tenant, e.Device)
	if errors.Is(err, fault.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	num := strconv.FormatInt(d.Num, 10)
	switch e.Kind {
	case "remote.given":
		a.r.bus.Hear(e.Kind, []byte("ledger "+num))
	case "provisioning.revoked":
		a.r.bus.Hear(e.Kind, []byte(num))
	default:
		a.r.bus.Hear("device.changed", []byte(num))
	}
	return nil
}
