package bench

import (
	"context"
	"errors"
	"syscall"
	"time"

	"steward/internal/bench/swarm"
)

// reconnect measures how the fleet comes back after the server was killed, and after it was stopped and
// started again: from the start of the new process until all are served.
func (b *bench) reconnect(ctx context.Context) ([]Result, error) {
	var rows []Result
	err := b.withFleet(ctx, func(s *site) error {
		if s.external() {
			return usageError{errors.New("reconnect stops the server: it needs one of its own")}
		}
		if err := s.come(ctx); err != nil {
			return err
		}
		for _, end := range []struct {
			name   string
			signal syscall.Signal
		}{{"reconnect/killed", syscall.SIGKILL}, {"reconnect/stopped", syscall.SIGTERM}} {
			if err := pause(ctx, b.settle); err != nil {
				return err
			}
			row, err := s.comeBack(ctx, end.name, end.signal)
			if err != nil {
				return err
			}
			rows = append(rows, row)
		}
		if len(s.others) > 0 {
			row, err := s.loseOne(ctx)
			if err != nil {
				return err
			}
			rows = append(rows, row)
		}
		// Who is back gets what comes next.
		t, _, err := s.oneChange(ctx, 0)
		return all(t, err, "get a change after they had come back")
	})
	return rows, err
}

// comeBack ends the servers and starts them again under the waiting devices. The processor time of the new
// processes is counted from their beginning, less what a start takes without devices.
func (s *site) comeBack(ctx context.Context, name string, signal syscall.Signal) (Result, error) {
	s.b.say("%s: ending the server", name)
	if err := s.crew.Mark(ctx); err != nil {
		return Result{}, err
	}
	before, err := s.usage()
	if err != nil {
		return Result{}, err
	}
	for _, n := range s.nodes() {
		if err := n.end(signal); err != nil {
			return Result{}, err
		}
	}
	began := time.Now()
	for _, n := range s.nodes() {
		if err := n.again(ctx); err != nil {
			return Result{}, err
		}
	}
	stop, err := s.startProfile()
	if err != nil {
		return Result{}, err
	}
	t, err := s.crew.Served(ctx, comeTime, "")
	if err = errors.Join(err, stop()); err != nil {
		return Result{}, err
	}
	after, err := s.usage()
	if err != nil {
		return Result{}, err
	}
	sinceStart(t, began)
	used := usage{server: after.server - s.starting, database: after.database - before.database}
	row, err := s.row(name, t, used)
	if shaken := t.Facts["resumed"] + t.Facts["full"]; shaken > 0 {
		row.Resumed = float64(t.Facts["resumed"]) / float64(shaken)
	}
	return row, err
}

// loseOne kills one node of several for good: its devices go to the others.
func (s *site) loseOne(ctx context.Context) (Result, error) {
	if err := pause(ctx, s.b.settle); err != nil {
		return Result{}, err
	}
	last := s.others[len(s.others)-1]
	if err := s.crew.Mark(ctx); err != nil {
		return Result{}, err
	}
	if err := last.end(syscall.SIGKILL); err != nil {
		return Result{}, err
	}
	s.others = s.others[:len(s.others)-1]
	var t *swarm.Tally
	used, err := s.during(func() (err error) {
		t, err = s.crew.Served(ctx, comeTime, last.door())
		return err
	})
	if err != nil {
		return Result{}, err
	}
	row, err := s.row("reconnect/one node killed", t, used)
	row.Devices, row.KiBPerDevice = t.Count, 0 // those of the one
	row.perDevice(used)
	return row, err
}

// sinceStart takes the time between the mark and the start of the new process off.
func sinceStart(t *swarm.Tally, began time.Time) {
	off := began.UnixMicro() - t.Began
	if t.Began == 0 || off <= 0 {
		return
	}
	for i := range t.Latencies {
		t.Latencies[i] = max(0, t.Latencies[i]-off)
	}
	t.Began = began.UnixMicro()
}
