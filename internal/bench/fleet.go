package bench

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"steward/internal/agent"
	"steward/internal/agent/host/sim"
	"steward/internal/agent/journal"
	"steward/internal/agent/link"
	"steward/internal/agent/provisioning"
)

const (
	comeTime    = 2 * time.Minute // that one device may take to enroll and report
	enrollments = 32              // at once
)

// fleet is simulated machines on which the agent's own code runs.
type fleet struct {
	node   *node
	dir    string
	sim    *sim.Fleet
	agents []*agent.Agent

	addresses atomic.Uint32 // given to devices

	stop  context.CancelFunc
	ended sync.WaitGroup
	mu    sync.Mutex
	died  error // the first agent's that ended by itself
}

func (b *bench) newFleet(n *node) (*fleet, error) {
	dir, err := os.MkdirTemp(b.dir, "agents-")
	return &fleet{node: n, dir: dir, sim: sim.NewFleet(sim.Config{Seed: 11}), stop: func() {}}, err
}

// close stops the agents, waits for them and removes their state.
func (f *fleet) close() error {
	f.stop()
	f.ended.Wait()
	return errors.Join(f.died, os.RemoveAll(f.dir))
}

// join starts an agent for each ticket and returns when all have reported what they are.
func (f *fleet) join(ctx context.Context, tickets []ticket) measured {
	running, stop := context.WithCancel(ctx)
	f.stop = stop
	agents := make([]*agent.Agent, len(tickets))
	m := loop{workers: enrollments, count: len(tickets)}.run(ctx, func(ctx context.Context, i int) (err error) {
		agents[i], err = f.start(running, i, tickets[i])
		if err != nil {
			return err
		}
		return until(ctx, comeTime, func() (bool, error) { return agents[i].Status().State == agent.StateOnline, f.failure() })
	})
	for _, a := range agents {
		if a != nil {
			f.agents = append(f.agents, a)
		}
	}
	return m
}

// dial gives each device an address of its own in 127.0.0.0/8, as devices in the field have: the server
// limits what strangers may ask of it by address.
func (f *fleet) dial() func(ctx context.Context, network, address string) (net.Conn, error) {
	n := f.addresses.Add(1)
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, byte(1+n>>16), byte(n>>8), byte(n))}}
	return d.DialContext
}

func (f *fleet) failure() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.died
}

func (f *fleet) start(ctx context.Context, i int, t ticket) (*agent.Agent, error) {
	a, err := agent.New(agent.Config{
		StateDir: filepath.Join(f.dir, t.serial), Server: f.node.boot.Link, Token: t.token, Serial: t.serial, Host: f.sim.Device(i), Version: "bench",
		Dial: f.dial(),
	})
	if err != nil {
		return nil, err
	}
	f.ended.Go(func() {
		if err := a.Run(ctx); err != nil && ctx.Err() == nil {
			f.mu.Lock()
			f.died = errors.Join(f.died, fmt.Errorf("agent %s: %w", t.serial, err))
			f.mu.Unlock()
		}
	})
	return a, nil
}

// enrollOnly does what an agent does to get its certificate, and no more.
func (f *fleet) enrollOnly(ctx context.Context, t ticket) (err error) {
	dir := filepath.Join(f.dir, t.serial)
	j, err := journal.Open(journal.Config{Dir: filepath.Join(dir, "journal")})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, j.Close()) }()
	c, err := link.New(link.Config{Server: f.node.boot.Link, Version: "bench", Dial: f.dial()})
	if err != nil {
		return err
	}
	defer c.Close()
	room, err := provisioning.New(provisioning.Config{
		Dir: dir, Journal: j, Client: c, Serial: t.serial, Token: t.token, Now: time.Now, Log: discard(), Changed: func() {},
	})
	if err != nil {
		return err
	}
	return room.Enroll(ctx)
}
