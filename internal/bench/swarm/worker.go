package swarm

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// Work is a worker process: it obeys the orders on in and answers on out, one line each, until in ends
// or ctx does.
func Work(ctx context.Context, in io.Reader, out io.Writer) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	s := newSquad()
	defer s.leave()
	answers := bufio.NewWriter(out)
	enc := json.NewEncoder(answers)
	dec := json.NewDecoder(bufio.NewReader(in))
	for {
		var o order
		if err := dec.Decode(&o); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return fmt.Errorf("read an order: %w", err)
		}
		tallies, err := s.obey(ctx, o)
		a := answer{Tallies: tallies}
		if err != nil {
			a.Error = err.Error()
		}
		if err := errors.Join(enc.Encode(a), answers.Flush()); err != nil {
			return fmt.Errorf("answer an order: %w", err)
		}
	}
}

// obey returns tallies by name; "" is that of the order itself.
func (s *squad) obey(ctx context.Context, o order) (map[string]*Tally, error) {
	if o.Within > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, o.Within)
		defer cancel()
	}
	one := func(t *Tally, err error) (map[string]*Tally, error) { return map[string]*Tally{"": t}, err }
	switch {
	case o.Do == doEnroll && o.Enroll != nil:
		return one(s.enroll(ctx, *o.Enroll))
	case o.Do == doConnect && o.Connect != nil:
		return one(s.connect(ctx, *o.Connect), nil)
	case o.Do == doHello:
		return one(s.hello(ctx), nil)
	case o.Do == doMark:
		s.mark()
		return nil, nil
	case o.Do == doConverged:
		return one(s.converged(ctx), nil)
	case o.Do == doServed:
		return one(s.served(ctx, o.Door), nil)
	case o.Do == doReports && o.Reports != nil:
		return one(s.reports(ctx, *o.Reports), nil)
	case o.Do == doMixed && o.Mixed != nil:
		return s.mixed(ctx, *o.Mixed), nil
	case o.Do == doLeave:
		s.leave()
		return nil, nil
	}
	return nil, fmt.Errorf("unknown order %q", o.Do)
}
