package lease

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"steward/internal/device"
	"steward/internal/sqldb"
)

// Nodes is this node's membership. Make it with Open, keep it alive with Run. It is safe for concurrent use.
type Nodes struct {
	cfg  Config
	self Node

	mu     sync.Mutex
	seen   map[string]sighting // by node ID
	leases leaseSet            // as of the last look
	held   map[string]*holding // by name: what this process does now
	beaten time.Time           // when the last successful beat began (monotonic)
	pauses int                 // how often a beat began too late: what was held before is lost
	looked chan struct{}       // closed and replaced after each look
	idle   chan struct{}       // closed and replaced when a lease is let go
}

// sighting is what this node has seen of another.
type sighting struct {
	beat    int64
	changed time.Time // when this node first saw that beat (monotonic)
	doubt   bool      // it was old when first seen, by the database's clock, and has not changed since
}

type lease struct {
	holder string
	term   int64
}

// Open enters this node into the list. Others believe that it lives for Life; Run keeps it so.
func Open(ctx context.Context, cfg Config) (*Nodes, error) {
	cfg = cfg.withDefaults()
	n := &Nodes{
		cfg: cfg, self: cfg.Self, seen: map[string]sighting{}, held: map[string]*holding{},
		looked: make(chan struct{}), idle: make(chan struct{}),
	}
	n.self.ID, n.self.Started = "node-"+device.RandomName(10), cfg.Now()
	if n.single() {
		// Whoever is in the list ran before on this file.
		if err := cfg.DB.Write(ctx, func(tx *sqldb.Tx) error { return clear(ctx, tx) }); err != nil {
			return nil, fmt.Errorf("clear the list of nodes: %w", err)
		}
	}
	if err := n.beat(ctx); err != nil {
		return nil, fmt.Errorf("enter the list of nodes: %w", err)
	}
	return n, nil
}

// single tells that there is no other node.
func (n *Nodes) single() bool { return n.cfg.DB.Dialect() == sqldb.SQLite }

// ID names this start of this node.
func (n *Nodes) ID() string { return n.self.ID }

// Run gives signs of life until ctx ends; one that fails is tried again soon, so that a database that is
// started anew moves no lease. Then it waits until the work done under leases has returned,
// and takes this node out of the list, so that others go on at once.
func (n *Nodes) Run(ctx context.Context) error {
	next := time.NewTimer(n.cfg.Beat)
	defer next.Stop()
	for done := ctx.Done(); ; {
		select {
		case <-next.C:
			next.Reset(n.tryBeat(context.WithoutCancel(ctx)))
			continue
		case <-done:
			done = nil
		case <-n.letGo():
		}
		if done == nil && n.holds() == 0 {
			return n.leave(context.WithoutCancel(ctx))
		}
	}
}

// leaveTime bounds the last words to a database that may be away.
const leaveTime = 2 * time.Second

func (n *Nodes) leave(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, leaveTime)
	defer cancel()
	if err := n.cfg.DB.Write(ctx, func(tx *sqldb.Tx) error { return remove(ctx, tx, n.self.ID, -1) }); err != nil {
		n.cfg.Log.Warn("this node stays in the list of nodes until others find it silent", "error", err)
	}
	return nil
}

// tryBeat returns when the next sign of life is due.
func (n *Nodes) tryBeat(ctx context.Context) time.Duration {
	began := time.Now()
	ctx, cancel := context.WithTimeout(ctx, n.cfg.Life)
	defer cancel()
	if err := n.beat(ctx); err != nil {
		n.cfg.Log.Warn("no sign of life could be given to other nodes", "error", err)
		return n.cfg.Beat / 4
	}
	return max(0, n.cfg.Beat-time.Since(began))
}

// beat gives one sign of life, looks at the others' and forgets those long gone.
func (n *Nodes) beat(ctx context.Context) error {
	began := time.Now()
	n.mu.Lock()
	if !n.single() && began.After(n.until()) {
		n.pauses++ // others may be about to take over, and would not see this beat in time
	}
	n.mu.Unlock()
	err := n.cfg.DB.Write(ctx, func(tx *sqldb.Tx) error { return n.upsert(ctx, tx) })
	if err != nil {
		return err
	}
	n.mu.Lock()
	n.beaten = began
	n.mu.Unlock()
	nodes, err := n.look(ctx)
	if err != nil {
		return err
	}
	n.forget(ctx, nodes)
	if n.cfg.Looked != nil {
		n.cfg.Looked(list(nodes))
	}
	return nil
}

// until is how long this node may believe that others believe in it: they count from later. Call it with
// mu held.
func (n *Nodes) until() time.Time { return n.beaten.Add(n.cfg.Life * 3 / 4) }

// look reads who is there and who holds what, and wakes those who wait for a lease.
func (n *Nodes) look(ctx context.Context) ([]row, error) {
	rows, err := readNodes(ctx, n.cfg.DB, n.cfg.Now)
	if err != nil {
		return nil, fmt.Errorf("read the list of nodes: %w", err)
	}
	leases, err := readLeases(ctx, n.cfg.DB)
	if err != nil {
		return nil, fmt.Errorf("read the leases: %w", err)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	now, seen := time.Now(), make(map[string]sighting, len(rows))
	for i, r := range rows {
		s, known := n.seen[r.ID]
		switch {
		case !known:
			s = sighting{beat: r.beat, changed: now, doubt: r.age > n.cfg.Life}
		case s.beat != r.beat:
			s = sighting{beat: r.beat, changed: now}
		}
		seen[r.ID] = s
		rows[i].Self = r.ID == n.self.ID
		rows[i].Alive = rows[i].Self || !s.doubt && now.Sub(s.changed) <= n.cfg.Life
		rows[i].Leases = leases.of(r.ID)
	}
	n.seen, n.leases = seen, leases
	close(n.looked)
	n.looked = make(chan struct{})
	return rows, nil
}

// gone tells whether the node has given no sign for Life, and since which beat. Call it with mu held.
func (n *Nodes) gone(id string) (beat int64, ok bool) {
	s, known := n.seen[id]
	if !known {
		return -1, true
	}
	return s.beat, time.Since(s.changed) > n.cfg.Life
}

// forget takes nodes out of the list that are gone for long, or have been followed by one of their name.
func (n *Nodes) forget(ctx context.Context, rows []row) {
	for _, r := range rows {
		n.mu.Lock()
		beat, gone := n.gone(r.ID)
		since := time.Since(n.seen[r.ID].changed)
		n.mu.Unlock()
		followed := slices.ContainsFunc(rows, func(o row) bool { return o.Alive && o.Name == r.Name && o.ID != r.ID })
		if r.Self || !gone || since < forgetAfter && !followed {
			continue
		}
		if err := n.cfg.DB.Write(ctx, func(tx *sqldb.Tx) error { return remove(ctx, tx, r.ID, beat) }); err != nil {
			n.cfg.Log.Warn("a node that is gone stays in the list", "node", r.Name, "error", err)
		}
	}
}

// List returns all nodes that run or ran lately, by name.
func (n *Nodes) List(ctx context.Context) ([]Node, error) {
	rows, err := n.look(ctx)
	if err != nil {
		return nil, err
	}
	return list(rows), nil
}

func list(rows []row) []Node {
	out := make([]Node, len(rows))
	for i, r := range rows {
		out[i] = r.Node
	}
	return out
}

// Alive returns the nodes that have given a sign of life lately, this one included.
func (n *Nodes) Alive(ctx context.Context) ([]Node, error) {
	all, err := n.List(ctx)
	return slices.DeleteFunc(all, func(o Node) bool { return !o.Alive }), err
}
