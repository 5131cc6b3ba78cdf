package bench

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"time"

	"steward/internal/bench/swarm"
	"steward/internal/client"
	"steward/internal/wire"
)

// A day in short: what happens to each device in mixedDay of it.
const (
	mixedEvery     = 10 * time.Second // a message of each device
	mixedReconnect = 0.05             // of the devices lose their connection
	mixedCommands  = 0.02             // of the devices get a command
	mixedReads     = 40               // of people and programs, per second
)

// mixed measures everything at once: messages of all kinds, commands, a change, lost connections, and readers of
// API and console, whose waiting time tells whether the fleet is in their way.
func (b *bench) mixed(ctx context.Context) ([]Result, error) {
	var rows []Result
	err := b.withFleet(ctx, func(s *site) error {
		if err := s.come(ctx); err != nil {
			return err
		}
		d, err := newDay(ctx, s)
		if err != nil {
			return err
		}
		used, err := s.during(func() error { return d.run(ctx) })
		if err != nil {
			return err
		}
		rows, err = d.rows(used)
		return err
	})
	return rows, err
}

// day is one run of mixed.
type day struct {
	site   *site
	reader *reader
	kinds  []read
	ids    []string // of devices that get commands

	messages           map[string]*swarm.Tally // by kind
	reads, commands    measured
	converged          *swarm.Tally
	began, changedFrom time.Time
}

func newDay(ctx context.Context, s *site) (*day, error) {
	r, err := newReader(ctx, s.node, s.b.clients)
	if err != nil {
		return nil, err
	}
	ids, _, err := s.sample(ctx, 0)
	if err != nil {
		return nil, err
	}
	if len(ids) == 0 {
		return nil, errors.New("the server shows no devices")
	}
	d := &day{site: s, reader: r, ids: ids}
	one := func(prefix string) func(int) string {
		return func(i int) string { return prefix + ids[i*7919%len(ids)] }
	}
	for _, k := range []struct {
		page bool
		path func(int) string
	}{
		{false, func(int) string { return "/devices" }}, {false, one("/devices/")}, {false, func(int) string { return "/fleet" }},
		{true, func(int) string { return "/" }}, {true, one("/devices/")}, {true, func(int) string { return "/devices" }},
	} {
		d.kinds = append(d.kinds, read{name: "mixed", page: k.page, path: k.path})
	}
	return d, nil
}

// run lets all of it happen and waits for the end.
func (d *day) run(ctx context.Context) error {
	s, span := d.site, d.site.b.span
	if err := s.crew.Mark(ctx); err != nil {
		return err
	}
	d.began = time.Now()
	errs := make(chan error, 4)
	go func() {
		var err error
		d.messages, err = s.crew.Mixed(ctx, swarm.Mixed{For: span, Every: min(mixedEvery, span/2), Reconnect: int(mixedReconnect * float64(s.b.devices))})
		errs <- err
	}()
	go func() { errs <- d.read(ctx, span) }()
	go func() { errs <- d.command(ctx, span) }()
	go func() { errs <- d.change(ctx, span/2) }()
	var err error
	for range cap(errs) {
		err = errors.Join(err, <-errs)
	}
	if err != nil {
		return err
	}
	d.converged, err = s.crew.Converged(ctx, convergeTime)
	sinceStart(d.converged, d.changedFrom)
	return err
}

// paced does count things over the span, and measures each.
func paced(ctx context.Context, workers, count int, span time.Duration, do func(ctx context.Context, i int) error) measured {
	began := time.Now()
	count = max(1, count)
	return loop{workers: workers, count: count, due: func(i int) time.Time {
		return began.Add(span * time.Duration(i) / time.Duration(count))
	}}.run(ctx, do)
}

func (d *day) read(ctx context.Context, span time.Duration) error {
	d.reads = paced(ctx, d.site.b.clients, int(mixedReads*span.Seconds()), span, func(ctx context.Context, i int) error {
		return d.reader.get(ctx, d.kinds[i%len(d.kinds)], i)
	})
	return ctx.Err()
}

// command gives devices commands; each is over with its result.
func (d *day) command(ctx context.Context, span time.Duration) error {
	d.commands = paced(ctx, d.site.b.clients, int(mixedCommands*float64(d.site.b.devices)), span, func(ctx context.Context, i int) error {
		return d.site.ping(ctx, d.ids[i%len(d.ids)])
	})
	return ctx.Err()
}

// change is one, in the middle of the day.
func (d *day) change(ctx context.Context, after time.Duration) error {
	if err := pause(ctx, after); err != nil {
		return err
	}
	d.changedFrom = time.Now()
	return d.site.setPolicy(ctx, 599)
}

// rows tells the day as a whole, then its parts.
func (d *day) rows(used usage) ([]Result, error) {
	total := &swarm.Tally{}
	var parts []Result
	for _, kind := range slices.Sorted(maps.Keys(d.messages)) {
		t := d.messages[kind]
		total.Merge(t)
		if kind == "" {
			continue // what devices did by themselves
		}
		parts = append(parts, d.site.part("mixed/"+kind, t))
	}
	row, err := d.site.row("mixed", total, used)
	if err != nil {
		return nil, err
	}
	row.CPUPerDeviceMinute = row.CPUPerDevice / d.site.b.span.Minutes()
	rows := append([]Result{row}, parts...)
	for _, p := range []struct {
		name string
		m    measured
	}{{"mixed/commands", d.commands}, {"mixed/reads", d.reads}} {
		r := p.m.result()
		r.Scenario, r.Devices = p.name, d.site.b.devices
		if p.m.first != nil {
			d.site.b.say("%s: %d failed, the first: %s", p.name, p.m.failed, p.m.first)
		}
		rows = append(rows, r)
	}
	return append(rows, d.site.part("mixed/change", d.converged)), nil
}

// commandTime is how long a command may take to come back, seconds.
const commandTime = 30

// ping gives a device the command "ping" and waits for its result.
func (n *node) ping(ctx context.Context, id string) error {
	var c struct{ ID, State, Cause string }
	if err := n.do(ctx, http.MethodPost, "/devices/"+id+"/commands", client.Object{"name": wire.CommandPing}, &c); err != nil {
		return err
	}
	call := client.Call{Path: "/commands/" + c.ID, Query: url.Values{"wait": {strconv.Itoa(commandTime)}}}
	if err := n.api.Do(ctx, call, &c); err != nil {
		return err
	}
	if c.State != wire.CommandDone {
		return fmt.Errorf("the command %s of %s is %s after %d s %s", c.ID, id, c.State, commandTime, c.Cause)
	}
	return nil
}
