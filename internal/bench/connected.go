package bench

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"steward/internal/bench/swarm"
	"steward/internal/client"
)

// idle measures the server's memory and processor time with connected devices that have nothing to do,
// against the same server before they came; as it stands, and after it has collected its garbage.
func (b *bench) idle(ctx context.Context) ([]Result, error) {
	var rows []Result
	err := b.withFleet(ctx, func(s *site) error {
		if err := s.come(ctx); err != nil {
			return err
		}
		if err := pause(ctx, b.settle); err != nil {
			return err
		}
		began := time.Now()
		used, err := s.during(func() error { return pause(ctx, b.span) })
		if err != nil {
			return err
		}
		row, err := s.row("idle", &swarm.Tally{Began: began.UnixMicro(), Ended: time.Now().UnixMicro()}, used)
		if err != nil {
			return err
		}
		if b.devices > 0 {
			row.CPUPerDeviceMinute = milliseconds(used.server) / float64(b.devices) / b.span.Minutes()
		} else {
			row.CPUPerMinute = milliseconds(used.server) / b.span.Minutes()
		}
		rows = append(rows, row)
		collected, err := s.collect(ctx)
		if err == nil && !s.external() {
			rows = append(rows, collected)
		}
		return err
	})
	return rows, err
}

// collect has the servers give back what they don't use.
func (s *site) collect(ctx context.Context) (Result, error) {
	for _, n := range s.nodes() {
		if err := n.collect(); err != nil {
			return Result{}, err
		}
	}
	if err := pause(ctx, min(s.b.settle, 5*time.Second)); err != nil {
		return Result{}, err
	}
	return s.row("idle/after a collection", &swarm.Tally{}, usage{})
}

// connect measures a storm: all devices at once, none of which has a session to resume.
func (b *bench) connect(ctx context.Context) ([]Result, error) {
	var row Result
	err := b.withFleet(ctx, func(s *site) (err error) {
		b.say("%d devices connect at once", b.devices)
		row, err = s.step("connect", func() (*swarm.Tally, error) { return s.crew.Connect(ctx, comeTime, s.arrive(0)) })
		return err
	})
	return []Result{row}, err
}

// reports measures acknowledged reports of changed documents and of nothing new, each device sending its next
// when the last was acknowledged.
func (b *bench) reports(ctx context.Context) ([]Result, error) {
	var rows []Result
	err := b.withFleet(ctx, func(s *site) error {
		if err := s.come(ctx); err != nil {
			return err
		}
		for _, kind := range []struct {
			name string
			load swarm.Reports
		}{
			{"reports/changed", swarm.Reports{For: b.span, InFlight: b.inFlight, Changed: true}},
			{"reports/unchanged", swarm.Reports{For: b.span, InFlight: b.inFlight}},
		} {
			var t *swarm.Tally
			used, err := s.during(func() (err error) {
				t, err = s.crew.Reports(ctx, kind.load)
				return err
			})
			if err != nil {
				return err
			}
			row, err := s.row(kind.name, t, used)
			if err != nil {
				return err
			}
			if t.Count > 0 {
				row.CPUPerRequest = milliseconds(used.server) / float64(t.Count)
				row.DatabaseCPUPerRequest = milliseconds(used.database) / float64(t.Count)
			}
			rows = append(rows, row)
		}
		return nil
	})
	return rows, err
}

// convergeTime bounds how long a change may take to reach everybody.
const convergeTime = 5 * time.Minute

// change measures a one-line change, of the monitoring policy, from the request until the server has
// acknowledged of each connected device that it has accepted it.
func (b *bench) change(ctx context.Context) ([]Result, error) {
	var row Result
	err := b.withFleet(ctx, func(s *site) error {
		if err := s.come(ctx); err != nil {
			return err
		}
		if err := pause(ctx, b.settle); err != nil {
			return err
		}
		var rounds []Result
		var sum usage
		for round := range b.rounds {
			t, used, err := s.oneChange(ctx, round)
			if err != nil {
				return err
			}
			r, err := s.row("change", t, used)
			if err != nil {
				return err
			}
			rounds = append(rounds, r)
			sum.server, sum.database, sum.generator = sum.server+used.server, sum.database+used.database, sum.generator+used.generator
		}
		row = medianOf(rounds)
		n := time.Duration(b.rounds)
		row.perDevice(usage{sum.server / n, sum.database / n, sum.generator / n})
		return s.verifyAccepted(ctx)
	})
	return []Result{row}, err
}

// setPolicy makes the change; other seconds, another document.
func (s *site) setPolicy(ctx context.Context, seconds int) error {
	return s.do(ctx, http.MethodPut, "/monitoring/policy", client.Object{"report_seconds": seconds, "metrics_seconds": 600}, nil)
}

func (s *site) oneChange(ctx context.Context, round int) (t *swarm.Tally, used usage, err error) {
	used, err = s.during(func() error {
		if err := s.crew.Mark(ctx); err != nil {
			return err
		}
		began := time.Now()
		if err := s.setPolicy(ctx, 600+round); err != nil {
			return err
		}
		t, err = s.crew.Converged(ctx, convergeTime)
		sinceStart(t, began)
		return err
	})
	return t, used, err
}

// verified is how many devices the server is asked about after a change.
const verified = 100

// verifyAccepted asks the server of some devices which desired state it knows to be accepted: an acknowledgement
// is worth what is behind it.
func (s *site) verifyAccepted(ctx context.Context) error {
	ids, _, err := s.sample(ctx, 0)
	if err != nil {
		return err
	}
	step := max(1, len(ids)/verified)
	for i := 0; i < len(ids); i += step {
		var twin struct {
			Epoch    int64 `json:"epoch"`
			Accepted int64 `json:"accepted_epoch"`
		}
		if err := s.patiently(ctx, "/devices/"+ids[i]+"/twin", &twin); err != nil {
			return err
		}
		if twin.Accepted < twin.Epoch {
			return fmt.Errorf("the server has acknowledged that %s accepted epoch %d, and tells %d", ids[i], twin.Epoch, twin.Accepted)
		}
	}
	return nil
}

// patiently reads at most as fast as one token may.
func (n *node) patiently(ctx context.Context, path string, out any) error {
	for {
		err := n.do(ctx, http.MethodGet, path, nil, out)
		var p *client.Problem
		if !errors.As(err, &p) || p.Status != http.StatusTooManyRequests {
			return err
		}
		if err := pause(ctx, 200*time.Millisecond); err != nil {
			return err
		}
	}
}
