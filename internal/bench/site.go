package bench

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"syscall"
	"time"

	"steward/internal/bench/swarm"
)

// Times of preparing a fleet; far more than it takes.
const (
	enrollTime = 20 * time.Minute
	comeTime   = 10 * time.Minute
	helloTime  = 20 * time.Minute
	markTime   = time.Minute
)

const (
	enrollments = 32 // at once
	arrivals    = 64 // devices that connect at a time when it isn't a storm
)

// site is a server with devices: one node or several, and the processes in which the devices live.
type site struct {
	*node  // the first, whose API is asked
	others []*node
	b      *bench
	crew   *swarm.Crew

	prepared bool          // the devices have everything that they need the answers to reports for
	empty    int64         // KiB that the nodes held before the devices came; 0 when not known
	starting time.Duration // processor time that a start takes without devices
}

func (s *site) nodes() []*node { return append([]*node{s.node}, s.others...) }

// withStock runs fn with a server that has devices in stock, their enrollment tokens, and worker processes.
func (b *bench) withStock(ctx context.Context, fn func(*site, []swarm.Ticket) error) error {
	processes, err := swarm.Processes(b.devices, b.processes)
	if err != nil {
		return usageError{err}
	}
	b.processes = processes
	if err := b.checkFiles(); err != nil {
		return err
	}
	return b.withNodes(ctx, func(nodes []*node) (err error) {
		s := &site{node: nodes[0], others: nodes[1:], b: b}
		b.say("registering %d devices", b.devices)
		tickets, err := s.stock(ctx, b.devices)
		if err != nil {
			return err
		}
		if s.crew, err = swarm.Start(b.workerProgram(), processes, b.progress); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, s.crew.Close()) }()
		return fn(s, tickets)
	})
}

// checkFiles tells when the servers may not hold so many connections.
func (b *bench) checkFiles() error {
	per, err := swarm.PerProcess()
	if err != nil {
		return err
	}
	if most := per * max(1, b.nodes); b.devices > most {
		return usageError{fmt.Errorf("--devices %d: a server may open %d connections here (ulimit -n): more nodes or a higher limit are needed", b.devices, per)}
	}
	return nil
}

// stock buys devices and makes their tokens.
func (s *site) stock(ctx context.Context, devices int) ([]swarm.Ticket, error) {
	if devices == 0 {
		return nil, nil
	}
	if err := s.buy(ctx, devices, maxUnits, func(order) error { return nil }); err != nil {
		return nil, err
	}
	return s.tickets(ctx, devices)
}

// withFleet runs fn with a server that knows the devices, which have their certificates and have reported what
// they are, and of which none is connected. The server has just been started: what it holds for connected
// devices is not hidden in what preparing them has left.
func (b *bench) withFleet(ctx context.Context, fn func(*site) error) error {
	return b.withStock(ctx, func(s *site, tickets []swarm.Ticket) error {
		if err := s.prepare(ctx, tickets); err != nil {
			return err
		}
		if err := s.restartAll(ctx); err != nil {
			return err
		}
		return fn(s)
	})
}

// prepare brings the devices as far as a first day in the field would.
func (s *site) prepare(ctx context.Context, tickets []swarm.Ticket) error {
	b := s.b
	if len(tickets) == 0 {
		return nil
	}
	b.say("enrolling them")
	// Over shared connections: the same certificates and rows, without a handshake for each.
	t, err := s.crew.Enroll(ctx, enrollTime, swarm.Enroll{Link: s.boot.Link, Tickets: tickets, AtOnce: enrollments, Shared: true})
	if err := all(t, err, "enroll"); err != nil {
		return err
	}
	b.say("connecting them, and taking what they report")
	t, err = s.crew.Connect(ctx, comeTime, s.arrive(arrivals))
	if err := all(t, err, "connect"); err != nil {
		return err
	}
	t, err = s.crew.Hello(ctx, helloTime)
	if err := all(t, err, "report"); err != nil {
		return err
	}
	s.prepared = true
	return s.crew.Leave(ctx)
}

// all is nil when everything went well.
func all(t *swarm.Tally, err error, doing string) error {
	if err == nil && t != nil && t.Failed > 0 {
		err = fmt.Errorf("%d of %d devices did not %s: %s", t.Failed, t.Count, doing, t.First)
	}
	return err
}

// arrive says how the devices connect: so many at a time, 0: all at once.
func (s *site) arrive(atOnce int) swarm.Connect {
	how := swarm.Connect{AtOnce: atOnce, Hybrid: s.b.hybrid, Quiet: s.b.quiet && s.prepared}
	for _, n := range s.nodes() {
		how.Doors = append(how.Doors, n.door())
	}
	return how
}

// door is host:port of the node's link.
func (n *node) door() string {
	u, err := url.Parse(n.boot.Link)
	if err != nil {
		return n.boot.Link // dialling it tells
	}
	return u.Host
}

// come connects all devices, paced, and waits until they are served.
func (s *site) come(ctx context.Context) error {
	s.b.say("connecting %d devices", s.b.devices)
	t, err := s.crew.Connect(ctx, comeTime, s.arrive(arrivals))
	return all(t, err, "connect")
}

// restartAll stops the nodes in order and starts them again, and notes what a server without devices needs.
func (s *site) restartAll(ctx context.Context) error {
	for _, n := range s.nodes() {
		if n.external() {
			return s.noteEmpty(ctx)
		}
		if err := n.restart(ctx, syscall.SIGTERM); err != nil {
			return err
		}
	}
	if err := joined(ctx, s.nodes()); err != nil {
		return err
	}
	return s.noteEmpty(ctx)
}

func (s *site) noteEmpty(ctx context.Context) error {
	if err := pause(ctx, s.b.settle); err != nil {
		return err
	}
	m, err := s.memory()
	if err != nil {
		return err
	}
	u, err := s.usage()
	s.empty, s.starting = m.Resident, u.server
	return err
}

// usage sums over the nodes.
func (s *site) usage() (total usage, err error) {
	for i, n := range s.nodes() {
		u, err := n.usage()
		if err != nil {
			return total, err
		}
		total.server += u.server
		if i == 0 {
			total.database = u.database // all nodes share it
		}
	}
	return total, nil
}

// generator is the processor time that the processes with devices in them have used so far.
func (s *site) generator() (total time.Duration, err error) {
	for _, pid := range s.crew.PIDs() {
		used, err := process(pid).cpu()
		if err != nil {
			return total, err
		}
		total += used
	}
	return total, nil
}

// memory sums over the nodes.
func (s *site) memory() (total memory, err error) {
	for _, n := range s.nodes() {
		m, err := n.memory()
		if err != nil {
			return total, err
		}
		total.Resident, total.Anonymous, total.Peak = total.Resident+m.Resident, total.Anonymous+m.Anonymous, total.Peak+m.Peak
	}
	return total, nil
}

// during returns what the nodes used while fn ran. Only the first is profiled.
func (s *site) during(fn func() error) (usage, error) {
	before, err := s.usage()
	if err != nil {
		return before, err
	}
	load, err := s.generator()
	if err != nil {
		return before, err
	}
	if _, err := s.node.during(fn); err != nil {
		return usage{}, err
	}
	after, err := s.usage()
	if err != nil {
		return after, err
	}
	loaded, err := s.generator()
	return usage{after.server - before.server, after.database - before.database, loaded - load}, err
}

// part is the result of a step of which only time was measured.
func (s *site) part(name string, t *swarm.Tally) Result {
	if t.First != "" {
		s.b.say("%s: %d of %d failed, the first: %s", name, t.Failed, t.Count, t.First)
	}
	return Result{
		Scenario: name, Devices: s.b.devices, Failed: t.Failed, Seconds: t.Elapsed().Seconds(), PerSecond: t.PerSecond(),
		P50: milliseconds(t.Percentile(50)), P99: milliseconds(t.Percentile(99)), Facts: t.Facts,
	}
}

// row is the result of a step: what was measured, what the servers used for it, and what they hold now.
func (s *site) row(name string, t *swarm.Tally, used usage) (Result, error) {
	r := s.part(name, t)
	r.perDevice(used)
	m, err := s.memory()
	r.ServerKiB, r.ServerAnonKiB, r.ServerPeakKiB = m.Resident, m.Anonymous, m.Peak
	if s.empty > 0 && r.Devices > 0 {
		r.KiBPerDevice = float64(m.Resident-s.empty) / float64(r.Devices)
	}
	return r, err
}

// perDevice divides what was used.
func (r *Result) perDevice(used usage) {
	r.GeneratorCPU = used.generator.Seconds()
	if r.Devices > 0 {
		r.CPUPerDevice = milliseconds(used.server) / float64(r.Devices)
		r.DatabaseCPUPerDevice = milliseconds(used.database) / float64(r.Devices)
	}
}

// workerProgram is how to start a process with devices in it.
func (b *bench) workerProgram() []string {
	if b.worker != nil {
		return b.worker
	}
	return []string{os.Args[0], workerCommand}
}
