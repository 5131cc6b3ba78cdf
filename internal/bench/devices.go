package bench

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"steward/internal/client"
)

// enroll measures certificates alone, then whole agents from the token to the first report.
func (b *bench) enroll(ctx context.Context) ([]Result, error) {
	var rows []Result
	err := b.withFleet(ctx, 2*b.devices, func(n *node, f *fleet, tickets []ticket) error {
		alone, whole := tickets[:b.devices], tickets[b.devices:]
		for _, step := range []struct {
			name string
			do   func() measured
		}{
			{"enroll", func() measured {
				return loop{workers: enrollments, count: len(alone)}.run(ctx, func(ctx context.Context, i int) error { return f.enrollOnly(ctx, alone[i]) })
			}},
			{"enroll/and report all", func() measured { return f.join(ctx, whole) }},
		} {
			var m measured
			used, err := n.during(func() error { m = step.do(); return ctx.Err() })
			if err != nil {
				return err
			}
			if m.first != nil {
				b.say("%s: %d failed, the first by: %s", step.name, m.failed, m.first)
			}
			row := m.result()
			row.Scenario, row.Devices = step.name, b.devices
			row.perDevice(used)
			if row, err = b.withMemory(n, row); err != nil {
				return err
			}
			rows = append(rows, row)
		}
		return nil
	})
	return rows, err
}

// perDevice divides what was used.
func (r *Result) perDevice(used usage) {
	r.CPUPerDevice = milliseconds(used.server) / float64(r.Devices)
	r.DatabaseCPUPerDevice = milliseconds(used.database) / float64(r.Devices)
}

// idle measures the server's memory and processor time with connected devices that have nothing to do,
// against the same server before they came.
func (b *bench) idle(ctx context.Context) ([]Result, error) {
	var row Result
	err := b.withFleet(ctx, b.devices, func(n *node, f *fleet, tickets []ticket) error {
		if err := pause(ctx, b.settle); err != nil {
			return err
		}
		empty, err := n.self.memory()
		if err != nil {
			return err
		}
		row = Result{Scenario: "idle", Devices: b.devices, Seconds: b.span.Seconds()}
		if m := f.join(ctx, tickets); m.first != nil {
			return fmt.Errorf("%d of %d devices did not come: %w", m.failed, m.count, m.first)
		}
		if err := pause(ctx, b.settle); err != nil {
			return err
		}
		used, err := n.during(func() error { return pause(ctx, b.span) })
		if err != nil {
			return err
		}
		row, err = b.withMemory(n, row)
		if b.devices > 0 {
			row.KiBPerDevice = float64(row.ServerKiB-empty.Resident) / float64(b.devices)
			row.CPUPerDeviceMinute = milliseconds(used.server) / float64(b.devices) / b.span.Minutes()
		} else {
			row.CPUPerMinute = milliseconds(used.server) / b.span.Minutes()
		}
		return err
	})
	return []Result{row}, err
}

// convergeTime bounds how long a change may take to reach everybody.
const convergeTime = 5 * time.Minute

// change measures a one-line change, of the monitoring policy, from the request until each connected
// device has accepted it; the time of the processor includes the reports by which they say so.
func (b *bench) change(ctx context.Context) ([]Result, error) {
	var row Result
	err := b.withFleet(ctx, b.devices, func(n *node, f *fleet, tickets []ticket) error {
		if m := f.join(ctx, tickets); m.first != nil {
			return fmt.Errorf("%d of %d devices did not come: %w", m.failed, m.count, m.first)
		}
		if err := pause(ctx, b.settle); err != nil {
			return err
		}
		var rounds []Result
		var all usage
		for round := range b.rounds {
			m, used, err := b.oneChange(ctx, n, f, round)
			if err != nil {
				return err
			}
			if m.first != nil {
				b.say("%d devices did not converge: %s", m.failed, m.first)
			}
			rounds = append(rounds, m.result())
			all.server, all.database = all.server+used.server, all.database+used.database
		}
		row = medianOf(rounds)
		row.Scenario, row.Devices = "change", b.devices
		row.perDevice(usage{all.server / time.Duration(b.rounds), all.database / time.Duration(b.rounds)})
		var err error
		row, err = b.withMemory(n, row)
		return err
	})
	return []Result{row}, err
}

func (b *bench) oneChange(ctx context.Context, n *node, f *fleet, round int) (m measured, used usage, err error) {
	before := make([]int64, len(f.agents))
	for i, a := range f.agents {
		before[i] = a.Status().Epoch
	}
	used, err = n.during(func() error {
		began := time.Now()
		// Intervals so long that no periodic report falls into the measurement.
		policy := client.Object{"report_seconds": 600 + round, "metrics_seconds": 600}
		if err := n.do(ctx, http.MethodPut, "/monitoring/policy", policy, nil); err != nil {
			return err
		}
		m = f.converged(ctx, before, began)
		// The reports that tell the server are still on their way.
		return pause(ctx, b.tail)
	})
	if err != nil {
		return m, used, err
	}
	unknown, err := f.unacknowledged(ctx)
	if unknown > 0 {
		m.failed += unknown
		m.first = errors.Join(m.first, fmt.Errorf("the server does not know of %d devices that they have it", unknown))
	}
	return m, used, err
}

// converged waits until each agent has accepted a newer desired state.
func (f *fleet) converged(ctx context.Context, before []int64, began time.Time) measured {
	m := measured{count: len(f.agents)}
	waiting := make(map[int]bool, len(f.agents))
	for i := range f.agents {
		waiting[i] = true
	}
	m.first = until(ctx, convergeTime, func() (bool, error) {
		for i := range waiting {
			if f.agents[i].Status().Epoch > before[i] {
				delete(waiting, i)
				m.latencies = append(m.latencies, time.Since(began))
			}
		}
		return len(waiting) == 0, nil
	})
	m.elapsed, m.failed = time.Since(began), len(waiting)
	return m
}

// unacknowledged asks the server of each device which desired state it knows to be accepted.
func (f *fleet) unacknowledged(ctx context.Context) (int, error) {
	var mu sync.Mutex
	unknown := 0
	m := loop{workers: 4, count: len(f.agents)}.run(ctx, func(ctx context.Context, i int) error {
		status := f.agents[i].Status()
		var twin struct {
			Epoch    int64 `json:"epoch"`
			Accepted int64 `json:"accepted_epoch"`
		}
		err := f.patiently(ctx, "/devices/"+status.Device+"/twin", &twin)
		if err == nil && twin.Accepted < twin.Epoch {
			mu.Lock()
			unknown++
			mu.Unlock()
		}
		return err
	})
	return unknown, m.first
}

// patiently reads at most as fast as one token may.
func (f *fleet) patiently(ctx context.Context, path string, out any) error {
	for {
		err := f.node.do(ctx, http.MethodGet, path, nil, out)
		var p *client.Problem
		if !errors.As(err, &p) || p.Status != http.StatusTooManyRequests {
			return err
		}
		if err := pause(ctx, 200*time.Millisecond); err != nil {
			return err
		}
	}
}
