package remote

import (
	"context"
	"errors"
	"fmt"
	"time"

	"steward/internal/device"
	"steward/internal/sqldb"
)

// The rhythm of Run.
const (
	flushEvery  = time.Second
	expireEvery = time.Second
	pruneEvery  = 10 * time.Minute
	// subscribeAgain is how long a node without wake-ups waits before it asks the bus again.
	subscribeAgain = 5 * time.Second
)

// onceName is the lease under which one node expires and forgets.
const onceName = "remote.expiry"

// Run hears other nodes, notes what was handed out, and ends what is past its deadline, until ctx ends.
// Every node runs it. Errors of the database are logged and tried again.
func (s *Service) Run(ctx context.Context) error {
	defer s.stop.stop()
	expired := make(chan error, 1)
	go func() { expired <- s.once(ctx, onceName, s.expireLoop) }()
	var cancels []func()
	defer func() {
		for _, cancel := range cancels {
			cancel()
		}
	}()
	flush, subscribe := time.NewTicker(flushEvery), time.NewTimer(0)
	defer flush.Stop()
	defer subscribe.Stop()
	for {
		select {
		case <-ctx.Done():
			s.stop.stop()
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), flushEvery)
			defer cancel()
			return errors.Join(ignoreCanceled(<-expired), s.flush(last))
		case <-subscribe.C:
			var err error
			if cancels, err = s.subscribe(); err != nil {
				s.cfg.Log.WarnContext(ctx, "no wake-ups for commands yet", "error", err)
				subscribe.Reset(subscribeAgain)
			}
		case <-flush.C:
			if err := s.flush(ctx); err != nil && ctx.Err() == nil {
				s.cfg.Log.ErrorContext(ctx, "commands try again", "error", err)
			}
		}
	}
}

func ignoreCanceled(err error) error {
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

func (s *Service) once(ctx context.Context, name string, do func(ctx context.Context) error) error {
	if s.cfg.Once == nil {
		return do(ctx)
	}
	return s.cfg.Once(ctx, name, do)
}

func (s *Service) subscribe() (cancels []func(), err error) {
	if s.cfg.Bus == nil {
		return nil, nil
	}
	for _, subject := range []string{subjectGiven, subjectFinished} {
		cancel, err := s.cfg.Bus.Subscribe(subject, s.heard)
		if err != nil {
			for _, c := range cancels {
				c()
			}
			return nil, err
		}
		cancels = append(cancels, cancel)
	}
	return cancels, nil
}

// expireLoop ends commands whose time is up, for as long as ctx lasts.
func (s *Service) expireLoop(ctx context.Context) error {
	expire, prune := time.NewTicker(expireEvery), time.NewTicker(pruneEvery)
	defer expire.Stop()
	defer prune.Stop()
	for {
		var err error
		select {
		case <-ctx.Done():
			return nil
		case <-expire.C:
			err = s.Expire(ctx)
		case <-prune.C:
			err = s.Prune(ctx)
		}
		if err != nil && ctx.Err() == nil {
			s.cfg.Log.ErrorContext(ctx, "commands try again", "error", err)
		}
	}
}

// Expire ends the open commands whose deadline has passed. It reads those alone, by an index.
func (s *Service) Expire(ctx context.Context) error {
	for {
		due, err := dueIDs(ctx, s.cfg.DB, s.now(), rowsPerStatement)
		if err != nil || len(due) == 0 { // the usual case costs one look and no transaction
			return err
		}
		err = s.cfg.DB.Write(ctx, func(tx *sqldb.Tx) error {
			for _, id := range due {
				c, ok, err := byID(ctx, tx, id)
				if err != nil {
					return err
				}
				if !ok || !c.State.Open() {
					continue // it has just been answered
				}
				before := c.State
				c.State, c.Finished, c.Cause = Expired, s.now().UTC().Truncate(time.Microsecond), expiredCause(c)
				if err := s.finish(ctx, tx, device.System("remote"), before, c); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return fmt.Errorf("expire commands: %w", err)
		}
	}
}

func expiredCause(c Command) string {
	if c.State == Delivered {
		return "the device got it and did not answer before the deadline"
	}
	return "the device did not fetch it before the deadline"
}

// Prune forgets finished commands after KeepFinished, and batches when all of theirs are gone.
func (s *Service) Prune(ctx context.Context) error {
	for {
		var n int64
		err := s.cfg.DB.Write(ctx, func(tx *sqldb.Tx) (err error) {
			n, err = prune(ctx, tx, s.now().Add(-KeepFinished))
			return err
		})
		if err != nil {
			return fmt.Errorf("forget old commands: %w", err)
		}
		if n < rowsPerStatement {
			return nil
		}
	}
}
