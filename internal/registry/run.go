package registry

import (
	"context"
	"errors"
	"fmt"
	"time"

	"steward/internal/sqldb"
)

// tidyInterval is how often counts that have come to nothing are looked for.
const tidyInterval = time.Hour

// Run goes on with bulk changes that nobody waits for, and tidies kept counts, until ctx ends.
func (s *Service) Run(ctx context.Context) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	ended := make(chan error, 1)
	go func() {
		defer stop()
		ended <- s.runner.Run(ctx)
	}()
	s.tidyAgain(ctx)
	stop()
	return <-ended
}

func (s *Service) tidyAgain(ctx context.Context) {
	tick := time.NewTicker(tidyInterval)
	defer tick.Stop()
	for ctx.Err() == nil {
		if err := s.Tidy(ctx); err != nil && ctx.Err() == nil && !errors.Is(err, context.Canceled) {
			s.log.ErrorContext(ctx, "tidy kept counts", "error", err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
}

// tidyKeys bounds how many counts one transaction removes.
const tidyKeys = 500

// Tidy removes counts by label whose shards come to nothing together: values come and go, and on
// PostgreSQL the transaction that counted a device in has another shard than the one that counted it out.
// SQLite has one shard, whose rows go when they are zero.
func (s *Service) Tidy(ctx context.Context) error {
	if s.db.Dialect() != sqldb.Postgres {
		return nil
	}
	for {
		var removed int64
		err := s.db.Write(ctx, func(tx *sqldb.Tx) (err error) {
			removed, err = tx.Exec(ctx, `DELETE FROM registry_label_stage WHERE (tenant, key, value, stage) IN
				(SELECT tenant, key, value, stage FROM registry_label_stage GROUP BY tenant, key, value, stage HAVING SUM(devices) = 0 LIMIT $1)`, tidyKeys)
			return err
		})
		if err != nil {
			return fmt.Errorf("remove counts of no device: %w", err)
		}
		if removed == 0 {
			return nil
		}
	}
}
