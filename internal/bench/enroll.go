package bench

import (
	"context"

	"steward/internal/bench/swarm"
)

// enroll measures certificates alone, each over a connection of its own, then the first connection with them and
// the first report.
func (b *bench) enroll(ctx context.Context) ([]Result, error) {
	var rows []Result
	err := b.withStock(ctx, func(s *site, tickets []swarm.Ticket) error {
		for _, step := range []struct {
			name string
			do   func() (*swarm.Tally, error)
		}{
			{"enroll", func() (*swarm.Tally, error) {
				return s.crew.Enroll(ctx, enrollTime, swarm.Enroll{Link: s.boot.Link, Tickets: tickets, AtOnce: enrollments})
			}},
			{"enroll/first connection", func() (*swarm.Tally, error) { return s.crew.Connect(ctx, comeTime, s.arrive(arrivals)) }},
			{"enroll/first report", func() (*swarm.Tally, error) { return s.crew.Hello(ctx, helloTime) }},
		} {
			row, err := s.step(step.name, step.do)
			if err != nil {
				return err
			}
			rows = append(rows, row)
		}
		return nil
	})
	return rows, err
}

// step measures something that the devices do.
func (s *site) step(name string, do func() (*swarm.Tally, error)) (Result, error) {
	var t *swarm.Tally
	used, err := s.during(func() (err error) {
		t, err = do()
		return err
	})
	if err != nil {
		return Result{}, err
	}
	return s.row(name, t, used)
}
