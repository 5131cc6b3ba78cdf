package twin

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"time"

	"steward/internal/device"
	"steward/internal/sqldb"
	"steward/internal/wire"
)

// Service keeps the documents of all devices. It is safe for concurrent use.
type Service struct {
	cfg       Config
	db        *sqldb.DB
	log       *slog.Logger
	now       func() time.Time
	node      string // random; marks this Service's messages on the bus
	waiters   waiters
	watchers  watchers
	envelopes envelopes
	epochs    together[epochCall]
	sealing   together[sealCall]
	fetches   together[fetchCall]
	bodies    bodies
	looks     together[*reportCall] // read committed state
	takes     together[*reportCall] // one transaction at a time
	seen      *seen
}

// New returns a Service. Run must run for the wake-ups of other nodes and for sweeping.
func New(cfg Config) *Service {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	if cfg.Recorded == nil {
		cfg.Recorded = []wire.Section{wire.SectionInventory, wire.SectionPackages}
	}
	cfg.EnvelopeLife = cmp.Or(cfg.EnvelopeLife, 24*time.Hour)
	s := &Service{cfg: cfg, db: cfg.DB, log: cfg.Log, now: cfg.Now, node: device.RandomName(10), seen: newSeen()}
	s.epochs.limit, s.epochs.run = 4*batchLimit, s.readEpochs
	s.sealing.limit, s.sealing.run = batchLimit, s.sealBatch
	s.fetches.limit, s.fetches.run = batchLimit, s.fetch
	s.looks.limit, s.looks.run = batchLimit, s.look
	s.takes.limit, s.takes.run = batchLimit, s.takeTogether
	return s
}

// sweepEvery is how often unused documents are looked for: all that is in use has to be read for it.
const sweepEvery = 6 * time.Hour

// Run listens for the wake-ups of other nodes and, on one of them, sweeps unused documents until ctx ends.
func (s *Service) Run(ctx context.Context) error {
	if s.cfg.Bus != nil {
		cancel, err := s.cfg.Bus.Subscribe(subjectPrefix+"*", s.heard)
		if err != nil {
			return fmt.Errorf("listen for changes of desired state: %w", err)
		}
		defer cancel()
	}
	if s.cfg.Once == nil {
		return s.sweepAlways(ctx)
	}
	return s.cfg.Once(ctx, "twin.sweep", s.sweepAlways)
}

func (s *Service) sweepAlways(ctx context.Context) error {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for {
		switch n, err := s.Sweep(ctx); {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			s.log.ErrorContext(ctx, "sweep of documents failed", "error", err)
		case n > 0:
			s.log.InfoContext(ctx, "swept unused documents", "documents", n)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}
